"""What a backend replaces in the training libraries, and who does it: in a process of its own, so that nothing stays.

    print(isolation_report("unsloth"))                 # the fingerprint that every run records, with its culprits
    print(isolation_report("unsloth", full=True))      # every symbol of the libraries, against an untouched process

`full` imports all of TRL, PEFT and Accelerate and the parts of Transformers, Datasets and PyTorch that matter, twice:
in the backend's process and in one where Unsloth cannot be imported. It compares functions with their defaults, classes
with their bases, and plain constants, and takes half a minute. `gpu_shaped` switches on the patching that Unsloth does
on a GPU; no such process can train.

    python -m aligntune.diagnosis.isolation unsloth full    # the worker; a JSON document on standard output

Source: the method of the fingerprint (`aligntune.core.fingerprint`), with data beside code. It does not look inside
compiled extensions, and a change that is undone before the look is not seen.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.core.backend import get_backend
from aligntune.core.fingerprint import code_hash, fingerprint
from aligntune.core.isolation import clean_environment, enter_trl
from aligntune.errors import ConfigurationError, TrainingError
from aligntune.registry import import_attribute, nearest

MODES = ("trl", "unsloth", "gpu_shaped")
WHOLE = ("trl", "peft", "accelerate")
"""Packages of which the exhaustive form imports every module."""
PARTS = (
    "transformers.trainer", "transformers.modeling_utils", "transformers.generation.utils", "transformers.cache_utils",
    "transformers.masking_utils", "transformers.training_args", "transformers.configuration_utils",
    "transformers.tokenization_utils_base", "transformers.models.auto.modeling_auto", "transformers.models.llama",
    "transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.gemma3.modeling_gemma3", "transformers.models.mixtral.modeling_mixtral",
    "transformers.integrations.sdpa_attention", "transformers.integrations.flex_attention",
    "transformers.quantizers.auto", "transformers.utils.quantization_config", "datasets.arrow_dataset",
    "torch", "torch.nn.init", "torch.nn.functional", "torch.serialization", "torch.cuda", "torch.utils.checkpoint",
    "torch.nn.attention.flex_attention", "torch.optim.adamw",
)  # fmt: skip
_ROOTS = ("trl", "peft", "accelerate", "transformers", "datasets", "torch")
_NOISE = (
    "SESSION_ID", "REGISTRY_KEY", "STATE_KEY", "_pid", "_latest", "_startTime", "_queued_calls", "cached_backends",
    "__doc__", "__module__", "__firstlineno__",
)  # fmt: skip
"""Names whose value is another in every process."""
SHOWN = 60
"""Most symbols that the text lists."""
_BROKEN = (ImportError, RuntimeError, AttributeError, NameError, TypeError, ValueError, OSError, KeyError)
"""What importing a module with a missing optional part raises."""


@dataclass(frozen=True)
class IsolationReport:
    """What a backend's process looks like.

    Attributes:
        backend: `trl`, `unsloth` or `gpu_shaped`.
        fingerprint: of the training code, as a run records it.
        environment: variables that the backend set or changed.
        finders: finders that it put before Python's own.
        files: what it wrote into the working folder.
        changed: with `full`, symbol to where it comes from now; None without.
        symbols: with `full`, how many were compared, in the modules that both processes have loaded.
    """

    backend: str
    fingerprint: dict[str, Any]
    environment: list[str] = field(default_factory=list)
    finders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    changed: dict[str, str] | None = None
    symbols: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing of the training libraries is replaced."""
        return not self.fingerprint["by"] and not self.changed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "clean": self.clean}

    def __str__(self) -> str:
        found = self.fingerprint
        count = sum(found["by"].values())
        lines = [
            f"backend {self.backend}: {count} of {found['symbols']} functions of the training code are replaced",
            f"  fingerprint  {found['hash']}",
            *(f"  {number:>5}  by {_short(name)}" for name, number in found["by"].items()),
            f"  environment  {', '.join(self.environment) or 'unchanged'}",
            f"  import       {', '.join(self.finders) or 'unchanged'}",
            f"  files        {', '.join(self.files) or 'none written into the working folder'}",
        ]
        if self.changed is not None:
            lines.append(f"against an untouched process: {len(self.changed)} of {self.symbols} symbols differ")
            shown = sorted(self.changed.items())
            lines += [f"  {name}  ({_short(origin)})" for name, origin in shown[:SHOWN]]
            lines += [f"  and {len(shown) - SHOWN} more (--json lists all)"] if len(shown) > SHOWN else []
        return "\n".join(lines)


def isolation_report(backend: str = "trl", *, full: bool = False) -> IsolationReport:
    """Prepare a backend in a fresh process, load its trainers, and look at what is replaced there.

    Args:
        backend: `trl`, `unsloth`, or `gpu_shaped`: the patching that Unsloth does on a GPU, forced on any machine.
        full: compare every symbol with that of a process in which Unsloth cannot be imported.

    Raises:
        ConfigurationError: an unknown backend.
        EnvironmentError: its package is not installed.
        TrainingError: the process failed.
    """
    if backend not in MODES:
        raise ConfigurationError(f"unknown backend '{backend}'", hint=nearest(backend, MODES))
    get_backend("trl" if backend == "trl" else "unsloth")
    found = _in_process(backend, full)
    changed, symbols = None, 0
    if full:
        one, two = _in_process("untouched", True)["all"], found["all"]
        both = {row[2] for row in one.values()} & {row[2] for row in two.values()}
        one, two = ({n: row for n, row in side.items() if row[2] in both} for side in (one, two))
        symbols = len(one.keys() | two.keys())
        changed = {
            n: (two.get(n) or one[n])[1] if n in two else "removed"
            for n in sorted(one.keys() | two.keys())
            if one.get(n, [None])[0] != two.get(n, [None])[0]
        }
    return IsolationReport(
        backend, found["fingerprint"], found["environment"], found["finders"], found["files"], changed, symbols
    )


