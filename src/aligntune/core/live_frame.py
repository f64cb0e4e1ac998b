"""The lines of the live view, from what there is to show: words, numbers, a bar and a curve, with rich's colours.

>>> lines, widths = paint(Seen("sft on trl", step=3, total=10), sys.stderr, width=80, height=20)

On a stream that is not Unicode the bar and the curve are made of ASCII characters. Colours are left out where the
terminal has none or `NO_COLOR` is set (https://no-color.org).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from aligntune.core.live import Seen

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = ".:-=+*#@"
CELL = 24
"""Columns of one number with its words."""
MOST = 2000
"""Characters of a text that are looked at."""


def load() -> None:
    """Import what drawing needs, so that the first drawing takes no longer than the others."""
    import rich.console
    import rich.text  # noqa: F401


def paint(seen: Seen, stream: Any, *, width: int, height: int) -> tuple[list[str], list[int]]:
    """The lines, and the cells that each takes.

    Args:
        seen: what there is to show.
        stream: the terminal, asked for its encoding and colours.
        width: most cells of a line.
        height: most lines; the last ones are left out.
    """
    from rich.console import Console

    asked = Console(file=stream)
    unicode = (asked.encoding or "").lower().startswith("utf")
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        color_system=asked.color_system or None,  # type: ignore[arg-type]
        no_color=asked.no_color,
        legacy_windows=False,
        highlight=False,
    )
    texts = _texts(seen, width, unicode)[:height]
    lines = []
    for text in texts:
        text.truncate(width, overflow="ellipsis" if unicode else "crop")
        with console.capture() as captured:
            console.print(text, end="", soft_wrap=True)
        lines.append(captured.get())
    return lines, [text.cell_len for text in texts]


def _texts(seen: Seen, width: int, unicode: bool) -> list[Text]:
    """Each line as rich text, not yet cut to the width."""
    texts = [_head(seen, width), _bar(seen, width, unicode)]
    texts += _cells(_metrics(seen), width)
    texts += _trend(seen, width, unicode)
    texts += _cells(_figures(seen), width)
    texts += _answer(seen, width)
    return texts + _health(seen)


def _head(seen: Seen, width: int) -> Text:
    from rich.text import Text

    from aligntune.core.live import clock

    left = Text(printable(seen.title), style="bold")
    if seen.doing:
        told = printable(seen.doing)
    elif seen.total:
        told = f"step {seen.step} of {seen.total}" + (f", {clock(seen.left)} left" if seen.left is not None else "")
    else:
        told = f"step {seen.step}"
    room = width - left.cell_len - len(told) - 4
    folder = printable(seen.folder)
    if folder and room > 8:
        left.append(f"  {folder if len(folder) <= room else '..' + folder[2 - room :]}", style="dim")
    return left.append(" " * max(width - left.cell_len - len(told), 2)).append(told, style="cyan")


def _bar(seen: Seen, width: int, unicode: bool) -> Text:
    from rich.text import Text

    full, empty = ("━", "─") if unicode else ("#", "-")
    done = round(width * min(seen.step / seen.total, 1.0)) if seen.total else 0
    return Text().append(full * done, style="green").append(empty * (width - done), style="dim")


def _metrics(seen: Seen) -> list[tuple[str, str]]:
    from aligntune.core.live import number

    return [(printable(words), number(value)) for words, value in seen.shown()]


def _figures(seen: Seen) -> list[tuple[str, str]]:
    """Pace and memory."""
    from aligntune.utils.device import peak_gpu_bytes, rss_bytes

    pace, found = seen.step_seconds, []
    if pace is not None:
        found.append(("seconds a step", f"{pace:.2g}"))
    if seen.speed is not None:
        found.append(("tokens a second", f"{seen.speed:,.0f}"))
    if not seen.here:
        return found
    found.append(("memory", f"{rss_bytes() / 1e9:.2f} GB"))
    gpu = peak_gpu_bytes()
    if gpu:
        found.append(("GPU, peak", f"{gpu / 1e9:.2f} GB"))
    return found


def _cells(pairs: Sequence[tuple[str, str]], width: int) -> list[Text]:
    """Words and values in columns; a wide one takes two places."""
    from rich.text import Text

    lines: list[Text] = []
    for words, value in pairs:
        size = len(words) + len(value) + 4
        taken = CELL * -(-size // CELL)
        if not lines or lines[-1].cell_len + size - 2 > width:
            lines.append(Text())
        lines[-1].append(f"{words} ", style="dim").append(value, style="bold")
        lines[-1].append(" " * (taken - len(words) - len(value) - 1))
    for line in lines:
        line.rstrip()
    return lines


def _trend(seen: Seen, width: int, unicode: bool) -> list[Text]:
    """A curve of the metric that matters most, once there are four values."""
    from rich.text import Text

    from aligntune.core.live import TREND, number

    name = next((n for n in TREND if n in seen.trend), None)
    if name is None or len(seen.trend[name]) < 4:
        return []
    values = list(seen.trend[name])
    ends = f"  lowest {number(min(values))}, highest {number(max(values))}"
    room = max(min(width - len(name) - 1 - len(ends), 60), 8)
    text = Text().append(f"{name} ", style="dim").append(curve(values, room, unicode), style="cyan")
    return [text.append(ends, style="dim")]


def curve(values: Sequence[float], room: int, unicode: bool = True) -> str:
    """Values as a row of blocks of eight heights; more values than there is room for are averaged."""
    blocks = BLOCKS if unicode else PLAIN_BLOCKS
    count = min(room, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    spread = high - low or 1.0
    return "".join(blocks[min(int(8 * (mean - low) / spread), 7)] for mean in means)


def _answer(seen: Seen, width: int) -> list[Text]:
    from rich.text import Text

    from aligntune.core.live import number

    if seen.sample is None:
        return []
    step, prompt, answer, reward = seen.sample
    told = f"answer of step {step}" + (f", reward {number(reward)}" if reward is not None else "")
    asked = printable(prompt[-MOST:])
    head = Text().append(told, style="dim").append("  ")
    head.append(_end(asked, width - len(told) - 2), style="italic")
    return [head, Text().append("  ").append(printable(answer))]


def _end(text: str, room: int) -> str:
    """The end of a text, where prompts have their question."""
    return text if len(text) <= room else f"..{text[len(text) - max(room - 2, 0) :]}"


def _health(seen: Seen) -> list[Text]:
    from rich.text import Text

    if not seen.events:
        return []
    count = f"{len(seen.events)} health events, the last: " if len(seen.events) > 1 else "health: "
    return [Text().append(count + printable(seen.events[-1]), style="yellow")]


def printable(text: str) -> str:
    """One line without control characters, whatever a model wrote."""
    shown = "".join(c if c.isprintable() else " " for c in text[:MOST])
    return re.sub(r" {2,}", " ", shown).strip()
