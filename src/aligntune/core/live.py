"""What a person sees of a run while it goes on: on a terminal a few lines that move, elsewhere a line now and then.

    grpo on trl  runs/gsm8k                              step 120 of 300, 6:18 left
    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━───────────────────────────────────────────────
    reward 0.41             kl 0.0123               entropy 1.2
    length 120
    reward ▁▁▁▁▂▂▂▂▂▂▃▃▃▃▃▃▄▄▄▄▄▄▅▅▅▅▅▅▆▆▆▆▆▆▇▇▇▇▇█████  lowest 0.053, highest 0.41
    seconds a step 2.1      tokens a second 1,240   memory 3.20 GB
    GPU, peak 31.20 GB
    answer of step 119, reward 1  What is 3 + 4?
      3 + 4 = 7 ...
    health: step 80: entropy collapse (entropy_low)

The numbers are those of `metrics.jsonl`, in the moment in which they are written there. Drawing takes at most 1% of
the time: after a drawing of 3 ms comes none for 0.3 s, and never more than four a second. What models wrote is shown
without control characters, so an answer cannot move the cursor. There is no thread: in a step that takes minutes the
lines stand still. `core.screen` puts them on the terminal.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from aligntune.core.screen import Screen, drawable, encodable, size_of

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

Mode = Literal["auto", "plain", "off"]
FASTEST = 0.25
"""Seconds between two drawings at least."""
SHARE = 0.01
"""Of the time that drawing may take."""
LINE_SECONDS = 30.0
"""Seconds between two lines where nobody watches a terminal."""
WIDEST = 100
TREND = ("reward", "rewards/accuracies", "loss")
"""The first of these that is there is drawn as a curve."""
LABELS = {
    "reward": "reward",
    "rewards/accuracies": "pairs ranked right",
    "rewards/margins": "margin",
    "loss": "loss",
    "kl": "kl",
    "entropy": "entropy",
    "mean_token_accuracy": "token accuracy",
    "frac_reward_zero_std": "groups all alike",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut off",
    "fitness": "fitness",
    "grad_norm": "gradient",
    "learning_rate": "learning rate",
}
"""Metrics that are shown, in this order, with the words for them."""
MOST_REWARDS, MOST_HELD_OUT = 4, 4


@dataclass
class Seen:
    """What there is to show of one run.

    Attributes:
        title: algorithm and backend.
        folder: the run's folder.
        step: optimizer steps done; `total`: of so many (0: not known).
        values: newest value of each metric; `trend`: (name, values) of the one that is drawn as a curve.
        sample: (step, prompt, answer, reward or None) of the newest answer.
        events: newest health events.
        doing: what the run does where it does not train.
        speed: tokens a second; None where it is not known.
        here: whether it runs in this process, whose memory is shown.
    """

    title: str
    folder: str = ""
    step: int = 0
    total: int = 0
    values: dict[str, float] = field(default_factory=dict)
    trend: dict[str, deque[float]] = field(default_factory=dict)
    sample: tuple[int, str, str, float | None] | None = None
    events: list[str] = field(default_factory=list)
    doing: str = ""
    speed: float | None = None
    here: bool = True
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=50))
    _tokens: tuple[float, float] | None = None

    def at(self, step: int, total: int, now: float) -> None:
        """Take the step that was reached at a reading of a clock that only goes forward."""
        if self._marks and (step < self._marks[-1][1] or now < self._marks[-1][0]):
            self._marks.clear()
        self._marks.append((now, step))
        self.step, self.total, self.doing = step, total, ""

    def take(self, row: Mapping[str, Any], now: float) -> None:
        """Take a row of `metrics.jsonl`."""
        found = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        self.values.update(found)
        for name in TREND:
            if name in found:
                self.trend.setdefault(name, deque(maxlen=200)).append(found[name])
        tokens = found.get("num_tokens")
        if tokens is not None:
            if self._tokens is not None and tokens > self._tokens[1] and now > self._tokens[0]:
                self.speed = (tokens - self._tokens[1]) / (now - self._tokens[0])
            self._tokens = now, tokens

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds of the newest steps; None before the first."""
        if len(self._marks) < 2:
            return None
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return (ended - began) / (last - first) if last > first and ended > began else None

    @property
    def left(self) -> float | None:
        """Seconds to the end at the pace of the newest steps; None where it is not known."""
        pace = self.step_seconds
        return None if pace is None or not self.total else pace * max(self.total - self.step, 0)

    def shown(self) -> Iterator[tuple[str, float]]:
        """The metrics that are shown, as (words, value)."""
        for name, words in LABELS.items():
            if name in self.values:
                yield words, self.values[name]
        total = "rewards/total/mean"  # the reward itself
        parts = [k for k in self.values if k.startswith("rewards/") and k.endswith("/mean") and k != total]
        for name in parts[:MOST_REWARDS] if len(parts) > 1 else ():
            yield f"reward {name.split('/')[1]}", self.values[name]
        skipped = ("rows", "tokens", "seconds", "completions")
        held = [k for k in self.values if k.startswith(("eval_", "eval/")) and not any(s in k for s in skipped)]
        for name in held[:MOST_HELD_OUT]:
            yield f"held-out {name.removeprefix('eval_').removeprefix('eval/')}", self.values[name]

    def line(self) -> str:
        """Everything that matters in one line of plain text."""
        share = f" of {self.total} ({100 * self.step / self.total:.0f}%)" if self.total else ""
        left = f", {clock(self.left)} left" if self.left is not None else ""
        values = ", ".join(f"{words} {number(value)}" for words, value in self.shown())
        return f"{self.title}: step {self.step}{share}{left}" + (f": {values}" if values else "")


