"""SIGTERM outside the training loop: it ends a command as Ctrl-C does, and a forked process as ever."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from aligntune.cli.main import main
from aligntune.utils.signals import terminable


def test_sigterm_is_an_interrupt_in_the_block_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_forked_process_ends_as_ever() -> None:
    """A pool ends its workers by SIGTERM, which must not print a traceback or run the caller's clean-up."""
    with terminable():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(9)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_a_command_that_sigterm_ends_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("aligntune.cli.report.command.callback", told)
    assert main(["report", "anywhere"]) == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: stopped\n")
