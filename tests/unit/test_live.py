"""The live view: what it shows, how little it draws, and that the terminal is left as it was."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aligntune.core import live, screen
from aligntune.core.live import Progress, Seen, clock, frame
from aligntune.core.live_folder import FolderView
from aligntune.core.live_frame import curve, printable
from aligntune.core.screen import Screen
from aligntune.stages import process


class Terminal(io.StringIO):
    """A terminal of some columns that shows what is written to it, and breaks lines that are too long."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, columns: int = 80) -> None:
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return True

    def screen(self, columns: int | None = None) -> list[str]:
        """The lines that are seen: CR, LF, CUU and ED are obeyed, colours are left out (ECMA-48)."""
        columns = columns or self.columns
        rows, y, x = [""], 0, 0
        for part in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if part == "\r":
                x = 0
            elif part == "\n":
                y, x = y + 1, 0
                if y == len(rows):
                    rows.append("")
            elif part.startswith("\x1b"):
                if part.endswith("A"):
                    y = max(y - int(part[2:-1]), 0)
                elif part == "\x1b[J":
                    rows = [*rows[:y], rows[y][:x]]
                else:
                    assert part.endswith("m"), f"a control sequence that the view should not use: {part!r}"
            else:
                for c in part:
                    if x == columns:
                        y, x = y + 1, 0
                        if y == len(rows):
                            rows.append("")
                    rows[y] = (rows[y].ljust(x) + c) if len(rows[y]) <= x else rows[y][:x] + c + rows[y][x + 1 :]
                    x += 1
        return rows


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns."""
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(screen, "size_of", lambda stream: (made.columns, 24))
    monkeypatch.setattr(live, "size_of", lambda stream: (made.columns, 24))
    return made


@pytest.fixture
def watched(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the terminal standard error; to be called in the test itself, because pytest sets it anew for each phase."""
    return lambda: monkeypatch.setattr(sys, "stderr", terminal)


def plain(lines: list[str]) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in lines]


def policy_run() -> Seen:
    seen = Seen("grpo on trl", "runs/gsm8k")
    for i in range(1, 121):
        seen.at(i, 300, 2.0 * i)
        row = {"step": i, "reward": i / 200, "loss": 0.5, "kl": 0.0123, "learning_rate": 9.1e-7, "num_tokens": 2400 * i}
        seen.take({**row, "rewards/maths/mean": 0.25, "rewards/format/mean": 1.0, "eval_reward": 0.5}, 2.0 * i)
    return seen


def test_a_policy_run_shows_its_numbers(terminal: Terminal) -> None:
    seen = policy_run()
    seen.sample = (119, "What is 3 + 4?", "It is 7.", 1.0)
    seen.events = ["step 8: something (a)", "step 80: entropy collapse (entropy_low); raise it"]
    lines, widths = frame(seen, terminal)
    text = plain(lines)
    assert text[0].startswith("grpo on trl  runs/gsm8k")
    assert text[0].endswith("step 120 of 300, 6:00 left")
    assert text[1] == "━" * 32 + "─" * 47
    shown = " ".join(text)
    for part in (
        "reward 0.6", "loss 0.5", "kl 0.0123", "learning rate 9.1e-07", "reward maths 0.25", "reward format 1",
        "held-out reward 0.5", "lowest 0.005, highest 0.6", "seconds a step 2", "tokens a second 1,200", "memory ",
        "answer of step 119, reward 1  What is 3 + 4?", "It is 7.", "2 health events, the last: step 80: entropy",
    ):  # fmt: skip
        assert part in shown, part
    assert all(len(line) <= 79 for line in text)
    assert any(line.endswith("lowest 0.005, highest 0.6") for line in text)
    seen.trend["reward"].append(-0.123456)
    assert any(line.endswith("lowest -0.123, highest 0.6") for line in plain(frame(seen, terminal)[0]))
    assert widths[1] == 79