class Progress:
    """Shows a run to whoever watches; one object for one training loop.

    Args:
        title: what runs.
        stream: where it is shown; None takes standard error.
        mode: `auto` draws on a terminal, and elsewhere writes a line each `LINE_SECONDS`; `plain` writes a line for
            each row of the log; `off` shows nothing.
        folder: the run's folder.
    """

    def __init__(self, title: str, stream: Any = None, mode: Mode = "auto", folder: str = "") -> None:
        self.stream = stream or sys.stderr
        self.mode = mode
        self.seen = Seen(title, folder)
        self._screen: Screen | None = None
        self._live = mode == "auto" and drawable(self.stream)
        self._next = 0.0 if mode == "plain" else time.monotonic() + LINE_SECONDS
        self._again = 0.0
        self._closed = False

    # ---- what a run tells --------------------------------------------------------------------------------------

    def show(self, step: int, total: int, values: Mapping[str, float] | None = None, at: float | None = None) -> None:
        """A step is done; `at` is when, by a clock that only goes forward (None: now)."""
        self.seen.at(step, total, time.monotonic() if at is None else at)
        if values:
            self.row(values, at)
        else:
            self._draw()

    def row(self, row: Mapping[str, Any], at: float | None = None) -> None:
        """A row of the log was written; `at` is when, by the clock of `show`."""
        now = time.monotonic()
        self.seen.take(row, now if at is None else at)
        if not self._live and self.mode != "off" and now >= self._next and self.seen.step:
            self._next = now + (0.0 if self.mode == "plain" else LINE_SECONDS)
            try:
                self.stream.write(encodable(self.seen.line() + "\n", self.stream))
                self.stream.flush()
            except OSError:  # whoever read it is gone, and the run goes on
                self.mode = "off"
        self._draw()

    def sample(self, step: int, prompt: str, answer: str, reward: float | None = None) -> None:
        """An answer was sampled."""
        self.seen.sample = (step, prompt, answer, reward)
        self._draw()

    def event(self, event: str) -> None:
        """The health monitor has told something."""
        self.seen.events.append(event)
        self._draw()

    def busy(self, doing: str) -> None:
        """The run does something else than train, which may take a while."""
        self.seen.doing = doing
        self._draw(now=True)

    def close(self) -> None:
        """Clear what was drawn. Nothing is shown after it."""
        self._closed = True
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    # ---- drawing -------------------------------------------------------------------------------------------------

    def _draw(self, now: bool = False) -> None:
        if not self._live or self._closed or (time.monotonic() < self._again and not now):
            return
        if self._screen is None:
            import_module("aligntune.core.live_frame").load()
            self._screen = Screen(self.stream)
            self._screen.open()
        began = time.monotonic()
        lines, widths = frame(self.seen, self.stream)
        self._screen.draw(lines, widths)
        self._live = not self._screen.gone
        ended = time.monotonic()
        self._again = ended + max(FASTEST, (ended - began) / SHARE)


def progress_of(trainer: Trainer) -> Progress:
    """What shows one training loop of a run, as `logging.display` says; the first of several processes shows it."""
    config = trainer.config
    leads = trainer._run is None or getattr(trainer._run, "leads", True)
    mode = config.logging.display if leads else "off"
    return Progress(f"{config.algorithm.key} on {config.backend}", mode=mode, folder=str(config.output_dir))


def frame(seen: Seen, stream: Any) -> tuple[list[str], list[int]]:
    """The lines to draw, with the control sequences of colours, and the cells that each takes."""
    from aligntune.core.live_frame import paint

    columns, height = size_of(stream)
    return paint(seen, stream, width=max(min(columns - 1, WIDEST), 8), height=max(height - 1, 1))


def clock(seconds: float | None) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float) -> str:
    """Three digits that count; whole numbers as they are."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"
