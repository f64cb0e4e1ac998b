"""`aligntune data`: look into a source, split it, list the presets, and look after the data cache.

    aligntune data inspect banking.csv
    aligntune data split banking.csv --by category --test 0.1 --stratify --out parts
    aligntune data cache list

A SOURCE is what `dataset.name` takes: a file, a folder, an http(s) address or a hub id, with settings as KEY=VALUE
(`split=test`, `read.delimiter=;`, `preset=gsm8k`). Each file `data_<name>.py` adds one command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Family, Output, Settings, shared, table
from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.core.config import DatasetConfig


@click.group("data", cls=Family, short_help="Look into data, split them, look after their cache.")
def command() -> None:
    """Look into data, split them, and look after what is kept of them."""


@command.command("inspect", short_help="Show what a source holds.")
@click.argument("source")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--examples", type=click.IntRange(0), default=2, help="How many first rows to show.  [default: 2]")
@shared
def inspect(settings: Settings, source: str, overrides: tuple[str, ...], examples: int) -> Output:
    """Show rows, columns, types, lengths, classes, and the formats that SOURCE would be read as."""
    from aligntune.data import inspect_source

    found = inspect_source(_source(source, overrides), examples=examples)
    return Output(found, _described(found))


@command.command("split", short_help="Write training and test rows of a source.")
@click.argument("source")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", required=True, metavar="DIR", help="Folder for train.jsonl, test.jsonl and split.json.")
@click.option("--test", type=float, default=0.1, help="Share of the rows to hold out, or their number.  [default: 0.1]")
@click.option("--by", metavar="COLUMN", help="The column of the classes.")
@click.option("--group", metavar="COLUMN", help="Rows with one value of this column stay in one part.")
@click.option("--stratify", is_flag=True, help="Hold out each class in proportion.")
@click.option("--balance", is_flag=True, help="Leave out training rows until every class has as many as the smallest.")
@click.option("--seed", type=int, default=42, help="Seed of the draw.  [default: 42]")
@shared
def split(
    settings: Settings,
    source: str,
    overrides: tuple[str, ...],
    out: str,
    test: float,
    by: str | None,
    group: str | None,
    stratify: bool,
    balance: bool,
    seed: int,
) -> Output:
    """Split SOURCE into training and test rows, each as it is in the source, and count the classes of both."""
    from aligntune.data.splits import write_split

    if by is None and (stratify or balance):
        raise ConfigurationError(
            f"--{'stratify' if stratify else 'balance'} needs the column of the classes", hint="add --by COLUMN"
        )
    how: dict[str, Any] = {"by": by, "group": group, "stratify": stratify, "balance": balance}
    report = write_split(_source(source, overrides), out, test=test, seed=seed, **how)
    lines = [
        f"{part}: {report['parts'][part]['rows']} rows, {report['parts'][part]['file']}" for part in report["parts"]
    ]
    if report["classes"]:
        heads = ["label", "rows", "train", "test", "left_out"]
        lines += ["", table([[row[head] for head in heads] for row in report["classes"]], heads)]
    return Output(report, "\n".join([*report["notes"], *lines]))


@command.command("presets", short_help="List the known data sets.")
@shared
def presets(settings: Settings) -> Output:
    """List the presets with their formats, the columns that they map, and the hub ids that they apply to."""
    from dataclasses import asdict

    from aligntune.data import PRESETS

    rows = [
        [name, p.format, ", ".join(f"{k}: {v}" for k, v in p.column_mapping.items()), ", ".join(p.hub_ids)]
        for name, p in sorted(PRESETS.items())
    ]
    heads = ["preset", "format", "columns", "hub ids"]
    return Output({name: asdict(p) for name, p in PRESETS.items()}, table(rows, heads))


@command.group("cache", cls=Family, short_help="List or clear prepared data.")
def cache() -> None:
    """What is kept of prepared data, so that a second run need not prepare them again."""


@cache.command("list", short_help="List the entries.")
@click.option("--dir", "folder", metavar="DIR", help="The cache's folder (cache.dir), where it is not the usual one.")
@shared
def list_cache(settings: Settings, folder: str | None) -> Output:
    """List the entries of the data cache, the last used first."""
    from aligntune.data import DatasetCache

    kept = DatasetCache(folder)
    entries = kept.list()
    rows = [[e["key"][:12], e["rows"], f"{e['bytes'] / 1e6:.1f} MB", e["used"], e["source"]] for e in entries]
    total = sum(e["bytes"] for e in entries)
    text = f"{kept.entries}: {len(entries)} entries, {total / 1e6:.1f} MB"
    return Output(
        {"folder": str(kept.entries), "bytes": total, "entries": entries},
        "\n\n".join([text, *([table(rows, ["key", "rows", "size", "last used", "source"])] if rows else [])]),
    )


@cache.command("clear", short_help="Remove entries.")
@click.argument("key", required=False)
@click.option("--dir", "folder", metavar="DIR", help="The cache's folder (cache.dir), where it is not the usual one.")
@shared
def clear_cache(settings: Settings, key: str | None, folder: str | None) -> Output:
    """Remove the entry whose key begins with KEY, or without KEY all entries, downloads and rows from memory."""
    from aligntune.data.cache import DatasetCache, check_key

    gone = DatasetCache(folder).clear(None if key is None else check_key(key))
    return Output({"removed": gone}, f"removed {len(gone)} entries")


def _source(name: str, overrides: tuple[str, ...]) -> DatasetConfig:
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.reading import apply_overrides
    from aligntune.core.config.sections import DatasetConfig

    for item in overrides:
        if "=" not in item:
            raise ConfigurationError(f"'{item}' is not a setting", hint="write key=value, such as split=test")
    return parse_section(DatasetConfig, apply_overrides({"name": name}, list(overrides)), "SOURCE")


def _described(found: dict[str, Any]) -> str:
    lines = [f"{found['source']}: {found['rows']} rows, {len(found['columns'])} columns"]
    lines += [f"- {note}" for note in found["notes"]]
    lines += [f"- cannot be read: {row['place']}: {row['reason']}" for row in found["skipped"][:5]]
    heads = ["column", "type", "empty", "distinct", "shortest", "median", "longest"]
    rows = [
        [c["name"], ", ".join(c["types"]) or "nothing", c["empty"], c["distinct"], *(c.get(h, "") for h in heads[4:])]
        for c in found["columns"]
    ]
    lines += ["", table(rows, heads), "", "can be read as"]
    fits = [[schema, f["format"], f["note"]] for schema, f in found["formats"].items() if f["format"]]
    lines.append(table(fits, ["rows of", "format", "columns"]) if fits else "nothing: map columns with column_mapping")
    for column, counts in found["classes"].items():
        shown = ", ".join(f"{label} {n}" for label, n in list(counts.items())[:8])
        lines.append(f"\nclasses of '{column}' ({len(counts)}): {shown}{' ...' if len(counts) > 8 else ''}")
    for number, row in enumerate(found["examples"], start=1):
        lines += [f"\nrow {number}", *(f"  {name}: {value}" for name, value in row.items())]
    return "\n".join(lines)
