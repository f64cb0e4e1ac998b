"""`check_environment`: whether this machine can run AlignTune, with a fix for each thing that it lacks.

>>> [c.name for c in check_environment(".") if c.status == "fail"]
[]

A check is ok, a warning, a failure, or a note; each looks at one thing. With `HF_HUB_OFFLINE` no network is touched;
else the hub is asked for its address once, with a deadline of three seconds. A token is only said to be there.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "warn", "fail"]
HUB = ("huggingface.co", 443)
DEADLINE = 3.0
GB = 1e9
LOW_MEMORY, LOW_DISK = 4.0, 5.0
"""GB below which even small models are tight (ours)."""
OPTIONAL = {"unsloth": "the backend unsloth", "bitsandbytes": "model.quantization and 8-bit optimizers",
            "vllm": "generation.use_vllm"}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One look at the environment.

    Attributes:
        name: what was looked at.
        status: ok, note, warn or fail.
        found: what is there.
        fix: what to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return asdict(self)


def check_environment(folder: str | os.PathLike[str] = ".") -> list[Check]:
    """Look at versions, tested sets, device, memory, disk, hub, permissions, threads, sandbox and isolation.

    Args:
        folder: where runs would be written.
    """
    place = Path(folder).expanduser().absolute()
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _sets,
        _device,
        _memory,
        lambda: _disk(place),
        lambda: _writing(place),
        _hub,
        _threads,
        _sandbox,
        _isolation,
    )
    return [check for look in looks for check in look()]


def _python() -> Iterator[Check]:
    version = platform.python_version()
    known = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check("python", "ok" if known else "warn", version, "" if known else "use Python 3.11 to 3.13")


def _packages() -> Iterator[Check]:
    """Whether what the project requires is installed, in the versions that it allows."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("aligntune") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        install = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(f"package {wanted.name}", "fail", "not installed", install)
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        shown = version if fits else f"{version}, and {wanted.specifier} is tested"
        yield Check(f"package {wanted.name}", "ok" if fits else "warn", shown, "" if fits else install)
    for name, purpose in OPTIONAL.items():
        try:
            yield Check(f"package {name}", "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(f"package {name}", "note", "not installed", f"only {purpose} needs it: pip install {name}")


def _sets() -> Iterator[Check]:
    """Whether the tests have run with each backend's set of versions, and what one of them asks of the others."""
    from aligntune.core.backend import BACKENDS
    from aligntune.core.versions import conflicts, describe, tested_sets, untested, used

    for name, info in BACKENDS.items():
        if not info.available:
            continue
        told = [sentence for sentence in (untested(name), *conflicts(info.package)) if sentence]
        shown = "; ".join(told) or describe(used(name))
        fix = f"install a tested set: {tested_sets(name)}" if told else ""
        yield Check(f"versions for {name}", "warn" if told else "ok", shown, fix)


def _device() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("device", "fail", f"PyTorch cannot be imported: {error}", "install PyTorch (https://pytorch.org)")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        free, total = torch.cuda.mem_get_info()
        tight = free < total / 2
        shown = f"{names}; CUDA {torch.version.cuda}; {free / GB:.1f} of {total / GB:.1f} GB free"
        yield Check("device", "warn" if tight else "ok", shown, "end other programs on the GPU" if tight else "")
    elif shutil.which("nvidia-smi"):
        yield Check(
            "device",
            "warn",
            f"there is an NVIDIA driver, and PyTorch {torch.__version__} finds no GPU",
            "install a PyTorch build for the driver's CUDA version; look at CUDA_VISIBLE_DEVICES",
        )
    else:
        kind = "Apple GPU" if torch.backends.mps.is_available() else "the CPU"
        yield Check("device", "note", f"{kind}, no CUDA GPU", "small models and adapters run here")


def _memory() -> Iterator[Check]:
    import psutil

    found = psutil.virtual_memory()
    low = found.available / GB < LOW_MEMORY
    shown = f"{found.available / GB:.1f} of {found.total / GB:.1f} GB available"
    fix = "end other programs; use a small model, model.peft or model.quantization" if low else ""
    yield Check("memory", "warn" if low else "ok", shown, fix)


def _disk(folder: Path) -> Iterator[Check]:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / GB
    low = free < LOW_DISK
    yield Check("disk", "warn" if low else "ok", f"{free:.1f} GB free in {existing}", "free some space" if low else "")


def _writing(folder: Path) -> Iterator[Check]:
    from aligntune.data.cache import DatasetCache

    for name, place in (("write to the working folder", folder), ("write to the cache", DatasetCache().root)):
        existing = next(p for p in (place, *place.absolute().parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=existing) as probe:
                probe.write(b"\0" * 4096)
        except OSError as error:
            fix = "set output_dir" if place == folder else "set ALIGNTUNE_CACHE or cache.dir"
            yield Check(name, "fail", f"{existing}: {error.strerror}", f"{fix} to a folder that you may write to")
            continue
        yield Check(name, "ok", str(existing))


def _hub() -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        yield Check("hub", "note", "HF_HUB_OFFLINE is set: models and data come from folders and the cache")
    else:
        try:
            with socket.create_connection(HUB, timeout=DEADLINE):
                yield Check("hub", "ok", f"{HUB[0]} answers")
        except OSError as error:
            fix = "set HF_HUB_OFFLINE=1 to work with local files and the cache, or mend the network (HTTPS_PROXY)"
            yield Check("hub", "warn", f"{HUB[0]} does not answer ({error})", fix)
    from huggingface_hub import get_token

    there = get_token() is not None
    fix = "" if there else "only gated and private repositories need one: `hf auth login`"
    yield Check("hub token", "ok" if there else "note", "there is one" if there else "there is none", fix)


def _threads() -> Iterator[Check]:
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given and not re.fullmatch(r"[1-9]\d*", given):
        yield Check("threads", "warn", f"OMP_NUM_THREADS is '{given}'", "set it to a number from 1")
        return
    many = bool(given) and int(given) > usable
    shown = f"{given or 'all'} of {usable} usable processors"
    yield Check("threads", "warn" if many else "ok", shown, f"set OMP_NUM_THREADS to at most {usable}" if many else "")


def _sandbox() -> Iterator[Check]:
    from aligntune.errors import AlignTuneError
    from aligntune.grading.sandbox.executor import SafeCodeExecutor

    try:
        with SafeCodeExecutor() as executor:
            level = executor.level
    except AlignTuneError as error:
        yield Check("sandbox", "warn", error.message, error.hint)
        return
    fix = "" if level == "full" else "run on Linux where user namespaces are allowed, for the whole of it"
    yield Check("sandbox", "ok" if level == "full" else "note", f"level {level} for code that models wrote", fix)


def _isolation() -> Iterator[Check]:
    from aligntune.core.isolation import imported

    found = imported()
    fix = "start a fresh process, or set isolation: process" if found else ""
    shown = f"{found[0]} is imported, and has replaced parts of TRL" if found else "no backend has patched this process"
    yield Check("isolation", "warn" if found else "ok", shown, fix)