def _in_process(mode: str, full: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="aligntune-isolation-") as folder:
        working = Path(folder) / "work"
        working.mkdir()
        env = {**clean_environment(), "PYTHONHASHSEED": "0", "UNSLOTH_COMPILE_LOCATION": str(Path(folder) / "cache")}
        done = subprocess.run(
            [sys.executable, "-m", "aligntune.diagnosis.isolation", mode, *(["full"] if full else [])],
            cwd=working,
            env=env,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-2:])
            raise TrainingError(f"the process that was looked at ended with code {done.returncode}", hint=last)
        found: dict[str, Any] = json.loads(done.stdout)
        found["files"] = sorted(str(p.relative_to(working)) for p in working.rglob("*"))
    return found


# ---- in the worker ---------------------------------------------------------------------------------------------


def _look(mode: str, full: bool) -> dict[str, Any]:
    before, finders = dict(os.environ), list(sys.meta_path)
    _prepare(mode)
    changed = sorted(k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k))
    new = [type(f).__qualname__ for f in sys.meta_path if f not in finders]
    for name in ("trl:SFTTrainer", "trl:DPOTrainer", "trl:GRPOTrainer", "transformers:LlamaForCausalLM"):
        import_attribute(name)
    found: dict[str, Any] = {"fingerprint": fingerprint(), "environment": changed, "finders": new}
    if full:
        found["all"] = dict(_every_symbol())
    return found


def _prepare(mode: str) -> None:
    if mode in ("trl", "untouched"):
        enter_trl()
        return
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    if mode == "unsloth":
        import_attribute("unsloth:FastLanguageModel")
        return
    # Private names of Unsloth 2026.10.9, in the order of its own tests: what its import does where there is a GPU.
    os.environ.update(UNSLOTH_ALLOW_CPU="1", UNSLOTH_COMPILE_DISABLE="1")
    import_attribute("unsloth:FastLanguageModel")
    os.environ.pop("UNSLOTH_ALLOW_CPU")
    import_attribute("unsloth.models.rl:PatchFastRL")()
    import_attribute("unsloth.trainer:_patch_trl_trainer")()


def _every_symbol() -> Iterator[tuple[str, list[str]]]:
    """Name, digest, origin and module of every function, method, class and plain constant of the libraries."""
    for package in WHOLE:
        top = importlib.import_module(package)
        for module in pkgutil.walk_packages(top.__path__, f"{package}.", onerror=lambda name: None):
            if ".cli" not in module.name and ".scripts" not in module.name and "__main__" not in module.name:
                _imported(module.name)
    for name in PARTS:
        _imported(name)
    for name in sorted(sys.modules):
        module_ = sys.modules[name]
        if type(module_) is types.ModuleType and name.partition(".")[0] in _ROOTS:
            for symbol, described in _symbols_of(name, module_):
                yield symbol, [*described, name]


def _imported(name: str) -> None:
    with contextlib.suppress(*_BROKEN):
        importlib.import_module(name)


def _symbols_of(name: str, module: types.ModuleType) -> Iterator[tuple[str, list[str]]]:
    for attribute, value in sorted(vars(module).items()):
        if attribute in _NOISE or attribute.startswith(("__", "_torchinductor")):
            continue
        described = _described(value)
        if described is None:
            continue
        yield f"{name}.{attribute}", described
        if isinstance(value, type) and value.__module__ == name:
            for member, inner in sorted(vars(value).items()):
                if member not in _NOISE and (found := _described(inner)):
                    yield f"{name}.{attribute}.{member}", found


def _described(value: Any) -> list[str] | None:
    """Digest and origin of a value; None for what has no lasting description."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if isinstance(value, types.FunctionType):
        defaults = [repr(d) for d in (value.__defaults__ or ()) if _plain(d)]
        inner = getattr(value, "__wrapped__", None)
        chain = _described(inner) if isinstance(inner, types.FunctionType) else ""
        code = value.__code__
        return [f"{code_hash(code).hex()} {value.__module__} {defaults} {chain}", code.co_filename]
    if isinstance(value, type):
        bases = [f"{b.__module__}.{b.__qualname__}" for b in value.__mro__]
        return [f"{value.__module__}.{value.__qualname__} {bases}", value.__module__]
    return [repr(value), "a value"] if _plain(value) else None


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _short(path: str) -> str:
    """A file's name from its package on."""
    return path.partition("site-packages/")[2] or path


def main() -> None:
    """The worker: `python -m aligntune.diagnosis.isolation MODE [full]`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print banners
    found = _look(sys.argv[1], "full" in sys.argv[2:])
    answers.write(json.dumps(found))
    answers.close()


if __name__ == "__main__":
    main()
