"""Folders: data files together, or one row for each text file.

A folder that holds data files (json, jsonl, csv, tsv, parquet, CoNLL, gzipped too) is read as those files, joined;
text and Markdown files beside them, such as a README, are left out and counted. A folder of text files only
gives one row a file with the columns `text` and `path`. Files whose names carry a split
(`train-00000.parquet`, `test.jsonl`, `dev/a.csv`) belong to it; where no name does, everything is the split
`train`. A folder written by `Dataset.save_to_disk` is read as such. Hidden files are skipped, and links to
folders are not followed.

>>> DirectoryLoader().load("notes/").column_names
['text', 'path']
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from aligntune.core.config import DatasetConfig
from aligntune.data.loaders.base import BaseLoader, FileLoader, decode, read_bytes, refuse_hub_keys
from aligntune.data.loaders.conll import CoNLLLoader
from aligntune.data.loaders.json import JSONLoader
from aligntune.data.loaders.tabular import CSVLoader, ParquetLoader
from aligntune.data.rows import Rows, class_names, split_base, split_of_name, take_split
from aligntune.errors import ValidationError


class TextLoader(FileLoader):
    """Reads one text or Markdown file as one row."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", ".markdown", ".rst")

    def read_file(self, path: Path) -> Rows:
        return Rows(
            [{"text": decode(path, read_bytes(path)), "path": str(path)}],
            source=path.name,
            places=[str(path)],
        )


STRUCTURED: tuple[FileLoader, ...] = (JSONLoader(), CSVLoader(), ParquetLoader(), CoNLLLoader())


def loader_for(path: Path) -> FileLoader | None:
    """The loader whose ending the file name has (`.gz` aside), or None."""
    name = path.name.lower().removesuffix(".gz")
    return next((loader for loader in (*STRUCTURED, TextLoader()) if name.endswith(loader.suffixes)), None)


class DirectoryLoader(BaseLoader):
    """Reads a folder and everything below it."""

    def read(self, source: DatasetConfig) -> Rows:
        refuse_hub_keys(source)
        root = Path(source.name).expanduser()
        if (root / "state.json").is_file() or (root / "dataset_dict.json").is_file():
            return _read_saved(root, source.split)
        files = _files(root)
        readable = [(path, loader) for path in files if (loader := loader_for(path)) is not None]
        structured = [(path, loader) for path, loader in readable if not isinstance(loader, TextLoader)]
        chosen = structured or readable
        if not chosen:
            kinds = sorted({path.suffix or path.name for path in files})
            raise ValidationError(
                f"{root} holds no data file" + (f" (found: {', '.join(kinds[:8])})" if kinds else ""),
                hint="put json, jsonl, csv, tsv, parquet, txt or md files there",
            )
        notes = []
        if len(files) > len(chosen):
            rest = sorted(str(p.relative_to(root)) for p in set(files) - {path for path, _ in chosen})
            notes.append(f"{root}: left out {len(rest)} files that are not data files ({', '.join(rest[:3])}).")
        return _join(root, chosen, source.split, notes)


def _files(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _join(root: Path, files: list[tuple[Path, FileLoader]], split: str, notes: list[str]) -> Rows:
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
    parts = [loader.read_file(path) for path, loader in files]
    if any(part.class_names != parts[0].class_names for part in parts):  # their numbers mean different things
        parts = [part.with_class_names(part.class_names) for part in parts]
        for part in parts:
            part.class_names = {}
    places = [
        part.place(i) if not isinstance(loader, TextLoader) else str(path.relative_to(root))
        for (path, loader), part in zip(files, parts, strict=True)
        for i in range(len(part))
    ]
    joined = Rows([row for part in parts for row in part.rows], f"{root} ({len(files)} files)", places, notes)
    for part in parts:
        joined.notes += part.notes
        joined.class_names |= part.class_names
    return take_split(joined, split, known=(base,))


def _read_saved(root: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk

    data = load_from_disk(str(root))
    splits = dict(data) if isinstance(data, DatasetDict) else {"train": data}
    base = split_base(split)
    rows = splits[base].to_list() if base in splits else []
    names = class_names(splits[base].features) if base in splits else {}
    return take_split(Rows(rows, source=str(root), class_names=names), split, known=tuple(str(name) for name in splits))
