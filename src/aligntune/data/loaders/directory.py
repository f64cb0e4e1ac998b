"""Folders: data files together, or one row for each text file.

A folder that holds data files (json, jsonl, csv, tsv, parquet, CoNLL, gzipped too) is read as those files, joined;
text and Markdown files beside them, such as a README, are left out and counted. A folder of text files only
gives one row a file with the columns `text` and `path`. Files whose names carry a split
(`train-00000.parquet`, `test.jsonl`, `dev/a.csv`) belong to it; where no name does, everything is the split
`train`. A folder written by `Dataset.save_to_disk` is read as such. Hidden files are skipped, and links to
folders are not followed. `read` chooses files by `pattern` (`**/*.jsonl`), `types` and `recursive`.

>>> DirectoryLoader().load("notes/").column_names
['text', 'path']
"""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

from aligntune.core.config import DatasetConfig, ReadConfig
from aligntune.data.loaders.base import (
    FOLDER_KEYS,
    TEXT_KEYS,
    BaseLoader,
    FileLoader,
    Placed,
    decode,
    file_identity,
    read_bytes,
    refuse_unused_keys,
    whole_split,
)
from aligntune.data.loaders.conll import CoNLLLoader
from aligntune.data.loaders.hub import library_rows
from aligntune.data.loaders.json import JSONLoader
from aligntune.data.loaders.tabular import CSVLoader, ParquetLoader
from aligntune.data.rows import BadRows, ReadAgain, Rows, split_base, split_of_name, take_split
from aligntune.errors import ValidationError


class TextLoader(FileLoader):
    """Reads one text or Markdown file as one row."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", ".markdown", ".rst")
    options: ClassVar[tuple[str, ...]] = TEXT_KEYS

    def iterate(self, path: Path, read: ReadConfig, bad: BadRows) -> Placed:
        try:
            yield str(path), {"text": decode(path, read_bytes(path), read.encoding), "path": str(path)}
        except ValidationError as error:
            bad.take(str(path), error)


KINDS: dict[str, FileLoader] = {
    "json": JSONLoader(),
    "csv": CSVLoader(),
    "parquet": ParquetLoader(),
    "conll": CoNLLLoader(),
    "text": TextLoader(),
}
"""Kinds of files, as `read.types` names them."""
STRUCTURED: tuple[FileLoader, ...] = tuple(loader for kind, loader in KINDS.items() if kind != "text")


def loader_for(path: Path) -> FileLoader | None:
    """The loader whose ending the file name has (`.gz` aside), or None."""
    name = path.name.lower().removesuffix(".gz")
    return next((loader for loader in KINDS.values() if name.endswith(loader.suffixes)), None)


class DirectoryLoader(BaseLoader):
    """Reads a folder and everything below it."""

    options: ClassVar[tuple[str, ...]] = (*FOLDER_KEYS, *TEXT_KEYS, "delimiter", "header", "max_line_mb", "rows_at")

    def read(self, source: DatasetConfig) -> Rows:
        root = Path(source.name).expanduser()
        if is_saved(root):
            refuse_unused_keys(source, ())
            return _read_saved(root, source.split)
        files, notes = self._files(root, source)
        bad = BadRows(source.on_bad_row == "skip")
        rows = _join(root, files, source, notes, bad)
        rows.skipped = bad.rows
        return take_split(rows, source.split, known=(split_base(source.split),))

    def stream(self, source: DatasetConfig, bad: BadRows) -> Placed:
        root = Path(source.name).expanduser()
        if is_saved(root):
            return super().stream(source, bad)
        whole_split(source)
        files, _ = self._files(root, source)
        return (
            (place if isinstance(loader, TextLoader) else str(path.relative_to(root).parent / place), row)
            for path, loader in files
            for place, row in loader.iterate(path, options_of(loader, source.read), bad)
        )

    def identity(self, source: DatasetConfig) -> Any:
        root = Path(source.name).expanduser()
        files = _walk(root, recursive=True) if is_saved(root) else [path for path, _ in self._files(root, source)[0]]
        return [{**file_identity(path), "name": str(path.relative_to(root))} for path in files]

    def _files(self, root: Path, source: DatasetConfig) -> tuple[list[tuple[Path, FileLoader]], list[str]]:
        """The files of the split, each with its loader, and notes about those left out."""
        refuse_unused_keys(source, self.options)
        read = source.read
        files = [
            path for path in _walk(root, recursive=read.recursive) if _matches(path.relative_to(root), read.pattern)
        ]
        if read.pattern and not files:
            raise ValidationError(
                f"no file in {root} matches read.pattern '{read.pattern}'", hint="`**/*.jsonl` matches in every folder"
            )
        readable = [(path, loader) for path in files if (loader := loader_for(path)) is not None]
        if read.types is not None:
            wanted = tuple(type(KINDS[kind]) for kind in read.types)
            chosen = [(path, loader) for path, loader in readable if isinstance(loader, wanted)]
        else:
            chosen = [(path, loader) for path, loader in readable if not isinstance(loader, TextLoader)] or readable
        if not chosen:
            kinds = sorted({path.suffix or path.name for path in files})
            raise ValidationError(
                f"{root} holds no {'file of read.types ' + str(read.types) if read.types else 'data file'}"
                + (f" (found: {', '.join(kinds[:8])})" if kinds else ""),
                hint="put json, jsonl, csv, tsv, parquet, txt or md files there",
            )
        notes = []
        if len(files) > len(chosen):
            rest = sorted(str(p.relative_to(root)) for p in set(files) - {path for path, _ in chosen})
            kind = "of other kinds" if read.types else "that are not data files"
            notes.append(f"{root}: left out {len(rest)} files {kind} ({', '.join(rest[:3])}).")
        return _of_split(root, chosen, source.split, notes), notes


def is_saved(root: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder."""
    return (root / "state.json").is_file() or (root / "dataset_dict.json").is_file()


