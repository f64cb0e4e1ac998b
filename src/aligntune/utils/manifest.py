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
import importlib.util
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
_SECRET_LINE = re.compile(
    r"((api_?key|access_?key|auth|bearer|secret|passw(or)?d|credential|private.key|[^s]token(?!s))[\w-]*[\"']?\s*[:=]\s*\S|"
    r"\b(hf_|sk-|ghp_|github_pat_|xox[abp]-|AKIA|wandb_v1_)[\w-]{8,}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@)",
    re.IGNORECASE,
)
_SECRET_FILE = re.compile(r"(/\.env\b|\.pem\b|\.key\b|id_rsa|id_ed25519|credentials|secrets?[./])", re.IGNORECASE)
VOLATILE = re.compile(
    r"(^time$|runtime$|_per_second|step_time|seconds|throughput|memory|latency|^profiling/|/profiling/)"
)
"""Logged values that differ between two runs that compute the same: clocks, throughput, memory."""
DIFF_LIMIT = 200_000
"""Most characters of uncommitted changes to keep."""
MOST_NAMES = 50


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
        "own_code": own_code(config),
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
    if folder.parent.name == "snapshots":
        entry["commit"] = folder.name
    return {
        **entry,
        "folder": str(folder),
        "bytes": sum(found.stat().st_size for found in files),
        "weights_sha256": _joined({found.name: hashes[found.name] for found in files}) if files else None,
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
    rows: Any = getattr(item, "dataset", None)
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


def own_code(config: Any) -> dict[str, str]:
    """SHA-256 of the user's file that defines the algorithm or task, by its place; empty for one of ours."""
    place = str(getattr(getattr(config, "algorithm", None), "place", ""))
    if not place:
        return {}
    name = place.rpartition(":")[0]
    origin = name if name.endswith(".py") else getattr(importlib.util.find_spec(name), "origin", None)
    return {place: file_sha256(Path(origin))} if origin and os.path.isfile(origin) else {}


def packages() -> dict[str, str]:
    """Every installed distribution and its version, in name order."""
    found = ((dist.metadata["Name"], dist.version) for dist in importlib.metadata.distributions())
    return dict(sorted((name.lower(), version) for name, version in found if name))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch, names of changed files and a hash of the uncommitted changes of the repository around
    `folder`; None if there is none. `uncommitted` gives the changes themselves.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(folder, "diff", "HEAD", "--no-ext-diff") or ""
    status = (_git(folder, "status", "--porcelain", "--untracked-files=normal") or "").splitlines()
    return {
        "root": _git(folder, "rev-parse", "--show-toplevel"),
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(status),
        "changed_files": [line.strip().partition(" ")[2].strip() for line in status[:MOST_NAMES]],
        "diff_sha256": text_sha256(diff) if diff else None,
    }


def uncommitted(folder: Path, limit: int = DIFF_LIMIT) -> str | None:
    """The uncommitted changes of tracked files around `folder`, as `git diff` prints them; None where there are none.

    Lines that could hold a secret (a name such as `api_key` or `password` with a value, or the marks of known tokens)
    are replaced, files with such names are left out whole, and what goes beyond `limit` characters is cut off; all
    three are said in the text.
    """
    diff = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-color") or ""
    if not diff:
        return None
    lines, hidden = [], False
    for line in diff.splitlines():
        if line.startswith("diff --git "):
            hidden = _SECRET_FILE.search(line) is not None
            lines.append(line + (" (left out: its name says that it holds secrets)" if hidden else ""))
        elif not hidden:
            lines.append(f"{line[:1]}(hidden: it could hold a secret)" if _SECRET_LINE.search(line) else line)
    text = "\n".join(lines) + "\n"
    return text if len(text) <= limit else f"{text[:limit]}\n(cut off: {len(text) - limit} characters more)\n"


def results(folder: Path) -> dict[str, Any]:
    """Hashes of what a run has made: its weights, and its metrics without what no two runs have in common (`VOLATILE`).

    Two runs of equal `metrics_sha256` have logged the same numbers at the same steps, to the last bit.
    """
    from aligntune.utils.files import read_lines

    files = sorted({found for pattern in WEIGHTS for found in folder.glob(pattern)})
    hashes = {found.name: file_sha256(found) for found in files}
    rows = [stable(row) for row in read_lines(folder / "metrics.jsonl")]
    return {
        "weights_sha256": _joined(hashes) if files else None,
        "files": hashes,
        "metrics_sha256": text_sha256("".join(json.dumps(jsonable(row), sort_keys=True) + "\n" for row in rows)),
    }


def stable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics without clocks, throughput and memory."""
    return {key: value for key, value in row.items() if not VOLATILE.search(key)}


def _joined(hashes: Mapping[str, str]) -> str:
    """One hash over named hashes, in name order."""
    return text_sha256("".join(f"{name}\0{hashes[name]}\n" for name in sorted(hashes)))


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
