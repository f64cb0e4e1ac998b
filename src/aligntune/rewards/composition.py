"""How the components of a row become one total: five modes, what a missing component does, normalisation, a clip.

With w_i the weights, v_i the components (scores after their threshold or minmax), in the order of `rewards`:

| mode | total |
|---|---|
| sum | sum of w_i v_i |
| product | product of v_i ** w_i (a weight is an exponent; needs v_i >= 0 and w_i >= 0) |
| min | least of w_i v_i (needs w_i >= 0) |
| gated | sum of w_i v_i if every gate reaches its threshold; else the gates' own w_i v_i up to the first that fails |
| lexicographic | (2 L + x) / (2 L_max + 1) in [0, 1]; the digits of L are the levels of all components but the last |

A component of weight 0 is left out of every total; as a gate it decides, and adds nothing. In lexicographic order the
level of a component is floor((v - low) / tolerance), and x is where the last component stands in its range, in [0, 1]
(its level, in that scale, where it has a tolerance). One level of an earlier component is worth more than all that come
after it. Weights are 1, or -1 where less is better.

Example, gates {exact: 1}, weights 1 and 0.2: (exact 1, format 1) gives 1.2, (0, 1) gives 0, (1, 0) gives 1.

A missing component (None): `drop` leaves the row without a total; `renormalise` lets the others count in its place (sum
and gated: times sum of all |w| / sum of the present |w|; product: exponents by the same factor; min: the least of the
others; a gate without a score is passed); `zero` counts 0. Behind a gate that failed nothing is missed. A row without
any score has no total under any policy.

Last comes the clip. Totals are normalised before it, where the rules say so (`rewards.normalise`).

Source: the weighted sum of TRL's GRPOTrainer (1.14.2); the other modes and their constants are ours. It does not score
anything, and knows no algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, Literal, Protocol, cast

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

Score = float | None
Mode = Literal["sum", "product", "min", "gated", "lexicographic"]
NonePolicy = Literal["drop", "renormalise", "zero"]
MOST_LEVELS = 2**20
"""Levels of a lexicographic order: the trainer keeps rewards in 32-bit floats, which tell no more apart in [0, 1]."""
SLACK = 1e-9
"""Levels are counted with this much tolerance, so that 0.3 stands on the third step of width 0.1."""


class Part(Protocol):
    """What a composition must know of a component."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def bounds(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Rules:
    """The settings of a composition; the fields of the section `composition`, which documents them."""

    mode: Mode = "sum"
    none: NonePolicy = "drop"
    gates: Mapping[str, float] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    clip: Sequence[float] | None = None
    normalise: Literal["none", "group", "running"] = "none"
    normalise_of: Literal["total", "components"] = "total"
    normalise_scale: bool = True

    @classmethod
    def of(cls, settings: Any) -> Rules:
        """From a section, a mapping, or None for the defaults.

        Raises:
            ConfigurationError: an unknown key or a wrong value of a mapping.
        """
        if settings is None or isinstance(settings, Rules):
            return settings or cls()
        if isinstance(settings, Mapping):
            from aligntune.core.config.composing import CompositionConfig
            from aligntune.core.config.io import parse_section

            settings = parse_section(CompositionConfig, dict(settings), "composition")
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})

    @property
    def plain(self) -> bool:
        """Whether totals are plain weighted sums, which a trainer can make of the components itself."""
        return (self.mode, self.none, self.clip, self.normalise) == ("sum", "drop", None, "none")


