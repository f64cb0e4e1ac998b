"""SIGTERM outside the training loop: it ends a command as Ctrl-C does, and a forked process as ever."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from aligntune.cli.main import main
from aligntune.compare.execution import train_process
from aligntune.utils.signals import Terminated, terminable


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


@pytest.mark.parametrize(("raised", "passed_on"), [(Terminated, True), (KeyboardInterrupt, False)])
def test_a_comparison_passes_sigterm_on_to_its_run(
    raised: type[KeyboardInterrupt], passed_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a terminal has reached the run already, and a second signal would keep it from its checkpoint."""
    told: list[str] = []

    class Run:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def communicate(self) -> None:
            raise raised

        def terminate(self) -> None:
            told.append("terminated")

        def wait(self) -> None:
            told.append("waited for")

    monkeypatch.setattr("aligntune.compare.execution.subprocess.Popen", Run)
    with pytest.raises(raised):
        train_process(tmp_path / "run.yaml", tmp_path / "train.log", begun=False)
    assert told == ["terminated"] * passed_on + ["waited for"]
