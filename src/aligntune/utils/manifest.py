"""What a run was made of: configuration, code, packages, model, data, rewards, hardware, seeds.

The entries go into `manifest.json` beside the state that `RunFolder` keeps there. Content is identified by
SHA-256 (FIPS 180-4) over the bytes themselves, so that a name that now means something else is noticed.

>>> entries = collect(config, datasets=[prepared], tokenizer=tokenizer, model_path="out/sft",
...                   reward_sources={"format": answer_format}, fingerprint=fingerprint)
>>> entries["model"]["weights_sha256"][:8]
'3f2a9c1d'
>>> run.update_manifest(entries)

It does not compare two manifests, and takes the patch fingerprint as it is given.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntune.core.config.base import to_plain
from aligntune.utils.files import jsonable

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_ENVIRONMENT = re.compile(
    r"^(OMP_|MKL_|CUDA_|NCCL_|PYTORCH_|TORCH_|HF_HUB_OFFLINE|HF_HOME|HF_DATASETS_|TRANSFORMERS_|TOKENIZERS_|"
    r"ACCELERATE_|UNSLOTH_|PYTHONHASHSEED|WORLD_SIZE|RANK|LOCAL_RANK|CUBLAS_|WANDB_MODE|ALIGNTUNE_)"
)
_SECRET = re.compile(r"(token|key|secret|password|credential)", re.IGNORECASE)


def collect(
    config: Any,
    *,
    datasets: Sequence[Any] = (),
    tokenizer: Any = None,
    model_path: str | None = None,
    revision: str | None = None,
    reward_sources: Mapping[str, str | Callable[..., Any]] | None = None,
    fingerprint: Any = None,
    device: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest's entries, in the types that JSON has.

    Args:
        config: the resolved configuration.
        datasets: `Prepared` objects, or mappings with `source`, `content_hash`, `format` and `notes`.
        tokenizer: the run's tokenizer, with its chat template as it is used.
        model_path: a folder or a hub id whose files are in the cache.
        revision: the hub revision that was asked for.
        reward_sources: reward name to its source text or its function.
        fingerprint: what `core.isolation` found about patched code; stored as it is.
        device: `DeviceManager.summary()`; None leaves the device out.
        extra: more top-level entries.
    """
    seed = getattr(getattr(config, "train", None), "seed", None)
    entries = {
        "config": to_plain(config),
        "command": [_shown(argument) for argument in sys.argv],
        "working_folder": os.getcwd(),
        "git": git_state(Path.cwd()),
        "packages": packages(),
        "model": model_entry(model_path, revision) if model_path else None,
        "tokenizer": tokenizer_entry(tokenizer) if tokenizer is not None else None,
        "datasets": [_dataset_entry(item) for item in datasets],
        "rewards": {name: {"source_sha256": source_hash(item)} for name, item in (reward_sources or {}).items()},
        "patch_fingerprint": fingerprint,
        "system": system(),
        "device": dict(device) if device else None,
        "environment": environment(),
        "seeds": {"seed": seed},
        **(extra or {}),
    }
    plain: dict[str, Any] = jsonable(entries)
    return plain


def model_entry(path: str, revision: str | None = None) -> dict[str, Any]:
    """Path, revision and SHA-256 of a model's weights: one per file, and one over all of them in name order.

    The content is read in a stream (about a second per gigabyte); a hub id is looked up in the local cache,
    and has no hashes where it is not there.
    """
    entry: dict[str, Any] = {"path": path, "revision": revision}
    folder = local_folder(path, revision)
    if folder is None:
        return {**entry, "weights_sha256": None, "files": {}}
    files = sorted({found for pattern in WEIGHTS for found in folder.glob(pattern)})
    config = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).exists()]
    hashes = {found.name: file_sha256(found) for found in [*config, *files]}
    weights = "".join(f"{found.name}\0{hashes[found.name]}\n" for found in files)
    if folder.parent.name == "snapshots":
        entry["commit"] = folder.name
    return {
        **entry,
        "folder": str(folder),
        "bytes": sum(found.stat().st_size for found in files),
        "weights_sha256": hashlib.sha256(weights.encode()).hexdigest() if files else None,
        "files": hashes,
    }


