"""Find what `model.name_or_path` means: a folder, an adapter folder with its base, or a hub id.

>>> find_source("out/sft")
Source(path='out/sft', base='out/sft', adapter=None, tokenizer='out/sft')

A hub id with a revision is fetched first and stands for its snapshot folder, because TRL loads a reference
model by name alone and would take another revision. It reads small JSON files only, no weights.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune import errors

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Source:
    """Where a model's parts are.

    Attributes:
        path: what was asked for, as a folder or a hub id.
        base: what the base weights are read from.
        adapter: the adapter's folder; None for a plain model.
        tokenizer: what the tokenizer is read from.
    """

    path: str
    base: str
    adapter: str | None
    tokenizer: str

    @property
    def advice(self) -> str:
        """What to do where the model cannot be read."""
        if os.path.isdir(self.base):
            return "check that the folder holds a whole Hugging Face model (config.json, weights, tokenizer)"
        close = nearest_folder(self.base)
        local = f"; if you meant a folder, the nearest is '{close}'" if close else ""
        return (
            "check the spelling and the network (HF_HUB_OFFLINE); if the model is gated, accept its licence "
            f"on its page and run `hf auth login`{local}"
        )

    def unreadable(self, error: OSError) -> errors.AlignTuneError:
        """The error for a model that a library could not read."""
        first = errors.first_line(error)
        if os.path.isdir(self.base):
            return errors.ConfigurationError(
                f"model.name_or_path: {self.base} cannot be loaded ({first})", hint=self.advice
            )
        return errors.EnvironmentError(
            f"model.name_or_path: '{self.base}' is no folder here, and the hub does not give it ({first})",
            hint=self.advice,
        )


def find_source(name: str, revision: str | None = None) -> Source:
    """Resolve a folder or hub id, with checks that need no weights.

    Raises:
        errors.ConfigurationError: a path that is no folder, a folder without a model, pickled weights only, a
            name
            that can be no hub id.
        errors.EnvironmentError: a hub id with a revision that can be neither found in the cache nor fetched.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _folder_source(Path(path))
    if os.path.exists(path):
        raise errors.ConfigurationError(
            f"model.name_or_path: '{name}' is a file",
            hint=f"give its folder: '{os.path.dirname(path) or '.'}'",
        )
    if not _is_hub_id(name):
        close = nearest_folder(path)
        raise errors.ConfigurationError(
            f"model.name_or_path: there is no folder '{name}'",
            hint=f"did you mean '{close}'?" if close else "give a model folder, or a hub id as owner/name",
        )
    if revision is not None:
        return _snapshot_source(name, revision)
    return Source(path=name, base=name, adapter=None, tokenizer=name)


@contextmanager
def faults_of(key: str, revision: str | None = None) -> Iterator[None]:
    """Errors about a model other than the run's own name `key`, and `revision` or else `key` for its revision."""
    try:
        yield
    except (errors.ConfigurationError, errors.EnvironmentError) as e:
        said = e.message.replace("model.name_or_path", key).replace("model.revision", revision or key)
        raise type(e)(said, hint=e.hint, context=e.context) from e


def _is_hub_id(name: str) -> bool:
    """True for `name` or `owner/name` that does not begin with a folder that is here."""
    return bool(_HUB_ID.match(name)) and not ("/" in name and os.path.isdir(name.split("/")[0]))


def _folder_source(folder: Path) -> Source:
    adapter_file = folder / "adapter_config.json"
    has_tokenizer = any((folder / name).exists() for name in _TOKENIZER_FILES)
    if adapter_file.exists():
        base = _adapter_base(adapter_file)
        return Source(str(folder), base, str(folder), str(folder) if has_tokenizer else base)
    if not (folder / "config.json").exists():
        inner = sorted(found.parent for found in folder.glob("*/config.json"))
        inner += sorted(found.parent for found in folder.glob("*/adapter_config.json"))
        raise errors.ConfigurationError(
            f"model.name_or_path: the folder '{folder}' holds no model (no config.json)",
            hint=f"did you mean '{inner[-1]}'?" if inner else "give the folder that a model was saved in",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = [found.name for pattern in _PICKLED for found in folder.glob(pattern)]
        raise errors.ConfigurationError(
            f"model.name_or_path: the folder '{folder}' has no safetensors weights"
            + (f", only {', '.join(sorted(pickled)[:3])}, which can run code when it is read" if pickled else ""),
            hint="save the model with save_pretrained(), which writes safetensors"
            if pickled
            else "check that the model was saved whole",
        )
    return Source(str(folder), str(folder), None, str(folder))


def _adapter_base(adapter_file: Path) -> str:
    """The base model that an adapter names; a relative path also counts from the adapter's folder."""
    base = json.loads(adapter_file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise errors.ConfigurationError(
            f"{adapter_file} names no base model", hint="set base_model_name_or_path in that file"
        )
    beside = adapter_file.parent / base
    if not os.path.isdir(base) and beside.is_dir():
        return str(beside)
    if not os.path.isdir(base) and not _is_hub_id(base):
        raise errors.ConfigurationError(
            f"{adapter_file} names the base model '{base}', and there is no such folder",
            hint="put the base model there, or correct base_model_name_or_path in that file",
        )
    return str(base)


def _snapshot_source(name: str, revision: str) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise errors.EnvironmentError(
            f"model.revision: '{name}' at '{revision}' is not in the cache, and the hub does not give it",
            hint="check the name, the revision and the network (HF_HUB_OFFLINE)",
        ) from error
    return _folder_source(Path(folder))


def weight_files(path: str) -> list[list[Any]]:
    """Name, size in bytes and time of change of the weights in a model's folder; nothing for a hub id.

    What a journal agrees on, where reading the weights themselves would take longer than what it saves.
    """
    folder = Path(path).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def nearest_folder(path: str) -> str | None:
    """The folder beside `path` whose name is closest to its own; None if none is close."""
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        return None
    names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    close = difflib.get_close_matches(os.path.basename(path), names, n=1, cutoff=0.6)
    return os.path.join(os.path.dirname(path), close[0]) if close else None
