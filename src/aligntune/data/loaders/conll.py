"""CoNLL files: one token a line with its columns, sentences apart by blank lines.

Two columns are the token and its tag. Of more columns the last is the tag (CoNLL-2003: token, part of speech, chunk,
entity), and those between are kept as `column_2`, `column_3` ...: `column_mapping: {tags: column_2}` takes another.
`.conllu` has the ten columns of CoNLL-U (universaldependencies.org/format.html) under their names; `tokens` is FORM and
`tags` is UPOS; comments, ranges of multiword tokens (`1-2`) and empty nodes (`1.1`) are left out.

>>> CoNLLLoader().load("wnut17train.conll")[0]
{'tokens': ['@paulwalk', 'It', ...], 'tags': ['O', 'O', ...]}

Columns are apart by tabs where the file has any, else by spaces. A blank line may hold spaces or tabs. `-DOCSTART-`
lines begin documents and are left out. A line with `#` in front and another number of columns is a comment. Files
without tags are not handled, and a fault in a line is one of the file: `on_bad_row: skip` cannot tell where its
sentence ends.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from aligntune.core.config import ReadConfig
from aligntune.data.loaders.base import TEXT_KEYS, FileLoader, Placed, decode, read_bytes
from aligntune.data.rows import BadRows, Rows
from aligntune.errors import ValidationError

CONLLU = ("id", "tokens", "lemma", "tags", "xpos", "feats", "head", "deprel", "deps", "misc")
DOCUMENT = "-DOCSTART-"


class CoNLLLoader(FileLoader):
    """Reads `.conll`, `.conllu`, `.iob`, `.iob2` and `.bio`, each also with `.gz` after it."""

    suffixes: ClassVar[tuple[str, ...]] = (".conll", ".conllu", ".iob", ".iob2", ".bio")

    options: ClassVar[tuple[str, ...]] = TEXT_KEYS

    def iterate(self, path: Path, read: ReadConfig, bad: BadRows) -> Placed:
        rows = self.read_file(path, read, bad)
        yield from zip(rows.places or [], rows.rows, strict=True)

    def read_file(self, path: Path, read: ReadConfig | None = None, bad: BadRows | None = None) -> Rows:
        text = decode(path, read_bytes(path), (read or ReadConfig()).encoding)
        lines = [line.rstrip("\r") for line in text.split("\n")]
        universal = path.name.lower().removesuffix(".gz").endswith(".conllu")
        tab = "\t" if any("\t" in line for line in lines if line.strip()) else None
        names = list(CONLLU) if universal else None
        rows: list[dict[str, list[str]]] = []
        places: list[str] = []
        start, comments, begun = 0, 0, False
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                begun = False
                continue
            cells = _cells(line, tab)
            if line.startswith("#") and (universal or (len(cells) != len(names or ()) and _is_comment(line, cells))):
                comments += 1
                continue
            if cells[0] == DOCUMENT:
                begun = False
                continue
            if names is None:
                names, start = _names(path, number, cells), number
            if len(cells) != len(names):
                raise _unequal(path, number, len(cells), len(names), "CoNLL-U" if universal else f"line {start}")
            if universal and not cells[0].isdigit():
                continue
            _check(path, number, cells, names)
            if not begun:
                rows.append({name: [] for name in names})
                places.append(f"{path.name}:{number}")
                begun = True
            for name, cell in zip(names, cells, strict=True):
                rows[-1][name].append(cell)
        notes = [f"{path.name}: left out {comments} comment lines."] if comments else []
        return Rows(list(rows), source=path.name, places=places, notes=notes)


def _cells(line: str, tab: str | None) -> list[str]:
    """The line's columns. A tab at the end of a line is no empty column."""
    return [cell.strip() for cell in line.rstrip().split(tab)] if tab else re.split(" +", line.strip())


def _is_comment(line: str, cells: list[str]) -> bool:
    return line.startswith("# ") or len(cells) == 1


def _names(path: Path, number: int, cells: list[str]) -> list[str]:
    if len(cells) < 2:
        raise ValidationError(
            f"{path}:{number}: one column ('{cells[0]}'), and a token needs a tag after it",
            hint="write `token<tab>tag` on each line",
            context={"path": str(path), "line": number},
        )
    return ["tokens", *[f"column_{i}" for i in range(2, len(cells))], "tags"]


def _unequal(path: Path, number: int, found: int, wanted: int, where: str) -> ValidationError:
    return ValidationError(
        f"{path}:{number}: {found} column{'s' * (found != 1)}, {where} has {wanted}",
        hint="mend this line; every line has the same columns, and a blank line ends a sentence",
        context={"path": str(path), "line": number},
    )


def _check(path: Path, number: int, cells: list[str], names: list[str]) -> None:
    for name in ("tokens", "tags"):
        if not cells[names.index(name)]:
            raise ValidationError(
                f"{path}:{number}: the {name.removesuffix('s')} is empty",
                hint="mend this line",
                context={"path": str(path), "line": number},
            )
