"""How two manifests differ, each difference with what it can change, most likely cause first.

A difference has a likelihood from the table `LIKELIHOOD`, which the curves then move: what changes the very first loss
(data, model, template, seed) leads where the curves part at the first logged step, and what acts through updates
(learning rate, optimizer, schedule) leads where they part later; differences of rounding only are put down to hardware,
threads and packages first. The numbers are ours; they order, and are no probabilities.

>>> [d.what for d in rank(differences(a, b), parting)]
['train.seed', 'packages.torch']

Whether a difference is a cause is shown by repeating the run with it undone; this only says where to look first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aligntune.diagnosis.curves import Parting

HARMLESS_KEYS = (
    "output_dir", "logging.", "cache.", "isolation", "python", "health.", "train.save_steps", "train.save_total_limit",
    "train.save_", "train.dataloader_workers",
)  # fmt: skip
"""Settings that decide what is written, and not what is computed."""
CONTENT_KEYS = {
    "model.name_or_path": "model", "dataset.name": "data", "datasets.": "data", "evaluation.dataset.name": "data",
}  # fmt: skip
"""Settings that name a place; where the hash of its content is known, that says all, and the place nothing."""
UPDATE_KEYS = (
    "train.learning_rate", "train.warmup", "train.lr_scheduler", "train.optimizer", "train.weight_decay", "train.adam",
    "train.max_grad_norm", "train.max_steps", "train.num_epochs",
)  # fmt: skip
"""Settings that act through updates, so that the first loss is the same."""
NUMERIC_KEYS = ("model.precision", "model.attn_implementation", "model.device", "train.gradient_checkpointing")
MAIN_PACKAGES = (
    "torch", "trl", "transformers", "peft", "accelerate", "unsloth", "unsloth-zoo", "unsloth_zoo", "tokenizers",
    "datasets", "numpy", "triton", "bitsandbytes", "vllm", "xformers", "flash-attn", "aligntune", "safetensors",
    "math-verify",
)  # fmt: skip
LIKELIHOOD = {
    "config": 90, "backend": 88, "model": 86, "data": 84, "template": 80, "tokenizer": 78, "rewards": 76, "seed": 92,
    "order": 60, "patches": 50, "code": 45, "precision": 70, "packages": 40, "hardware": 35, "threads": 38,
    "environment": 20, "other packages": 5, "loaded": 3, "place": 1, "harmless": 0,
}  # fmt: skip
AT_START = {"model": 30, "data": 30, "template": 30, "tokenizer": 30, "rewards": 20, "seed": 10, "updates": -60}
LATER = {"model": -40, "template": -40, "tokenizer": -40, "updates": 20}
ROUNDING = {"hardware": 60, "threads": 60, "packages": 55, "precision": 30, "patches": 40, "environment": 30}
WHAT_IT_DOES = {
    "config": "another setting",
    "updates": "another setting, which acts from the first update on",
    "seed": "another seed draws other orders, samples and adapters",
    "backend": "another training stack",
    "model": "the starting weights are others",
    "data": "the rows are others",
    "template": "the same messages become other tokens",
    "tokenizer": "the same text becomes other tokens",
    "rewards": "the reward is computed by other code",
    "order": "the same rows came in another order; a seed, the number of rows or the batch size decides it",
    "patches": "the training libraries' code in memory was another",
    "code": "the working folder's code was another",
    "precision": "numbers are rounded otherwise",
    "packages": "another version of a library that computes",
    "other packages": "another version of a library that takes no part in training",
    "hardware": "other kernels sum in another order",
    "threads": "another number of threads sums in another order",
    "environment": "an environment variable that libraries read",
    "place": "another place, whose content is compared by itself",
    "loaded": "more or fewer modules of the training libraries were loaded, and none was replaced",
    "harmless": "decides what is written, not what is computed",
}


@dataclass(frozen=True)
class Difference:
    """One thing that two runs do not have in common.

    Attributes:
        kind: a key of `LIKELIHOOD`, or `updates`.
        what: a dotted key of the configuration or of the manifest.
        a: its value in the first run; `b`: in the second.
        likelihood: how likely it is the cause, from 0 (cannot be); it orders and is no probability.
    """

    kind: str
    what: str
    a: Any
    b: Any
    likelihood: int = 0

    @property
    def effect(self) -> str:
        """What it does, in words."""
        return WHAT_IT_DOES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "effect": self.effect}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """All differences of two manifests, in no order."""
    hashes = {"model": [_at(m, "model", "weights_sha256") for m in (a, b)], "data": [_rows_known(m) for m in (a, b)]}
    content = {kind: None not in values for kind, values in hashes.items()}
    found = [*_config(a.get("config") or {}, b.get("config") or {}, content)]
    found += [Difference("backend", "backend", a[k], b[k]) for k in ("backend",) if k in a and a[k] != b.get(k)]
    found += _named(a, b)
    found += _packages(a.get("packages") or {}, b.get("packages") or {})
    found += _machine(a, b)
    unique: dict[str, Difference] = {}
    for item in found:
        unique.setdefault(item.what, item)
    return list(unique.values())


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings and of lists of mappings."""
    if isinstance(value, Mapping) and value:
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}{name}.").items()}
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): value}


def _config(a: Mapping[str, Any], b: Mapping[str, Any], content: Mapping[str, bool]) -> Iterator[Difference]:
    one, two = flat(a), flat(b)
    for key in {**one, **two}:
        if one.get(key) != two.get(key):
            yield Difference(_kind(key, content), key, one.get(key), two.get(key))