def test_a_supervised_and_a_preference_run_show_theirs(terminal: Terminal) -> None:
    seen = Seen("sft on unsloth")
    seen.at(1, 0, 0.0)
    seen.take(
        {"step": 1, "loss": 2.5, "mean_token_accuracy": 0.4, "grad_norm": 1.0, "eval_nll": 2.25, "text": "x"}, 0.0
    )
    shown = " ".join(plain(frame(seen, terminal)[0]))
    assert all(part in shown for part in ("step 1", "loss 2.5", "token accuracy 0.4", "held-out nll 2.25"))
    assert "left" not in shown
    pairs = Seen("dpo on trl")
    pairs.take({"loss": 0.69, "rewards/accuracies": 0.75, "rewards/margins": 0.125, "rewards/chosen": 9.0}, 0.0)
    assert [words for words, _ in pairs.shown()] == ["pairs ranked right", "margin", "loss"]
    pairs.doing = "evaluating after step 3"
    assert "evaluating after step 3" in plain(frame(pairs, terminal)[0])[0]


def test_a_resumed_run_is_timed_from_its_first_step_here() -> None:
    seen = Seen("x")
    seen.at(501, 600, 10.0)
    assert (seen.step_seconds, seen.left) == (None, None)
    seen.at(503, 600, 14.0)
    assert (seen.step_seconds, seen.left) == (2.0, 194.0)
    seen.at(1, 600, 15.0)  # another round
    assert seen.left is None
    assert [clock(v) for v in (None, 5, 65, 3661)] == ["?", "0:05", "1:05", "1:01:01"]


def test_an_answer_cannot_move_the_cursor(terminal: Terminal) -> None:
    seen = policy_run()
    seen.sample = (3, "\x1b[2Jgone\x07", "a\r\x1b]0;title\x07\nb\u202ec\u200b", None)
    text = "\n".join(frame(seen, terminal)[0])
    assert set(re.findall(r"\x1b[^m]*m|\x1b.", text)) <= set(re.findall(r"\x1b\[[0-9;]*m", text))
    assert printable(seen.sample[2]) == "a ]0;title b c"
    assert not {"\r", "\n", "\x07", "\u202e"} & set("".join(frame(seen, terminal)[0]))