class Composition:
    """Totals of rows.

    Args:
        parts: the components, in their order.
        rules: the settings.

    Raises:
        ConfigurationError: a setting that has no meaning or no effect for these components; each names its key.
    """

    def __init__(self, parts: Sequence[Part], rules: Rules) -> None:
        self.parts, self.rules = list(parts), rules
        self.counted = [i for i, p in enumerate(parts) if p.weight]
        _check(self.parts, rules)
        self._scales = _scales([self.parts[i] for i in self.counted], rules) if rules.mode == "lexicographic" else []
        self._row: Callable[[Sequence[Score]], Score] = getattr(self, f"_{rules.mode}")
        self._check_clip()

    def total(self, values: Sequence[Score]) -> Score:
        """The total of one row; `values` in the order of the parts."""
        return self._row(values)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value that a total can have, after the clip; infinite ends where they are not known."""
        ends = self._bounds() if self.rules.normalise == "none" else (-math.inf, math.inf)
        low, high = self.clipped(ends)
        return cast("tuple[float, float]", (low, high))

    def clipped(self, totals: Sequence[Score]) -> list[Score]:
        """Totals inside the clip."""
        clip = self.rules.clip
        if clip is None:
            return list(totals)
        return [None if t is None else min(max(t, clip[0]), clip[1]) for t in totals]

    # ---- modes ---------------------------------------------------------------------------------------------------

    def _present(
        self, values: Sequence[Score], counted: Sequence[int]
    ) -> tuple[list[tuple[float, float]], float] | None:
        """(weight, value) of the components that count, and the factor of `renormalise`; None for no total."""
        weighted = [(self.parts[i].weight, values[i]) for i in counted]
        present = [(w, v) for w, v in weighted if v is not None]
        if len(present) == len(weighted):
            return present, 1.0
        if self.rules.none == "drop" or not present:
            return None
        if self.rules.none == "zero":
            return [(w, 0.0 if v is None else v) for w, v in weighted], 1.0
        return present, math.fsum(abs(w) for w, _ in weighted) / math.fsum(abs(w) for w, _ in present)

    def _sum(self, values: Sequence[Score]) -> Score:
        found = self._present(values, self.counted)
        return None if found is None else math.fsum(w * v for w, v in found[0]) * found[1]

    def _product(self, values: Sequence[Score]) -> Score:
        found = self._present(values, self.counted)
        return None if found is None else math.prod(v ** (w * found[1]) for w, v in found[0])

    def _min(self, values: Sequence[Score]) -> Score:
        found = self._present(values, self.counted)
        return None if found is None else min(w * v for w, v in found[0])

    def _gated(self, values: Sequence[Score]) -> Score:
        """The first gate that fails ends the row, which then has the parts of the gates up to it."""
        passed: list[int] = []
        for i, part in enumerate(self.parts):
            if part.name not in self.rules.gates:
                continue
            value, policy = values[i], self.rules.none
            if value is None and policy == "drop":
                return None
            passed.append(i)
            if value is None and policy == "renormalise":
                continue
            if (0.0 if value is None else value) < self.rules.gates[part.name]:
                found = self._present(values, passed) or ([], 1.0)
                return math.fsum(w * v for w, v in found[0]) * found[1]
        return self._sum(values)

    def _lexicographic(self, values: Sequence[Score]) -> Score:
        found = self._present(values, self.counted)
        if found is None:
            return None
        number, last = 0, 0.0
        for scale, (_, value) in zip(self._scales, found[0], strict=True):
            if scale is self._scales[-1]:
                last = scale.share(value)
            else:
                number = number * scale.levels + scale.level(value)
        most = math.prod(s.levels for s in self._scales[:-1]) - 1
        return (2 * number + last) / (2 * most + 1)

    # ---- what is possible ------------------------------------------------------------------------------------------

    def _bounds(self) -> tuple[float, float]:
        mode, none = self.rules.mode, self.rules.none
        if mode == "lexicographic":
            return 0.0, 1.0
        ends = [_ends(self.parts[i], power=mode == "product") for i in self.counted]
        if mode == "product":
            low, high = math.prod(end[0] for end in ends), math.prod(end[1] for end in ends)
            if none == "renormalise":
                total = math.fsum(self.parts[i].weight for i in self.counted)
                edges = [b**total for i in self.counted for b in self.parts[i].bounds]
                return min(low, *edges), max(high, *edges)
            return (0.0 if none == "zero" else low), high
        if none == "zero":
            ends = [(min(low, 0.0), max(high, 0.0)) for low, high in ends]
        lows, highs = [low for low, _ in ends], [high for _, high in ends]
        if mode == "min":
            return min(lows), (max(highs) if none == "renormalise" else min(highs))
        low, high = math.fsum(lows), math.fsum(highs)
        if none == "renormalise":
            whole = math.fsum(abs(self.parts[i].weight) for i in self.counted)
            scaled = [(whole / abs(self.parts[i].weight) * e[0], whole / abs(self.parts[i].weight) * e[1])
                      for i, e in zip(self.counted, ends, strict=True)]  # fmt: skip
            low, high = min(low, *(s[0] for s in scaled)), max(high, *(s[1] for s in scaled))
        if mode == "gated":
            gates = [e for i, e in zip(self.counted, ends, strict=True) if self.parts[i].name in self.rules.gates]
            sums = [list(accumulate((e[side] for e in gates), initial=0.0)) for side in (0, 1)]
            low, high = min(low, *sums[0]), max(high, *sums[1])
        return low, high

    def _check_clip(self) -> None:
        clip = self.rules.clip
        if clip is None or self.rules.normalise != "none":
            return
        low, high = self._bounds()
        if clip[0] <= low and high <= clip[1]:
            raise ConfigurationError(
                f"composition.clip [{clip[0]:g}, {clip[1]:g}] cuts nothing: totals lie in [{low:g}, {high:g}]",
                hint="choose a narrower clip, or remove it",
            )
        if clip[0] >= high or clip[1] <= low:
            raise ConfigurationError(
                f"composition.clip [{clip[0]:g}, {clip[1]:g}] makes every total the same: they lie in "
                f"[{low:g}, {high:g}]",
                hint="choose a clip inside that range, or remove it",
            )


@dataclass(frozen=True)
class _Scale:
    """The levels of one component in a lexicographic order."""

    low: float
    high: float
    tolerance: float | None
    reverse: bool

    @property
    def levels(self) -> int:
        assert self.tolerance is not None
        return math.floor((self.high - self.low) / self.tolerance + SLACK) + 1

    def level(self, value: float) -> int:
        """0 is the worst, `levels` - 1 the best."""
        assert self.tolerance is not None
        above = self.high - value if self.reverse else value - self.low
        return min(math.floor(above / self.tolerance + SLACK), self.levels - 1)

    def share(self, value: float) -> float:
        """Where a value stands, 0 the worst and 1 the best."""
        if self.tolerance is not None:
            return self.level(value) / (self.levels - 1)
        return (self.high - value if self.reverse else value - self.low) / (self.high - self.low)


def _ends(part: Part, *, power: bool) -> tuple[float, float]:
    """Lowest and highest weighted part."""
    low, high = part.bounds
    ends = (low**part.weight, high**part.weight) if power else (part.weight * low, part.weight * high)
    return min(ends), max(ends)


# ---- what is refused -------------------------------------------------------------------------------------------------


def _check(parts: Sequence[Part], rules: Rules) -> None:
    """Refuse settings without meaning; the messages name the key."""
    names = [p.name for p in parts]
    for key, table in (("gates", rules.gates), ("tolerance", rules.tolerance)):
        for name in table:
            if name not in names:
                raise ConfigurationError(f"composition.{key}: there is no reward '{name}'", hint=nearest(name, names))
    if not any(p.weight for p in parts):
        raise ConfigurationError(
            f"every reward has the weight 0 ({', '.join(names)}), so every total would be 0",
            hint="give at least one of them a weight: rewards.0.weight",
        )
    if rules.clip is not None and not (len(rules.clip) == 2 and rules.clip[0] < rules.clip[1]):
        raise ConfigurationError(
            f"composition.clip is {list(rules.clip)}", hint="write [lowest, highest], the first below the second"
        )
    if rules.normalise_of == "components" and rules.normalise != "none" and rules.mode != "sum":
        raise ConfigurationError(
            f"composition.normalise_of: components cannot be normalised apart in mode {rules.mode}",
            hint="set composition.mode to sum, or normalise_of to total",
        )
    if rules.mode in _MODES:
        _MODES[rules.mode](parts, rules)


def _check_gates(parts: Sequence[Part], rules: Rules) -> None:
    if not rules.gates:
        raise ConfigurationError(
            "composition.mode is gated, and there is no gate",
            hint=f"name one with its least score, as composition.gates: {{{parts[0].name}: 1}}",
        )
    for part in parts:
        gate = rules.gates.get(part.name)
        low, high = part.bounds
        if gate is not None and not low < gate <= high:
            raise ConfigurationError(
                f"composition.gates.{part.name} is {gate:g}, which all of its range [{low:g}, {high:g}] "
                f"{'reaches' if gate <= low else 'misses'}",
                hint="choose a number above the lowest and up to the highest score",
            )
    if all(p.name in rules.gates or not p.weight for p in parts) and len(rules.gates) == 1:
        raise ConfigurationError(
            "composition.mode is gated, and nothing stands behind the gate", hint="add a reward, or set mode to sum"
        )


def _check_signs(parts: Sequence[Part], rules: Rules) -> None:
    for part in parts:
        if part.weight < 0:
            raise ConfigurationError(
                f"reward '{part.name}' has the weight {part.weight:g}, and composition.mode is {rules.mode}",
                hint="give a weight above 0, and turn the reward round (type: rescaled, params: {to: [1, 0]})",
            )
        if rules.mode == "product" and part.weight and part.bounds[0] < 0:
            raise ConfigurationError(
                f"reward '{part.name}' may be {part.bounds[0]:g}, and a product needs numbers from 0 up",
                hint=f"set normalization: minmax for '{part.name}' (a finite range), or a threshold",
            )


def _check_order(parts: Sequence[Part], rules: Rules) -> None:
    if rules.none == "renormalise":
        raise ConfigurationError(
            "composition.none: renormalise has no meaning in a lexicographic order", hint="set it to drop or zero"
        )
    for part in parts:
        low, high = part.bounds
        if part.weight not in (0, 1, -1):
            raise ConfigurationError(
                f"reward '{part.name}' has the weight {part.weight:g}, which a lexicographic order does not use",
                hint="remove the weight (-1 where less is better, 0 to log alone); the order is that of `rewards`",
            )
        if part.weight and not (math.isfinite(low) and math.isfinite(high)):
            raise ConfigurationError(
                f"reward '{part.name}' declares no finite range, which a lexicographic order needs",
                hint="decorate the function with @reward(name, range=(low, high)), or set a threshold",
            )
        if part.weight and rules.none == "zero" and not low <= 0 <= high:
            raise ConfigurationError(
                f"composition.none: zero is outside the range [{low:g}, {high:g}] of '{part.name}'", hint="set drop"
            )


def _scales(parts: Sequence[Part], rules: Rules) -> list[_Scale]:
    """One scale for each part that counts."""
    scales = []
    for i, part in enumerate(parts):
        low, high = part.bounds
        width = rules.tolerance.get(part.name, 1.0 if part.threshold is not None else None)
        if width is None and i < len(parts) - 1:
            raise ConfigurationError(
                f"reward '{part.name}' comes before others in a lexicographic order, and has no tolerance",
                hint=f"say which difference counts, as composition.tolerance: {{{part.name}: {(high - low) / 4:g}}} "
                f"({high - low:g} for a score that is all or nothing)",
            )
        scale = _Scale(low, high, width, part.weight < 0)
        if width is not None and (width <= 0 or scale.levels < 2):
            raise ConfigurationError(
                f"composition.tolerance.{part.name} is {width:g}, which leaves one level of [{low:g}, {high:g}]",
                hint="choose a number above 0 and up to the width of the range",
            )
        scales.append(scale)
    if math.prod(s.levels for s in scales[:-1]) > MOST_LEVELS:
        raise ConfigurationError(
            f"the lexicographic order has more than {MOST_LEVELS} levels, which 32-bit rewards do not tell apart",
            hint="raise composition.tolerance",
        )
    return scales


_MODES: dict[str, Callable[[Sequence[Part], Rules], None]] = {
    "gated": _check_gates,
    "product": _check_signs,
    "min": _check_signs,
    "lexicographic": _check_order,
}
