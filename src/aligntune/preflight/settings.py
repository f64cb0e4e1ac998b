"""Checks of the configuration and the machine that need no data: value sources, versions, disk, learning rate, warm-up.

>>> sources("run.yaml", ["train.max_steps=20"], config)[0]
{'key': 'task.name', 'value': 'instruction_following', 'source': 'run.yaml'}

Everything is read from the configuration, the installed packages' metadata and the file system; nothing heavy is
imported.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntune.core.config.base import field_docs, is_section, to_plain, walk
from aligntune.core.config.io import changed_keys, inert_keys
from aligntune.core.config.reading import copy_plain, parse_yaml
from aligntune.core.config.root import RunConfig
from aligntune.core.versions import UNTESTED, describe, is_tested, tested_sets, used
from aligntune.preflight.verdict import Verdict

RATES: dict[str, tuple[float, float, str]] = {
    "sft": (1e-6, 1e-4, "2e-5 in Stanford Alpaca and TRL, 1e-5 in InstructGPT (arXiv:2203.02155)"),
    "classification": (1e-6, 1e-4, "2e-5 to 5e-5 in BERT (arXiv:1810.04805, appendix A.3)"),
    "preference": (1e-7, 1e-5, "1e-6 in DPO (arXiv:2305.18290), 5e-7 in Zephyr, 8e-6 in ORPO (arXiv:2403.07691)"),
    "policy": (1e-7, 1e-5, "1e-6 in DeepSeekMath (arXiv:2402.03300) and DAPO, 3e-6 in N+ details of PPO"),
}
"""Method to the usual peak learning rate of full fine-tuning with Adam: low, high, sources."""
LORA_FACTOR = 10.0
"""Adapters take about ten times the rate of full fine-tuning (QLoRA, arXiv:2305.14314, table 9: 1e-4 to 2e-4)."""
OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0}
"""Bytes of optimizer state for each trained parameter, kept in fp32 or 8 bit; Adafactor's is below 0.1."""


# ---- where each value comes from -------------------------------------------------------------------------------


