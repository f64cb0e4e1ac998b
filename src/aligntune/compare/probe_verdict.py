"""What two sides of a parity probe have in common: one verdict for each quantity, in the order in which a loss is made.

    weights -> tokens -> mask -> log-probabilities -> reference -> loss -> gradient

The first that differs is the place to look at: what comes after it can only follow. Tolerances are by precision.

Source of the tolerances: a unit roundoff u is 6e-8 in fp32, 5e-4 in fp16 and 4e-3 in bf16 (8 bits of significand, IEEE
754 and its bf16 cut). A log-probability is a difference of numbers of about 10, so it carries about 10 u of its own and
as much again of each layer's rounding: 1e-4 for the largest of a batch in fp32, 1e-5 on average. Measured in fp32 on
CPU, small models, TRL against Unsloth: 0 for the largest, 9e-8 relative for the loss, 3e-15 for the angle. For bf16 the
same multiples of u would allow everything, so the limits there are 2e-2 for the mean over tokens and ten times it for
one token; bf16 against fp32 on the same small models came to 1.4e-3 for the largest, 3e-5 for the loss, 5e-6 for the
angle. Large models round more, and none was measured on a GPU: the limits of bf16 and fp16 are arithmetic.

It judges numbers that are there; it computes none of them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TOLERANCES: dict[str, dict[str, float]] = {
    "fp32": {"weights": 1e-5, "logps": 1e-5, "largest": 1e-4, "loss": 1e-5, "angle": 1e-6, "norm": 1e-4},
    "fp16": {"weights": 1e-3, "logps": 5e-3, "largest": 5e-2, "loss": 5e-3, "angle": 2e-3, "norm": 2e-2},
    "bf16": {"weights": 1e-2, "logps": 2e-2, "largest": 2e-1, "loss": 2e-2, "angle": 1e-2, "norm": 5e-2},
}
"""Precision to the largest difference that counts as equal.

