"""The live view of real runs: its numbers are those of the log, and Ctrl-C leaves the terminal as it was."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from aligntune.core import live, screen


class Terminal:
    """Standard error that says it is a terminal, and keeps every drawing."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.written: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written.append(re.sub(r"\x1b\[[0-9;]*[mJA]", "", text))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def test_the_view_shows_what_the_log_has(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live, "FASTEST", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)  # every change is drawn
    for module in (live, screen):
        monkeypatch.setattr(module, "size_of", lambda stream: (100, 30))
    terminal: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    held = {"evaluation__dataset": {"name": str(tmp_path / "grpo.jsonl"), "max_samples": 2}, "evaluation__every": 2}
    trainer = runs.trainer("grpo", tiny_model, tmp_path, train__max_steps=3, health__clipped=1e-9, **held)
    trainer.train()
    assert sys.stderr is terminal
    out = tmp_path / "out"
    drawn = "".join(terminal.written)
    for key in ("reward", "loss", "grad_norm", "kl"):
        for value in runs.logged(out, key):
            assert re.search(rf"{live.LABELS[key]} {re.escape(live.number(value))}\s", drawn), (key, value)
    assert "grpo on trl" in drawn
    assert "step 3 of 3" in drawn
    assert "evaluating after step 2" in drawn
    assert f"held-out reward {live.number(runs.logged(out, 'eval_reward')[0])}" in drawn
    assert re.search(r"answer of step 3, reward [\d.e-]+ +Say \d+", drawn)
    assert terminal.written[-1] == "\r"  # cleared


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(tiny_model: Path, tmp_path: Path) -> None:
    """A real terminal, a real key: a checkpoint is written, exit code 130, the terminal's settings as before."""
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(runs.plain("sft", tiny_model, tmp_path, train__max_steps=100000)))
    pid, master = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "aligntune", "train", str(file)])
    before, out, pressed = termios.tcgetattr(master), b"", False
    began = time.monotonic()
    while time.monotonic() - began < 120:
        if select.select([master], [], [], 0.2)[0]:
            try:
                read = os.read(master, 65536)
            except OSError:  # the program has ended
                break
            out += read
            after = termios.tcgetattr(master)
        if not pressed and b" left" in out:
            os.write(master, b"\x03")
            pressed = True
    _, status = os.waitpid(pid, 0)
    os.close(master)
    text = out.decode()
    assert os.waitstatus_to_exitcode(status) == 130, text[-2000:]
    assert after == before
    assert not re.search(r"\x1b\[\?", text)  # no mode was set: no hidden cursor, no other screen
    assert "stopping after this step" in text
    assert "go on with the same command and --resume" in text.rpartition("\x1b[J")[2]
    assert list((tmp_path / "out").glob("checkpoint-*"))