def layers(file: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """A file and those that its `base:` lines name, as (name, values as written), the strongest first."""
    found: list[tuple[str, dict[str, Any]]] = []
    path: Path | None = Path(file)
    while path is not None:
        raw = copy_plain(parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {})
        base = raw.pop("base", None)
        found.append((str(path), raw))
        path = path.parent / base if base else None
    return found


def sources(file: str | None, overrides: Sequence[str], config: RunConfig) -> list[dict[str, Any]]:
    """Every key that has an effect, with its value and where the value comes from.

    Args:
        file: the configuration's file, if it has one.
        overrides: `key=value` strings, as given.
        config: the resolved configuration.

    Returns:
        Dictionaries with `key`, `value` and `source`: "override", a file's path, "flag or argument", or "default"
        with the default's own source.
    """
    given = {item.partition("=")[0].strip(): "override" for item in overrides}
    files = [(name, set(_written(raw))) for name, raw in (layers(file) if file else [])]
    inert, changed = inert_keys(config), changed_keys(config)
    rows = []
    for key, value in _leaves(config):
        if any(key == k or key.startswith(f"{k}.") for k in inert) and key not in changed:
            continue
        source = next((s for k, s in given.items() if key == k or key.startswith(f"{k}.")), None)
        source = source or next((name for name, keys in files if _stands_in(key, keys)), None)
        if source is None:
            source = "flag or argument" if key in changed and not file else f"default{_reason(config, key)}"
        rows.append({"key": key, "value": to_plain(value), "source": source})
    return rows


def _leaves(config: RunConfig) -> Iterator[tuple[str, Any]]:
    section = "algo" if config.kind == "rl" else "task"
    yield f"{section}.name", config.algorithm.key
    yield from walk(config)


def _written(raw: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of plain values, as written; a plain string for a section stands for its first key."""
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from _written(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, (Mapping, str)) for item in value):
            yield f"{prefix}{key}"
            for i, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _written(item, f"{prefix}{key}.{i}.")
                else:
                    yield f"{prefix}{key}.{i}"
        else:
            yield f"{prefix}{key}"


def _stands_in(key: str, written: set[str]) -> bool:
    if key in written:
        return True
    parent, _, last = key.rpartition(".")
    if last in ("name", "type") and parent in written:  # `task: chat_completion`, `dataset: rows.jsonl`
        return True
    return key.startswith("datasets.0.") and f"datasets.{key.removeprefix('datasets.0.')}" in written


def _reason(config: RunConfig, key: str) -> str:
    """The source that the default's docstring names in its last brackets."""
    owner: Any = config
    *parents, last = key.split(".")
    for part in parents:
        owner = owner[int(part)] if isinstance(owner, list) else getattr(owner, part, None)
    if not is_section(owner):
        return ""
    if key == "train.learning_rate":
        return f" of {config.algorithm.key}"
    kind: Any = type(owner)
    text = " ".join(field_docs(kind).get(last, "").split())
    begin, end = text.rfind("("), text.rfind(")")
    return f" ({text[begin + 1 : end]})" if 0 <= begin < end else ""


# ---- environment -----------------------------------------------------------------------------------------------


def versions(config: RunConfig) -> Verdict:
    """Whether the libraries that this run uses are a set that the tests have run with."""
    found = used(config.backend)
    if is_tested(config.backend):
        return Verdict("versions", "config", "pass", f"a tested set: {describe(found)}", data={"found": found})
    return Verdict(
        "versions",
        "config",
        "warn",
        UNTESTED,
        [f"installed: {describe(found)}", f"tested: {tested_sets(config.backend)}"],
        "pip install -c constraints.txt aligntune, or run the tests with this set",
        {"found": found},
    )


def disk(config: RunConfig, weights: int | None, trained: int | None) -> Verdict:
    """Whether the final model and the checkpoints fit on the disk of `output_dir`.

    Args:
        weights: bytes of the saved model (of the adapter, with LoRA); None where the model is not known.
        trained: parameters that are trained.
    """
    folder = Path(config.output_dir).expanduser().absolute()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if weights is None or trained is None:
        return Verdict("disk", "config", "skip", f"{gigabytes(free)} free; the model's size is not known")
    t = config.train
    state = weights + trained * OPTIMIZER_BYTES.get(t.optimizer, 0)
    count = 0
    if t.save_steps:
        count = t.max_steps // t.save_steps if t.max_steps else 3
        count = min(count, t.save_total_limit + 1) if t.save_total_limit else count
    needed = weights + count * state
    shown = f"a model of about {gigabytes(weights)}"
    if count:
        shown = f"about {gigabytes(needed)}: {count} checkpoints of {gigabytes(state)} and {shown}"
    data = {"free": free, "needed": needed, "checkpoints": count}
    if needed > free:
        return Verdict(
            "disk", "config", "fail", f"the run writes {shown}; {gigabytes(free)} are free in {there}", [],
            "set train.save_total_limit, raise train.save_steps, or set another output_dir", data,
        )  # fmt: skip
    return Verdict("disk", "config", "pass", f"{gigabytes(free)} free; the run writes {shown}", data=data)


def gigabytes(count: float) -> str:
    """Bytes as a person reads them, in decimal units."""
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


# ---- optimisation ----------------------------------------------------------------------------------------------


def method(config: RunConfig) -> str:
    """The key of `RATES` that a configuration belongs to."""
    if config.algorithm.head != "causal_lm":
        return "classification"
    if config.kind == "sft":
        return "sft"
    return "policy" if config.algorithm.uses_rewards else "preference"


def learning_rate(config: RunConfig) -> Verdict:
    """Whether the peak learning rate lies in the usual range of the method."""
    kind, rate = method(config), float(config.train.learning_rate or config.algorithm.learning_rate)
    low, high, why = RATES[kind]
    factor = LORA_FACTOR if config.model.peft else 1.0
    low, high = low * factor, high * factor
    how = f"{kind} with {'LoRA' if config.model.peft else 'full weights'}"
    data = {"learning_rate": rate, "low": low, "high": high}
    if config.train.optimizer == "sgd":
        return Verdict("learning-rate", "config", "skip", "the usual ranges are Adam's, and the optimizer is SGD")
    if low <= rate <= high:
        return Verdict("learning-rate", "config", "pass", f"{rate:g} is usual for {how}", data=data)
    side = "below" if rate < low else "above"
    return Verdict(
        "learning-rate",
        "config",
        "warn",
        f"{rate:g} is {side} the usual {low:g} to {high:g} for {how}",
        [f"published: {why}" + (", and about ten times that with LoRA" if factor > 1 else "")],
        "set train.learning_rate inside the range; models below some 10M parameters take more",
        data,
    )


def warm_up(config: RunConfig, total_steps: int | None) -> Verdict:
    """Whether the warm-up ends before the training does.

    Args:
        total_steps: optimizer steps of the whole run; None where the rows are not known.
    """
    t = config.train
    if not t.warmup_steps:
        return Verdict("warm-up", "config", "pass", f"{t.warmup_ratio:.0%} of the steps" if t.warmup_ratio else "none")
    if total_steps is None:
        return Verdict("warm-up", "config", "skip", "how long the run is depends on rows that could not be read")
    data = {"warmup_steps": t.warmup_steps, "total_steps": total_steps}
    if t.warmup_steps >= total_steps:
        return Verdict(
            "warm-up",
            "config",
            "fail",
            f"warm-up takes {t.warmup_steps} steps, and the run has {total_steps}: it never reaches its learning rate",
            fix=f"set train.warmup_steps below {total_steps}, or train.warmup_ratio=0.1",
            data=data,
        )
    if t.warmup_steps > total_steps / 2:
        return Verdict(
            "warm-up", "config", "warn", f"warm-up is {t.warmup_steps} of {total_steps} steps, more than half", [],
            "set train.warmup_ratio=0.1", data,
        )  # fmt: skip
    return Verdict("warm-up", "config", "pass", f"{t.warmup_steps} of {total_steps} steps", data=data)


def replace_fields(section: Any, **changes: Any) -> Any:
    """`dataclasses.replace` for those of the fields that the section has."""
    known = {f.name for f in dataclasses.fields(section)}
    return dataclasses.replace(section, **{k: v for k, v in changes.items() if k in known})