def local_folder(path: str, revision: str | None = None) -> Path | None:
    """The folder of a model: `path` itself, or its snapshot in the hub cache; None if neither is there."""
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "adapter_config.json"):
        try:
            found = try_to_load_from_cache(path, name, revision=revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, without holding the file in memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def tokenizer_entry(tokenizer: Any) -> dict[str, Any]:
    """Class, size, special tokens, and hashes of the vocabulary with its rules and of the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # Set by each call with `truncation=` or `padding=`, so they say nothing about the tokenizer.
        rules.pop("truncation", None)
        rules.pop("padding", None)
    else:
        rules = sorted(tokenizer.get_vocab().items())
    template = getattr(tokenizer, "chat_template", None)
    template = template if template is None or isinstance(template, str) else json.dumps(template, sort_keys=True)
    return {
        "class": type(tokenizer).__name__,
        "vocabulary_size": len(tokenizer),
        "sha256": text_sha256(json.dumps(rules, sort_keys=True)),
        "chat_template_sha256": None if template is None else text_sha256(template),
        "pad_token": tokenizer.pad_token,
        "eos_token": tokenizer.eos_token,
        "padding_side": tokenizer.padding_side,
    }


def _dataset_entry(item: Any) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    entry = {name: getattr(item, name, None) for name in ("source", "format", "content_hash", "notes")}
    rows = getattr(item, "dataset", None)
    return {**entry, "rows": len(rows) if hasattr(rows, "__len__") else None}


def source_hash(item: str | Callable[..., Any]) -> str:
    """SHA-256 of source text, or of a function's or class's source; of its qualified name where there is no
    source.
    """
    if isinstance(item, str):
        return text_sha256(item)
    target = inspect.unwrap(item)
    target = target if inspect.isroutine(target) or inspect.isclass(target) else type(target)
    try:
        return text_sha256(inspect.getsource(target))
    except (OSError, TypeError):  # built in, or typed into an interactive session
        return text_sha256(f"{target.__module__}.{target.__qualname__}")


def packages() -> dict[str, str]:
    """Every installed distribution and its version, in name order."""
    found = ((dist.metadata["Name"], dist.version) for dist in importlib.metadata.distributions())
    return dict(sorted((name.lower(), version) for name, version in found if name))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and a hash of the uncommitted changes of the repository around `folder`; None if there
    is none.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(folder, "diff", "HEAD", "--no-ext-diff") or ""
    status = _git(folder, "status", "--porcelain", "--untracked-files=normal") or ""
    return {
        "root": _git(folder, "rev-parse", "--show-toplevel"),
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(status),
        "diff_sha256": text_sha256(diff) if diff else None,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def system() -> dict[str, Any]:
    """Python, operating system, processor, number of usable processors and bytes of memory."""
    import psutil

    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    processors = len(affinity(0)) if affinity else os.cpu_count()
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "usable_processors": processors,
        "memory_bytes": psutil.virtual_memory().total,
    }


def _processor() -> str:
    """The processor's model name; the architecture where the system does not tell it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """The environment variables that change how a run computes (threads, devices, offline mode); never
    secrets.
    """
    names: Iterable[str] = (name for name in os.environ if _ENVIRONMENT.match(name) and not _SECRET.search(name))
    return {name: os.environ[name] for name in sorted(names)}


def _shown(argument: str) -> str:
    """A command-line argument, with the value of `--...token=...` and the like left out."""
    name, equals, _ = argument.partition("=")
    return f"{name}=(hidden)" if equals and re.search(r"(api_?key|[^s]token$|secret|password)", name) else argument