`weights`, `loss`, `norm`: relative; `logps` (mean) and `largest`: nats; `angle`: 1 - cosine of the whole gradient.
"""
SHOWN = 8
"""Positions, weights or metrics that a cause names at most."""


@dataclass(frozen=True)
class Quantity:
    """One compared quantity.

    Attributes:
        name: what was compared.
        equal: whether the difference is within the tolerance; None where the sides have nothing to compare.
        difference: the difference, in `unit`.
        tolerance: the largest difference that counts as equal.
        unit: of both.
        left: the value on the left side, where it is one number.
        right: the value on the right side.
        detail: what differs, and the likely cause.
    """

    name: str
    equal: bool | None
    difference: float = 0.0
    tolerance: float = 0.0
    unit: str = ""
    left: float | None = None
    right: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Pair:
    """The verdict on two sides.

    Attributes:
        left: name of the side that the other is held against.
        right: name of the other.
        precision: the coarser of the two.
        quantities: in the order in which a loss is made.
        cause: a sentence on the first that differs; empty where all are equal.
    """

    left: str
    right: str
    precision: str
    quantities: list[Quantity] = field(default_factory=list)
    cause: str = ""

    @property
    def ok(self) -> bool:
        """Whether no quantity differs."""
        return self.first is None

    @property
    def first(self) -> Quantity | None:
        """The first quantity that differs."""
        return next((q for q in self.quantities if q.equal is False), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        first = self.first
        return {**asdict(self), "ok": self.ok, "first": first.name if first else None}


@dataclass
class Side:
    """What one process measured: its result and the folder of its arrays."""

    name: str
    result: dict[str, Any]
    folder: Path

    def arrays(self, file: str) -> dict[str, Any]:
        """The arrays of `batch` or `gradient`."""
        from safetensors.numpy import load_file

        found: dict[str, Any] = load_file(self.folder / f"{file}.safetensors")
        return found


def compare_sides(left: Side, right: Side) -> Pair:
    """Hold two measurements against each other.

    Args:
        left: the side that the other is held against.
        right: the other.
    """
    order = list(TOLERANCES)
    precision = max((left.result["precision"], right.result["precision"]), key=order.index)
    limits = TOLERANCES[precision]
    one, two = left.arrays("batch"), right.arrays("batch")
    found = [_weights(left, right, limits), _tokens(one, two)]
    if found[-1].equal:
        found += [_mask(one, two), _logps("log-probabilities", "logps", one, two, limits)]
        if "reference" in one or "reference" in two:
            found.append(_reference(left, right, one, two, limits))
    found.append(_loss(left, right, limits))
    found += _gradient(left, right, limits)
    pair = Pair(left.name, right.name, precision, found)
    first = pair.first
    cause = "" if first is None else f"{first.name} differs first: {first.detail}"
    return Pair(left.name, right.name, precision, found, cause)


def _weights(left: Side, right: Side, limits: dict[str, float]) -> Quantity:
    a, b = left.result["weights"], right.result["weights"]
    only = sorted(set(a) ^ set(b))
    if only:
        where = left.name if only[0] in a else right.name
        text = f"{len(only)} weights are trained on one side only, first {only[0]} ({where})"
        return Quantity("starting weights", False, float(len(only)), 0, "weights", detail=text)
    gaps = {n: abs(a[n][1] - b[n][1]) / max(a[n][0], b[n][0], 1e-30) for n in a}
    gaps = {n: max(g, abs(a[n][0] - b[n][0]) / max(a[n][0], b[n][0], 1e-30)) for n, g in gaps.items()}
    name = max(gaps, key=lambda n: gaps[n])
    worst = gaps[name]
    if worst <= limits["weights"]:
        return Quantity("starting weights", True, worst, limits["weights"], "relative")
    count = sum(g > limits["weights"] for g in gaps.values())
    drawn = all("lora" in n for n, g in gaps.items() if g > limits["weights"])
    why = "adapters are drawn by other random numbers" if drawn else "the model was loaded differently"
    text = f"{count} of {len(gaps)} trained weights start elsewhere, most {name}: {why}"
    return Quantity("starting weights", False, worst, limits["weights"], "relative", detail=text)


def _tokens(one: dict[str, Any], two: dict[str, Any]) -> Quantity:
    a, b = one["ids"], two["ids"]
    if a.shape != b.shape:
        text = f"the batch is {_shape(a)} on one side and {_shape(b)} on the other: other rows, truncation or padding"
        return Quantity("tokens", False, math.inf, 0, "tokens", detail=text)
    where = [
        (int(r), int(t)) for r, t in zip(*((a != b) | (one["attended"] != two["attended"])).nonzero(), strict=True)
    ]
    text = f"at {_positions(where)}: other rows, another order, another template or other padding" if where else ""
    return Quantity("tokens", not where, float(len(where)), 0, "tokens", detail=text)


def _mask(one: dict[str, Any], two: dict[str, Any]) -> Quantity:
    a, b = one["trained"].astype(bool), two["trained"].astype(bool)
    where = _where(a != b)
    sizes = (float(a.sum()), float(b.sum()))
    text = f"{int(sizes[0])} tokens are in the loss against {int(sizes[1])}; they differ at {_positions(where)}"
    return Quantity("mask", not where, float(len(where)), 0, "tokens", *sizes, detail=text if where else "")


def _logps(name: str, key: str, one: dict[str, Any], two: dict[str, Any], limits: dict[str, float]) -> Quantity:
    seen = (one["attended"] * two["attended"]).astype(bool)
    if key == "reference":
        seen &= one["trained"].astype(bool) | two["trained"].astype(bool)
    gap = abs(one[key].astype("float64") - two[key].astype("float64")) * seen
    mean, largest = float(gap.sum() / max(seen.sum(), 1)), float(gap.max())
    row, position = (int(i) for i in divmod(int(gap.argmax()), gap.shape[1]))
    equal = mean <= limits["logps"] and largest <= limits["largest"]
    text = f"mean difference {mean:.2g} nats, largest {largest:.2g} at {_positions([(row, position)])}"
    if not equal and key == "logps":
        text += ": the forward pass, or the precision, attention mask or positions that it gets"
    return Quantity(name, equal, largest, limits["largest"], "nats", detail=text)


def _reference(left: Side, right: Side, one: dict[str, Any], two: dict[str, Any], limits: dict[str, float]) -> Quantity:
    if ("reference" in one) != ("reference" in two):
        with_it = left.name if "reference" in one else right.name
        return Quantity("reference", False, math.inf, 0, "nats", detail=f"only {with_it} has a reference model")
    found = _logps("reference", "reference", one, two, limits)
    if found.equal:
        return found
    moved = {k: (left.result["metrics"].get(k), right.result["metrics"].get(k)) for k in ("rewards/margins", "kl")}
    shifts = [f"{k} shifts from {a:.6g} to {b:.6g}" for k, (a, b) in moved.items() if a is not None and b is not None]
    text = "; ".join([found.detail, "the reference is another model", *shifts])
    return Quantity("reference", False, found.difference, found.tolerance, "nats", detail=text)


def _loss(left: Side, right: Side, limits: dict[str, float]) -> Quantity:
    a, b = left.result["loss"], right.result["loss"]
    gap = abs(a - b) / max(abs(a), abs(b), 1e-12)
    # A policy loss is a difference of large terms near 0, whose rounding is that of the terms.
    equal = gap <= limits["loss"] or abs(a - b) <= limits["loss"] * 1e-1
    return Quantity("loss", equal, gap, limits["loss"], "relative", a, b, "" if equal else _ratio(left, right))


def _ratio(left: Side, right: Side) -> str:
    """What the quotient of two losses says of their normalisers."""
    a, b = left.result["loss"], right.result["loss"]
    if not (a and b and math.isfinite(a) and math.isfinite(b)):
        return f"{a:.6g} against {b:.6g}"
    ratio = b / a
    return f"{a:.6g} against {b:.6g}, a factor of {ratio:.6g}{_named(ratio, left.result['sizes'])}"


def _named(ratio: float, sizes: dict[str, float]) -> str:
    """The quotients of common normalisers that a factor equals."""
    values = {"1": 1.0, **{k: v for k, v in sizes.items() if v > 0}}
    hits = [
        f"{top} / {bottom}" if bottom != "1" else top
        for top, x in values.items()
        for bottom, y in values.items()
        if x != y and math.isclose(ratio, x / y, rel_tol=1e-3)
    ]
    return f" (= {hits[0]})" if hits else ""


def _gradient(left: Side, right: Side, limits: dict[str, float]) -> list[Quantity]:
    a, b = left.arrays("gradient"), right.arrays("gradient")
    only = sorted(set(a) ^ set(b))
    dot = one = two = 0.0
    for name in sorted(set(a) & set(b)):
        x, y = a[name].astype("float64").ravel(), b[name].astype("float64").ravel()
        dot, one, two = dot + float(x @ y), one + float(x @ x), two + float(y @ y)
    for name in only:
        x = (a.get(name) if name in a else b[name]).astype("float64").ravel()  # type: ignore[union-attr]
        one, two = (one + float(x @ x), two) if name in a else (one, two + float(x @ x))
    norms = math.sqrt(one), math.sqrt(two)
    if not (norms[0] and norms[1] and math.isfinite(norms[0] * norms[1])):
        text = f"norms {norms[0]:.6g} and {norms[1]:.6g}: nothing is learned, or it is not finite"
        return [Quantity("gradient direction", None if norms[0] == norms[1] else False, detail=text)]
    angle, ratio = max(0.0, 1.0 - dot / (norms[0] * norms[1])), norms[1] / norms[0]
    missing = f"{len(only)} weights get a gradient on one side only, first {only[0]}" if only else ""
    turned = angle > limits["angle"] or bool(only)
    direction = missing or f"cosine {1 - angle:.9g}: another loss, or a part of it without gradient"
    longer = abs(ratio - 1) > limits["norm"]
    scale = f"a factor of {ratio:.6g}{_named(ratio, left.result['sizes'])}"
    scale += ", the direction is the same: a normaliser" if not turned else ""
    return [
        Quantity(
            "gradient direction", not turned, angle, limits["angle"], "1 - cosine", detail=direction if turned else ""
        ),
        Quantity(
            "gradient norm", not longer, abs(ratio - 1), limits["norm"], "relative", *norms, scale if longer else ""
        ),
    ]


def _where(marked: Any) -> list[tuple[int, int]]:
    """Row and position of each True."""
    return [(int(r), int(t)) for r, t in zip(*marked.nonzero(), strict=True)]


def _shape(array: Any) -> str:
    return " x ".join(map(str, array.shape))


def _positions(where: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"row {r} position {t}" for r, t in where[:SHOWN])
    return shown + (f" and {len(where) - SHOWN} more" if len(where) > SHOWN else "")