def test_colours_only_where_they_are_wanted(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = "".join(frame(policy_run(), terminal)[0])  # NO_COLOR is set for all tests
    assert "\x1b[3" not in coloured
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[32m" in "".join(frame(policy_run(), terminal)[0])


def test_a_terminal_without_unicode_gets_ascii(terminal: Terminal) -> None:
    terminal.encoding = "latin-1"  # type: ignore[assignment]
    seen = policy_run()
    seen.sample = (1, "日本", "ünd", 1.0)
    text = plain(frame(seen, terminal)[0])
    assert text[1] == "#" * 32 + "-" * 47
    shown = Screen(terminal)
    shown.draw(text)
    assert "?? " not in text
    assert "??" in terminal.getvalue()
    assert "ünd" in terminal.getvalue()


def test_the_curve_averages_what_has_no_room() -> None:
    assert curve([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert curve([0, 0, 1, 1], 2, unicode=False) == ".@"
    assert curve([5.0] * 9, 3) == "▁▁▁"


@pytest.mark.parametrize("size", [(20, 3), (40, 24), (300, 6)])
def test_every_window_is_large_enough(terminal: Terminal, size: tuple[int, int], monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "size_of", lambda stream: size)
    lines, widths = frame(policy_run(), terminal)
    assert len(lines) <= size[1] - 1
    assert max(widths) <= min(size[0] - 1, live.WIDEST)


# ---- the terminal ----------------------------------------------------------------------------------------------


def test_the_lines_are_drawn_over_and_leave_nothing(terminal: Terminal, watched: Callable[[], None]) -> None:
    watched()
    shown = Screen(terminal)
    shown.open()
    assert sys.stderr is not terminal
    shown.draw(["one", "two"])
    shown.draw(["three"])
    print("a warning", file=sys.stderr)
    print("half", end="", file=sys.stderr)
    assert terminal.screen() == ["a warning", "three", ""]
    print("\rbar 1\rbar 2", file=sys.stderr)
    shown.draw(["four", "five", "six"])
    assert terminal.screen() == ["a warning", "bar 2", "four", "five", "six", ""]
    print("no end", end="", file=sys.stderr)
    shown.close()
    assert sys.stderr is terminal
    assert terminal.screen() == ["a warning", "bar 2", "no end", ""]
    assert "\x1b[?" not in terminal.getvalue()  # no mode was set, so none is to be put back


def test_what_is_logged_goes_above(terminal: Terminal, watched: Callable[[], None]) -> None:
    watched()
    handler = logging.StreamHandler(terminal)
    log = logging.getLogger("aligntune.test_live")
    log.addHandler(handler)
    try:
        shown = Screen(terminal)
        shown.open()
        shown.draw(["line"])
        log.warning("look")
        assert terminal.screen() == ["look", "line", ""]
        shown.close()
        assert handler.stream is terminal
    finally:
        log.removeHandler(handler)


def test_a_window_that_became_narrower_is_cleared_whole(terminal: Terminal) -> None:
    shown = Screen(terminal)
    print("before", file=terminal)
    shown.draw(["x" * 70, "y" * 10])
    terminal.columns = 40  # the terminal breaks the first line in two
    shown.draw(["z"])
    assert terminal.screen(40) == ["before", "z", ""]


def test_a_signal_may_print_while_lines_are_written(
    terminal: Terminal, watched: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched()
    shown = Screen(terminal)
    shown.open()
    shown.draw(["first"])
    write = terminal.write

    def interrupted(text: str) -> int:
        monkeypatch.setattr(terminal, "write", write)
        print("stopping after this step", file=sys.stderr)  # as a handler does
        return write(text)

    monkeypatch.setattr(terminal, "write", interrupted)
    shown.draw(["second"])
    assert terminal.screen() == ["stopping after this step", "second", ""]
    shown.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_prints_as_ever(terminal: Terminal) -> None:
    shown = Screen(terminal)
    shown.draw(["line"])
    shown._pid += 1
    shown.above("from a worker\n")
    assert terminal.getvalue().endswith("line\nfrom a worker\n")


# ---- when something is shown -------------------------------------------------------------------------------------


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that goes forward when it is told to."""
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_it_draws_at_most_four_times_a_second(terminal: Terminal, ticks: Any, monkeypatch: Any) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(live, "frame", lambda seen, stream: (drawn.append(seen.step), ([f"{seen.step}"], [1]))[1])
    progress = Progress("x", terminal)
    for step in range(1, 1001):  # ten seconds
        progress.show(step, 1000)
        ticks(0.01)
    assert 36 <= len(drawn) <= 41
    progress.busy("evaluating")
    assert len(drawn) in range(37, 43)
    progress.close()
    progress.show(1001, 1001)
    assert terminal.screen()[-1] == ""
    assert "1001" not in terminal.getvalue()


def test_slow_drawing_is_done_less_often(terminal: Terminal, ticks: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "frame", lambda seen, stream: (ticks(0.05), (["x"], [1]))[1])
    progress = Progress("x", terminal)
    progress.show(1, 9)
    assert progress._again - live.time.monotonic() == pytest.approx(5.0)  # 0.05 s are 1% of 5 s
    progress.close()


def test_without_a_terminal_there_is_a_line_now_and_then(ticks: Any) -> None:
    quiet, every, off = io.StringIO(), io.StringIO(), io.StringIO()
    shown = [Progress("dpo on trl", quiet), Progress("dpo on trl", every, "plain"), Progress("x", off, "off")]
    for step in range(1, 101):
        for progress in shown:
            progress.show(step, 100)
            progress.row({"step": step, "loss": 0.5, "rewards/accuracies": 0.75})
        ticks(1.0)
    for progress in shown:
        progress.close()
    lines = every.getvalue().splitlines()
    assert len(lines) == 100
    assert lines[49] == "dpo on trl: step 50 of 100 (50%), 0:50 left: pairs ranked right 0.75, loss 0.5"
    assert [line.split()[4] for line in quiet.getvalue().splitlines()] == ["31", "61", "91"]
    assert off.getvalue() == ""


def test_plain_lines_on_a_terminal_and_none_on_a_dumb_one(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    Progress("x", terminal, "plain").show(3, 9, {"loss": 1.0})
    assert terminal.getvalue() == "x: step 3 of 9 (33%): loss 1\n"
    monkeypatch.setenv("TERM", "dumb")
    Progress("x", terminal).show(4, 9, {"loss": 1.0})
    assert "step 4" not in terminal.getvalue()


def test_an_interrupt_in_the_middle_of_a_drawing_leaves_a_clean_terminal(
    terminal: Terminal, watched: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched()
    progress = Progress("x", terminal)
    progress.show(1, 9)
    progress._again = 0.0

    def interrupted(seen: Any, stream: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        progress.show(2, 9)
    progress.close()
    assert sys.stderr is terminal
    assert terminal.screen() == [""]


class Lost(Terminal):
    """A terminal whose connection is cut."""

    lost = False

    def write(self, text: str) -> int:
        if self.lost:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_run_outlives_its_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Lost()
    monkeypatch.setattr(sys, "stderr", lost)
    progress = Progress("x", lost)
    progress.show(1, 9)
    progress._again, lost.lost = 0.0, True
    progress.show(2, 9)
    assert not progress._live
    print("nobody reads this", file=sys.stderr)
    progress.close()
    assert sys.stderr is lost
    told = Progress("x", lost, "plain")
    for step in (1, 2):
        told.show(step, 9, {"loss": 1.0})
    assert told.mode == "off"


def test_a_reward_that_is_no_number_and_a_long_prompt_are_drawn(terminal: Terminal) -> None:
    seen = Seen("x")
    for reward, shown in ((math.nan, "nan"), (math.inf, "inf"), (-0.5, "-0.5")):
        seen.sample = (1, "context " * 1000 + "What is 3 + 4?", "7", reward)
        text = " ".join(plain(frame(seen, terminal)[0]))
        assert f"reward {shown}" in text
        assert "context What is 3 + 4?" in text


# ---- a run in another process -----------------------------------------------------------------------------------


def test_a_folder_is_followed_by_what_is_appended(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", io.StringIO()
    folder.mkdir()
    metrics = folder / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 9.0}\n')
    with FolderView(folder, "stage sft (train)", "plain", out) as view:
        view.poll()
        assert out.getvalue() == ""  # it stood there before
        (folder / "manifest.json").write_text('{"total_steps": 8}')
        with open(metrics, "a") as file:
            file.write(
                '{"step": 2, "time": 4.0, "loss": 2.5, "num_tokens": 10}\nnonsense\n{"step": 3, "time": 6.0, "lo'
            )
            file.flush()
            view.poll()
            file.write('ss": 0.5, "num_tokens": 30}\n')
        (folder / "samples.jsonl").write_text('{"step": 3, "prompt": [{"content": "Hi?"}], "answer": "Yes"}\n')
        (folder / "events.jsonl").write_text('{"step": 3, "rule": "kl_high", "message": "far"}\n')
        view.poll()
    assert view.progress.seen.sample == (3, "Hi?", "Yes", None)
    assert view.progress.seen.events == ["step 3: far (kl_high)"]
    lines = out.getvalue().splitlines()
    assert lines[0] == "stage sft (train): step 2 of 8 (25%): loss 2.5"
    assert lines[1] == "stage sft (train): step 3 of 8 (38%), 0:10 left: loss 0.5"
    assert len(lines) == 2
    assert view.progress.seen.speed == 10.0  # by the run's own clock, not by when it was looked at
    assert "memory" not in " ".join(plain(frame(view.progress.seen, out)[0]))
    metrics.write_text('{"step": 1, "loss": 9.0}\n')  # cut back to a checkpoint
    view.poll()
    assert len(out.getvalue().splitlines()) == 2


def test_a_process_is_looked_at_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOOK_SECONDS", 0.01)
    looks: list[int] = []
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2); raise SystemExit(3)"]) as child:
        code, _ = process._wait(child, lambda: looks.append(1))
    assert code == 3
    assert len(looks) > 3


def test_a_process_whose_view_fails_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def sleeping(line: list[str], **given: Any) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **given))
        return started[-1]

    def look() -> None:
        raise KeyError("x")

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    with pytest.raises(KeyError):
        process.run_process(["info"], tmp_path / "log", look)
    assert started[0].returncode == -signal.SIGTERM