def _kind(key: str, content: Mapping[str, bool]) -> str:
    if key == "train.seed":
        return "seed"
    if key.startswith(HARMLESS_KEYS):
        return "harmless"
    place = next((kind for start, kind in CONTENT_KEYS.items() if key.startswith(start)), None)
    if place is not None and key.endswith(("name", "name_or_path")):
        return "place" if content[place] else place
    if key.startswith(UPDATE_KEYS):
        return "updates"
    return "precision" if key.startswith(NUMERIC_KEYS) else "config"


def _at(value: Any, *path: str) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _rows_known(manifest: Mapping[str, Any]) -> bool | None:
    """True where the rows' hashes are known, so that the name of their source says nothing more."""
    hashes = [data.get("content_hash") for data in manifest.get("datasets") or []]
    return True if hashes and None not in hashes else None


PATHS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("model", "weights_sha256")),
    ("model", ("model", "commit")),
    ("tokenizer", ("tokenizer", "sha256")),
    ("template", ("tokenizer", "chat_template_sha256")),
    ("tokenizer", ("tokenizer", "pad_token")),
    ("code", ("git", "commit")),
    ("code", ("git", "diff_sha256")),
    ("hardware", ("system", "processor")),
    ("hardware", ("system", "machine")),
    ("hardware", ("device", "device")),
    ("hardware", ("device", "gpus")),
    ("hardware", ("device", "cuda")),
    ("threads", ("device", "threads")),
    ("packages", ("system", "python")),
)
"""Kind of difference and where in the manifest it is seen."""


def _named(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for kind, path in PATHS:
        left, right = _at(a, *path), _at(b, *path)
        # What one manifest lacks altogether (another version wrote it) is no difference of the runs.
        if left != right and isinstance(a.get(path[0]), Mapping) and isinstance(b.get(path[0]), Mapping):
            yield Difference(kind, ".".join(path), left, right)
    yield from _patches(a.get("patch_fingerprint") or {}, b.get("patch_fingerprint") or {})
    left, right = a.get("datasets") or [], b.get("datasets") or []
    for i in range(max(len(left), len(right))):
        one, two = (side[i] if i < len(side) else {} for side in (left, right))
        if one.get("content_hash") != two.get("content_hash"):
            yield Difference("data", f"datasets.{i}.content_hash", _rows(one), _rows(two))
    rewards = [m.get("rewards") or {} for m in (a, b)]
    for name in sorted({**rewards[0], **rewards[1]}):
        hashes = [_at(side.get(name), "source_sha256") for side in rewards]
        if hashes[0] != hashes[1]:
            yield Difference("rewards", f"rewards.{name}.source_sha256", *hashes)
    own = [m.get("own_code") or {} for m in (a, b)]
    for place in sorted(own[0].keys() & own[1].keys()):
        if own[0][place] != own[1][place]:
            yield Difference("code", f"own_code.{place}", own[0][place], own[1][place])
    orders = [_at(m, "data_order", "sha256") for m in (a, b)]
    if None not in orders and orders[0] != orders[1]:
        yield Difference("order", "data_order.sha256", *orders)


def _patches(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    """Training code in memory: what of it was replaced, or only which of it was loaded."""
    if not a or not b or a.get("hash") == b.get("hash"):
        return
    for name in ("foreign", "replaced"):
        if a.get(name) != b.get(name):
            yield Difference("patches", f"patch_fingerprint.{name}", a.get(name), b.get(name))
            return
    kind = "patches" if a.get("symbols") == b.get("symbols") else "loaded"
    yield Difference(kind, "patch_fingerprint.hash", a.get("hash"), b.get("hash"))


def _rows(data: Mapping[str, Any]) -> str | None:
    """A data set in words: how many rows, and the beginning of their hash."""
    if not data:
        return None
    return f"{data.get('rows')} rows, {str(data.get('content_hash'))[:12]}"


def _packages(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Difference]:
    if not a or not b:
        return
    for name in sorted({**a, **b}):
        if a.get(name) != b.get(name):
            kind = "packages" if name in MAIN_PACKAGES or name.startswith("nvidia-") else "other packages"
            yield Difference(kind, f"packages.{name}", a.get(name), b.get(name))


def _machine(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    left, right = a.get("environment") or {}, b.get("environment") or {}
    for name in sorted({**left, **right}):
        if left.get(name) != right.get(name):
            kind = "threads" if name.endswith("NUM_THREADS") else "environment"
            yield Difference(kind, f"environment.{name}", left.get(name), right.get(name))


def rank(found: list[Difference], parting: Parting | None = None) -> list[Difference]:
    """The differences with their likelihood, most likely cause first.

    Args:
        found: what `differences` gave.
        parting: how the curves compare; None leaves the table's order.
    """
    moves: Mapping[str, int] = {}
    if parting is not None and parting.first_step is not None:
        moves = AT_START if parting.at_start else LATER
    elif parting is not None and parting.first_bit is not None:
        moves = ROUNDING
    data_differ = any(d.kind in ("data", "seed") for d in found)
    ranked = []
    for item in found:
        base = LIKELIHOOD["config"] if item.kind == "updates" else LIKELIHOOD[item.kind]
        base = max(base + moves.get(item.kind, 0), 2) if base > 1 else base
        if item.kind == "order" and data_differ:
            base = 2  # other rows and another seed come in another order: that is a consequence
        ranked.append(Difference(item.kind, item.what, item.a, item.b, base))
    return sorted(ranked, key=lambda d: (-d.likelihood, d.what))
