"""`aligntune rewards score`: scores of the texts in a file, or of standard input, as they come."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared
from aligntune.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    from aligntune.rewards.composite import BatchScores, CompositeReward

TEXT = ("completion", "text", "response", "output")
"""Columns in which the text of a row is looked for, in this order."""
CHUNK = 64
"""Rows scored together: enough for a model's batch, few enough to see results come."""
Row = tuple[int, dict[str, Any]]


@click.command("score", short_help="Score a file of texts.")
@click.argument("file")
@click.option("--reward", metavar="NAME", help="The reward, or file.py:function.")
@click.option("--param", metavar="KEY=VALUE", multiple=True, help="Parameter of --reward; may be given again.")
@click.option("--rewards", "listed", metavar="YAML", help="In place of --reward: a list of rewards.")
@click.option("--text", "column", metavar="COLUMN", help="Column of the text; completion, text, response or output.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["txt", "jsonl", "csv"]),
    help="What FILE holds; its ending says it if left out (standard input: txt).",
)
@click.option("--jsonl", is_flag=True, help="Print one JSON object for each row, with the row's own columns.")
@shared
def command(
    settings: Settings,
    file: str,
    reward: str | None,
    param: tuple[str, ...],
    listed: str | None,
    column: str | None,
    kind: str | None,
    jsonl: bool,
) -> Output:
    """Score the texts of FILE (`-` for standard input): a text file with one text in each line, JSON lines or CSV with
    a column of texts and the columns that the reward reads. Prints the score and the beginning of each text as they
    come; a row that cannot be read or scored stops the command with its file and line.
    """
    if settings.json and jsonl:
        raise ConfigurationError("--json and --jsonl are two outputs", hint="--jsonl streams; --json is one document")
    rewards = _rewards(reward, param, listed)
    where = "standard input" if file == "-" else file
    kept: list[dict[str, Any]] = []
    stats: Counter[str] = Counter()
    with _open(file) as stream:
        rows = _read(stream, kind or _kind(file), where)
        while chunk := list(itertools.islice(rows, CHUNK)):
            scores = _score(rewards, chunk, column, where)
            stats.update(scores.stats)
            for i, (line, row) in enumerate(chunk):
                found: dict[str, Any] = {"line": line, "score": scores.total[i]}
                if len(rewards.components) > 1:
                    found["components"] = {name: values[i] for name, values in scores.components.items()}
                if settings.json:
                    kept.append(found)
                elif jsonl:
                    click.echo(json.dumps({**row, **found}, ensure_ascii=False))
                else:
                    click.echo(f"{_number(scores.total[i])}\t{_beginning(row[_column(row, column, where, line)])}")
    if not stats["rows"]:
        raise ValidationError(f"{where} holds no rows", hint="give at least one text")
    values = [row["score"] for row in kept if row["score"] is not None]
    counts = {name: n for name, n in stats.items() if n}
    summary = {"rows": stats["rows"], "mean": sum(values) / len(values) if values else None, "counts": counts}
    return Output({**summary, "scores": kept}, "")


def _rewards(name: str | None, given: tuple[str, ...], listed: str | None) -> CompositeReward:
    from aligntune.cli.rewards_test import parameters
    from aligntune.core.config.reading import parse_yaml
    from aligntune.rewards.audit.lists import of_values, read_reward_list

    if (name is None) == (listed is None):
        raise ConfigurationError(
            "give --reward NAME or --rewards YAML, one of the two", hint="`aligntune rewards list` shows the names"
        )
    if listed is not None:
        if given:
            raise ConfigurationError("--param belongs to --reward", hint="write params: {...} in the file")
        return read_reward_list(listed).build()
    return of_values({"rewards": [{"type": name, "params": parameters(given, parse_yaml)}]}, "--reward").build()


@contextlib.contextmanager
def _open(file: str) -> Iterator[IO[str]]:
    if file == "-":
        yield sys.stdin
        return
    path = Path(file)
    if not path.is_file():
        raise ConfigurationError(f"there is no file {file}", hint="give a .txt, .jsonl or .csv file, or - for input")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield stream


def _kind(file: str) -> str:
    ending = Path(file).suffix.lower().removeprefix(".")
    return {"jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv"}.get(ending, "txt")


def _read(stream: Iterable[str], kind: str, where: str) -> Iterator[Row]:
    """(line, row) of each row; a fault names its line."""
    try:
        if kind == "csv":
            reader = csv.DictReader(stream)
            for row in reader:
                if None in row or None in row.values():
                    raise ValidationError(
                        f"{where}:{reader.line_num}: another number of cells than the header has",
                        hint="put cells that hold a comma into double quotes",
                    )
                yield reader.line_num, dict(row)
            return
        for line, text in enumerate(stream, 1):
            if kind == "txt":
                yield line, {"text": text.rstrip("\r\n")}
            elif text.strip():
                yield line, _object(text, f"{where}:{line}")
    except UnicodeDecodeError as e:
        raise ValidationError(f"{where} is not UTF-8 text: {e.reason} at byte {e.start}", hint="convert it") from e
    except csv.Error as e:
        raise ValidationError(f"{where}: {e}", hint="save it as CSV with one header line") from e


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as e:
        raise ValidationError(f"{place}: not JSON ({e})", hint="each line is one JSON object") from e
    if not isinstance(row, dict):
        raise ValidationError(
            f"{place}: a {type(row).__name__}, not a JSON object", hint="each line is one JSON object"
        )
    return row


def _column(row: dict[str, Any], given: str | None, where: str, line: int) -> str:
    """The column of a row's text."""
    name = given or next((n for n in TEXT if n in row), None)
    if name is None or not isinstance(row.get(name), str):
        wanted = f"'{given}'" if given else ", ".join(TEXT)
        raise ValidationError(
            f"{where}:{line}: no text in the column {wanted}", hint=f"columns: {', '.join(row)}; choose one with --text"
        )
    return name


def _score(rewards: CompositeReward, chunk: list[Row], column: str | None, where: str) -> BatchScores:
    from aligntune.errors import RewardError
    from aligntune.rewards.audit.lists import columns_of

    names = [_column(row, column, where, line) for line, row in chunk]
    texts = [row[name] for name, (_, row) in zip(names, chunk, strict=True)]
    columns = columns_of([{k: v for k, v in row.items() if k not in names} for _, row in chunk])
    try:
        return rewards.score_batch(texts, columns)
    except RewardError as e:
        row = e.context.get("row")
        place = f"{where}:{chunk[row][0]}: " if isinstance(row, int) and row < len(chunk) else f"{where}: "
        raise RewardError(place + e.message, hint=e.hint, context=e.context) from e


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:.6g}"


def _beginning(text: str, limit: int = 80) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
