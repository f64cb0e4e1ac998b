"""The lower lines of a terminal that are drawn again and again, while what is printed goes above them.

>>> screen = Screen(sys.stderr)
>>> screen.open()
>>> screen.draw(["step 1 of 3"])
>>> print("a warning", file=sys.stderr)      # appears above, and the line stays the last one
>>> screen.close()                           # the lines are gone, the terminal is as it was

Only three control sequences are used: to the line's beginning, up, and clear below (ECMA-48: CR, CUU, ED). The cursor
is never hidden and no mode is set, so a process that is killed leaves nothing to put back. Lines are counted by the
width that the terminal has now, so a window that was made narrower, and has broken them, is cleared all the same. What
C code or another process writes to the terminal passes by.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any


class Screen:
    """Some lines at the bottom of a terminal.

    Args:
        stream: the terminal; its encoding decides what can be shown.

    Attributes:
        gone: the terminal takes nothing any more, as after a connection that was cut; nothing is written to it then.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._lines: list[str] = []
        self._widths: list[int] = []
        self._waiting: list[str] = []
        self._writing = False
        self._proxies: dict[str, _Above] = {}
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._pid = os.getpid()
        self.gone = False

    def open(self) -> None:
        """Send what is printed to a terminal, and what is logged, above the lines from now on."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is self.stream or (stream is not None and stream.isatty()):
                self._proxies[name] = _Above(self, stream)
                for handler in _handlers(stream):
                    self._handlers.append((handler, stream))
                    handler.setStream(self._proxies[name])
                setattr(sys, name, self._proxies[name])

    def close(self) -> None:
        """Clear the lines and put standard output, standard error and the log's handlers back."""
        for handler, stream in self._handlers:
            handler.setStream(stream)
        for name, proxy in self._proxies.items():
            if getattr(sys, name) is proxy:
                setattr(sys, name, proxy.stream)
            proxy.finish()
        self._handlers, self._proxies = [], {}
        self.draw([])

    def draw(self, lines: Sequence[str], widths: Sequence[int] | None = None) -> None:
        """Put `lines` in the place of those before.

        Args:
            lines: without line ends; at most one less than the terminal has.
            widths: cells that each takes; None counts characters.
        """
        self._lines, before = list(lines), self._widths
        self._widths = [len(line) for line in lines] if widths is None else list(widths)
        self._write("", before)

    def above(self, text: str) -> None:
        """Print whole lines above."""
        if os.getpid() != self._pid:  # a forked child, which knows nothing of the lines
            self.stream.write(text)
        else:
            self._write(text, self._widths)

    def _write(self, text: str, before: Sequence[int]) -> None:
        if self._writing:  # a signal's handler prints while we write, which Python's streams do not allow
            self._waiting.append(text)
            return
        self._writing = True
        try:
            while True:
                columns = max(width_of(self.stream), 1)
                rows = sum(max(1, -(-width // columns)) for width in before)
                up = f"\x1b[{rows}A" if rows else ""
                shown = "".join(f"{line}\n" for line in self._lines)
                if (rows or text or shown) and not self.gone:
                    self._put(f"\r{up}\x1b[J{text}{shown}")
                if not self._waiting:
                    return
                text, self._waiting, before = "".join(self._waiting), [], self._widths
        finally:
            self._writing = False

    def _put(self, text: str) -> None:
        try:
            self.stream.write(encodable(text, self.stream))
            self.stream.flush()
        except OSError:
            self.gone = True


class _Above(io.TextIOBase):
    """Stands for standard output or error, and hands whole lines to the screen."""

    def __init__(self, screen: Screen, stream: Any) -> None:
        self.screen, self.stream, self._part = screen, stream, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self.stream.encoding)

    @property
    def buffer(self) -> Any:
        """Where bytes are written, which pass the lines by."""
        return self.stream.buffer

    def write(self, text: str) -> int:
        whole, end, self._part = (self._part + text).rpartition("\n")
        self._part = self._part.rpartition("\r")[2]  # a bar that draws itself over: only its last state counts
        if end:
            self.screen.above(whole + end)
        return len(text)

    def finish(self) -> None:
        """Print a last line that had no end."""
        if self._part:
            self.screen.above(f"{self._part}\n")
            self._part = ""

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def flush(self) -> None:
        """Nothing: whole lines are written at once."""

    def writable(self) -> bool:
        return True


def _handlers(stream: Any) -> Iterator[logging.StreamHandler[Any]]:
    """All handlers of all loggers that write to a stream."""
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in known:
        for handler in getattr(logger, "handlers", ()):
            own = vars(handler).get("stream")  # a handler that asks `sys.stderr` at each record has none
            if isinstance(handler, logging.StreamHandler) and own is stream:
                yield handler


def width_of(stream: Any) -> int:
    """Columns of a terminal now; 80 where it does not tell."""
    return size_of(stream)[0]


def size_of(stream: Any) -> tuple[int, int]:
    """Columns and lines of a terminal now; 80 and 24 where it does not tell."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # no terminal, or a stream without a file
        return 80, 24
    return found.columns or 80, found.lines or 24


def encodable(text: str, stream: Any) -> str:
    """The text with a question mark for each character that the stream cannot show."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def drawable(stream: Any) -> bool:
    """Whether lines can be drawn over on this stream: a terminal that knows control sequences."""
    if not stream.isatty() or os.environ.get("TERM", "") in ("dumb", "unknown"):
        return False
    if os.name != "nt":
        return True
    from rich.console import Console

    return not Console(file=stream).legacy_windows