def options_of(loader: FileLoader, read: ReadConfig) -> ReadConfig:
    """The options that mean something to one loader, of a folder's."""
    default = ReadConfig()
    return replace(read, **{key: getattr(default, key) for key in vars(default) if key not in loader.options})


def _matches(path: Path, pattern: str | None) -> bool:
    if pattern is None:
        return True
    return fnmatch(str(path), pattern) or (pattern.startswith("**/") and fnmatch(str(path), pattern[3:]))


def _walk(root: Path, *, recursive: bool) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if recursive and not name.startswith("."))
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _of_split(
    root: Path, files: list[tuple[Path, FileLoader]], split: str, notes: list[str]
) -> list[tuple[Path, FileLoader]]:
    base = split_base(split)
    wanted = split_of_name(base) or base
    named = {path: split_of_name(str(path.relative_to(root))) for path, _ in files}
    if any(named.values()):
        present = sorted({name for name in named.values() if name})
        left = [path.name for path, name in named.items() if name is None]
        files = [(path, loader) for path, loader in files if named[path] == wanted]
        if not files:
            raise ValidationError(
                f"{root} has no split '{base}' (its file names carry: {', '.join(present)})",
                hint=f"set split to one of: {', '.join(present)}, or name one file",
            )
        if left:
            notes.append(f"{root}: left out {len(left)} files whose names carry no split ({', '.join(left[:3])}).")
    elif wanted != "train":
        raise ValidationError(
            f"{root} has no split '{base}': no file name carries one",
            hint="use split: train, or name the file",
        )
    return files


def _join(
    root: Path, files: list[tuple[Path, FileLoader]], source: DatasetConfig, notes: list[str], bad: BadRows
) -> Rows:
    parts = [loader.read_file(path, options_of(loader, source.read), bad) for path, loader in files]
    if any(part.class_names != parts[0].class_names for part in parts):  # their numbers mean different things
        parts = [part.with_class_names(part.class_names) for part in parts]
        for part in parts:
            part.class_names = {}
    named = [str(path.relative_to(root)) if isinstance(loader, TextLoader) else "" for path, loader in files]
    where = f"{root} ({len(files)} files)"
    if any(isinstance(part.rows, ReadAgain) for part in parts):
        columns = list(dict.fromkeys(name for part in parts for name in part.columns))
        again = ReadAgain(lambda: _chain(parts, named), sum(map(len, parts)), columns, where)
        joined = Rows(again, where, None, notes)
    else:
        placed = list(_chain(parts, named))
        joined = Rows([row for _, row in placed], where, [place for place, _ in placed], notes)
    for part in parts:
        joined.notes += part.notes
        joined.class_names |= part.class_names
    return joined


def _chain(parts: list[Rows], named: list[str]) -> Placed:
    """The rows of all files, one after the other; files of text stand where they are named."""
    for part, name in zip(parts, named, strict=True):
        for index, row in part.walk():
            yield name or part.place(index), row


def _read_saved(root: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk

    data = load_from_disk(str(root))
    splits = dict(data) if isinstance(data, DatasetDict) else {"train": data}
    base = split_base(split)
    rows = library_rows(splits[base], str(root)) if base in splits else Rows([], source=str(root))
    return take_split(rows, split, known=tuple(str(name) for name in splits))
