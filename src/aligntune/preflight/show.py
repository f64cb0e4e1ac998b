"""A report as a terminal shows it: verdicts by group, wrapped to the width, and rows token by token in colour.

Colour says what is in the loss: green tokens are trained, grey ones are read only, special tokens stand in yellow
(trained) or magenta. Neighbouring tokens differ in brightness, so that their borders can be seen. Without colour the
trained parts stand between `[+` and `+]`.

>>> print(render(report, width=80, color=False))
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

from aligntune.preflight.trained import TrainedRow
from aligntune.preflight.verdict import GROUPS, Report, Verdict

COLORS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "bright_black"}
MOST_TOKENS = 240
"""Longer rows are shown by their first and last tokens."""


def render(
    report: Report, *, width: int = 80, color: bool = False, symbols: bool = True, special: Sequence[str] = (),
    settings: bool = False,
) -> str:  # fmt: skip
    """The report as text.

    Args:
        width: columns of the terminal.
        color: whether to colour.
        symbols: whether the terminal shows more than ASCII.
        special: the tokenizer's special tokens, which are shown apart.
        settings: whether to list every value with its source.
    """
    width = max(width, 60)
    parts: list[str] = []
    if settings:
        parts.append(_settings(report, color))
    for group, title in GROUPS.items():
        verdicts = [v for v in report.verdicts if v.group == group]
        shown = report.rows if group == "rows" else []
        if not verdicts and not shown:
            continue
        lines = [_style(title, color, bold=True)]
        for verdict in verdicts:
            lines += _verdict(verdict, width, color)
        for row in shown:
            lines += ["", *_row(row, width, color, symbols, set(special))]
        if shown:
            lines += ["", *_legend(width, color)]
        parts.append("\n".join(lines))
    parts.append(_summary(report, color))
    return "\n\n".join(parts)


def _style(text: str, color: bool, **how: Any) -> str:
    return click.style(text, **how) if color else text


def _verdict(verdict: Verdict, width: int, color: bool) -> list[str]:
    name_width = 18
    indent = " " * (8 + name_width)
    label = _style(f"{verdict.status:<4}", color, fg=COLORS[verdict.status], bold=verdict.status == "fail")
    room = max(width - len(indent), 20)
    first, *rest = textwrap.wrap(verdict.reason, room, break_on_hyphens=False) or [""]
    lines = [f"  {label}  {verdict.name:<{name_width}}{first}", *(indent + line for line in rest)]
    said = list(verdict.evidence)
    if verdict.status == "pass" and verdict.group not in ("batch", "memory"):
        said = said[:3]
    for line in said:
        wrapped = textwrap.wrap(line, room - 2, break_on_hyphens=False, break_long_words=True)
        lines += [_style(indent + ("- " if k == 0 else "  ") + part, color, dim=True) for k, part in enumerate(wrapped)]
    if verdict.fix and verdict.status in ("warn", "fail"):
        wrapped = textwrap.wrap(f"fix: {verdict.fix}", room, break_on_hyphens=False, subsequent_indent="     ")
        lines += [_style(indent + part, color, fg="cyan") for part in wrapped]
    return lines


def _settings(report: Report, color: bool) -> str:
    wide = max((len(row["key"]) for row in report.settings), default=0)
    lines = [_style("Settings", color, bold=True)]
    for row in report.settings:
        given = not row["source"].startswith("default")
        value = str(row["value"])
        value = value if len(value) <= 40 else value[:37] + "..."
        line = f"  {row['key']:<{wide}}  {value}  <- {row['source']}"
        lines.append(_style(line, color, dim=not given))
    return "\n".join(lines)


def _row(row: TrainedRow, width: int, color: bool, symbols: bool, special: set[str]) -> Iterator[str]:
    part = "" if row.part == "row" else f", {row.part}"
    note = f"; {row.note}" if row.note else ""
    title = f"  row {row.row + 1}{part}: {len(row.ids)} tokens, {sum(row.trained)} in the loss{note}"
    yield from textwrap.wrap(title, width, subsequent_indent="    ", initial_indent="  ")
    yield from _wrapped(list(_pieces(row, special, color, symbols)), width - 4)


def _pieces(row: TrainedRow, special: set[str], color: bool, symbols: bool) -> Iterator[tuple[str, str]]:
    """Each token as (plain text, styled text); a line break follows what ends in a newline."""
    on = False
    skipped = len(row.tokens) - MOST_TOKENS
    for i, (token, trained) in enumerate(zip(row.tokens, row.trained, strict=True)):
        if skipped > 0 and MOST_TOKENS // 2 <= i < MOST_TOKENS // 2 + skipped:
            if i == MOST_TOKENS // 2:
                yield (f" ... {skipped} tokens ... ",) * 2
            continue
        text = visible(token, symbols)
        if not color:
            mark = ("[+" if trained else "+]") if trained != on else ""
            on = trained
            text = mark + text
            yield text, text
            continue
        if token in special:
            yield text, click.style(text, fg="yellow" if trained else "magenta", bold=True)
        elif trained:
            yield text, click.style(text, fg="green" if i % 2 else "bright_green")
        else:
            yield text, click.style(text, fg="bright_black" if i % 2 else "white", dim=bool(i % 2))
    if on:
        yield "+]", "+]"


def visible(token: str, symbols: bool) -> str:
    """A token with line breaks and tabs as signs, a break kept, and control characters spelled out."""
    sign, tab = ("⏎", "→") if symbols else ("\\n", "\\t")
    text = token if symbols else token.encode("ascii", "backslashreplace").decode()
    kept = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
    return kept.replace("\t", tab).replace("\n", f"{sign}\n")


def _wrapped(pieces: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Tokens in lines of `width` columns; a token is broken only where it is longer than a line or holds a break."""
    line, used = "", 0
    for plain, styled in pieces:
        chunks = plain.split("\n")
        for k, chunk in enumerate(chunks):
            if used and used + len(chunk) > width:
                yield "    " + line
                line, used = "", 0
            line += styled if len(chunks) == 1 else _like(styled, plain, chunk)
            used += len(chunk)
            if k < len(chunks) - 1:
                yield "    " + line
                line, used = "", 0
    if line:
        yield "    " + line


def _like(styled: str, plain: str, chunk: str) -> str:
    """A part of a token in the token's style."""
    return styled.replace(plain, chunk) if chunk else ""


def _legend(width: int, color: bool) -> list[str]:
    if not color:
        return textwrap.wrap("[+ tokens between these marks +] are in the loss; the others are only read.", width,
                             initial_indent="  ", subsequent_indent="  ")  # fmt: skip
    return [
        "  "
        + ", ".join(
            [
                click.style("in the loss", fg="bright_green"),
                click.style("only read", fg="bright_black"),
                click.style("special, trained", fg="yellow", bold=True),
                click.style("special, read", fg="magenta", bold=True),
            ]
        )
    ]


def _summary(report: Report, color: bool) -> str:
    counts = {status: len(report.with_status(status)) for status in ("fail", "warn", "pass", "skip")}  # type: ignore[arg-type]
    words = {"fail": "failed", "warn": "warnings", "pass": "passed", "skip": "not looked at"}
    said = ", ".join(
        _style(f"{n} {words[s] if not (s == 'warn' and n == 1) else 'warning'}", color, fg=COLORS[s])
        for s, n in counts.items()
        if n
    )
    failed = ", ".join(v.name for v in report.with_status("fail"))
    return said + (f"\n{_style('failed:', color, fg='red', bold=True)} {failed}" if failed else "")
