"""The neural mirror map: a convex function of a probability with 126 units, and its Bregman divergence.

    phi(p) = sum_j v_j H_j(p) + (a / 2) p^2 + c (p log p - p),   H_j'(p) = s_j(u_j),   u_j = w_j p + b_j

Six groups of 21 units have s(u) = u^3, u^2, sqrt(u), cbrt(u), log(u + 1e-3) and exp(u). Each s is increasing for u > 0
and v, w, a, c >= 0, b > 0 hold by a softplus, so phi is convex and D(p, q) = phi(p) - phi(q) - phi'(q) (p - q) >= 0,
with D = 0 only for p = q.

>>> phi = MirrorMap.random(seed=0)
>>> phi.divergence(torch.tensor([-0.1]), torch.tensor([-0.5]))     # from log-probabilities
>>> phi.save(Path("map.safetensors"))

D is never computed as a difference of potentials, which cancels where p is near q: each unit's share is written as
v w (p - q)^2 K(u_p, u_q) with a K > 0 in closed form.

Source: the units of Alfano et al. (arXiv:2402.05187), on token probabilities as in arXiv:2602.04380. The distribution
of a map drawn at random is a choice of ours. The map does not learn by gradient, which would make it 0; `meta_es`
searches for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError

GROUPS = ("cube", "square", "sqrt", "cbrt", "log", "exp")
"""The increasing functions s, in the order of a map's rows."""
UNITS = 21
"""Units of each group."""
SHIFT = 1e-3
"""Added to u inside the logarithm."""
SHAPES = {"v": (len(GROUPS), UNITS), "w": (len(GROUPS), UNITS), "b": (len(GROUPS), UNITS), "a": (), "c": ()}
"""Names and shapes of the parameters, in the order of `MirrorMap.flat`."""
SIZE = 3 * len(GROUPS) * UNITS + 2
"""Numbers that a map consists of."""
CHUNK = 1 << 15
"""Tokens per pass, which bounds the memory of the (tokens, units) tensors."""
SMALL = 0.05
"""Below this size of an argument, a series takes the place of a formula that cancels."""


@dataclass(frozen=True)
class MirrorMap:
    """A mirror map.

    Attributes:
        raw: the parameters before the softplus, as float64 tensors of `SHAPES`.
    """

    raw: dict[str, Any]

    @classmethod
    def random(cls, seed: int) -> MirrorMap:
        """A map drawn from `seed`: each unit's factor near 1/126, slopes and offsets of the order of 1."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        share = torch.tensor(1.0 / (len(GROUPS) * UNITS), dtype=torch.float64).expm1().log()  # softplus gives it back
        v, w, b = (torch.randn(SHAPES[k], generator=generator, dtype=torch.float64) for k in "vwb")
        return cls({"v": share + 0.5 * v, "w": w, "b": b, "a": share.clone(), "c": share.clone()})

    @classmethod
    def from_flat(cls, values: Any) -> MirrorMap:
        """The map of a vector of `SIZE` numbers, in the order of `flat`."""
        import math

        import torch

        sizes = [math.prod(shape) for shape in SHAPES.values()]
        parts = torch.as_tensor(values, dtype=torch.float64).split(sizes)
        return cls({k: p.reshape(shape).clone() for (k, shape), p in zip(SHAPES.items(), parts, strict=True)})

    def flat(self) -> Any:
        """All parameters as one float64 vector, (`SIZE`,)."""
        import torch

        return torch.cat([self.raw[k].reshape(-1) for k in SHAPES])

    @classmethod
    def load(cls, path: str | Path) -> MirrorMap:
        """Read a map that `save` wrote.

        Raises:
            ConfigurationError: no such file, another content, or numbers that are not finite on [0, 1].
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            raw = {k: v.double() for k, v in load_file(path).items()}
        except (OSError, SafetensorError) as e:
            raise ConfigurationError(
                f"{path} is not a mirror map: {e}", hint="a run with a neural map writes mirror/map.safetensors"
            ) from e
        found = {k: tuple(v.shape) for k, v in raw.items()}
        if found != SHAPES:
            raise ConfigurationError(f"{path} is not a mirror map: it holds {found}", hint=f"one has {SHAPES}")
        made = cls(raw)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        if not bool(torch.isfinite(made.potential(ends)).all()):
            raise ConfigurationError(
                f"{path} is not finite on the probabilities 0 to 1", hint="take another map, or leave mirror_path out"
            )
        return made

    def save(self, path: Path) -> Path:
        """Write the parameters as safetensors; returns the path."""
        from safetensors.torch import save

        from aligntune.registry import import_attribute

        path.parent.mkdir(parents=True, exist_ok=True)
        import_attribute("aligntune.utils.files:write_atomic")(
            path, save({k: v.contiguous() for k, v in self.raw.items()})
        )
        return path

    def parameters(self, like: Any) -> dict[str, Any]:
        """v, w, b, a, c after the softplus, in the type and on the device of `like`."""
        from torch.nn.functional import softplus

        return {k: softplus(value).to(like) for k, value in self.raw.items()}

    def potential(self, p: Any) -> Any:
        """phi(p) for probabilities in [0, 1], in the shape of `p`."""
        import torch

        own = self.parameters(p)
        u = own["w"] * p[..., None, None] + own["b"]  # (..., 6, 21)
        x = u[..., 4, :] + SHIFT
        integrals = [
            u[..., 0, :] ** 4 / 4,
            u[..., 1, :] ** 3 / 3,
            u[..., 2, :] ** 1.5 * 2 / 3,
            u[..., 3, :] ** (4 / 3) * 3 / 4,
            x * x.log() - x,
            u[..., 5, :].exp(),
        ]
        units = (own["v"] / own["w"] * torch.stack(integrals, dim=-2)).sum((-1, -2))
        return units + own["a"] / 2 * p**2 + own["c"] * (torch.special.xlogy(p, p) - p)

    def divergence(self, logps: Any, ref_logps: Any) -> Any:
        """D(p, q) of p = exp(logps) and q = exp(ref_logps), with its gradient with respect to `logps`.

        Args:
            logps: log-probabilities, at most 0.
            ref_logps: those of the reference, in the same shape.
        """
        import torch

        with torch.no_grad():
            one, two = logps.detach().reshape(-1), ref_logps.detach().reshape(-1)
            parts = [self._parts(a, b) for a, b in zip(one.split(CHUNK), two.split(CHUNK), strict=True)]
            value, slope = (torch.cat([part[i] for part in parts]).reshape(logps.shape) for i in (0, 1))
        return with_slope(value, slope, logps)

    def _parts(self, logps: Any, ref_logps: Any) -> tuple[Any, Any]:
        """D and its derivative with respect to log p, for vectors of log-probabilities."""
        own = self.parameters(logps)
        p, q = logps.exp(), ref_logps.exp()
        d = p - q
        value, slope = own["a"] / 2 * d**2, own["a"] * d + own["c"] * (logps - ref_logps)
        value = value + own["c"] * entropy_divergence(logps, ref_logps)
        for i, group in enumerate(GROUPS):
            v, w, b = (own[k][i] for k in "vwb")
            x, y, step = w * p[:, None] + b, w * q[:, None] + b, w * d[:, None]
            curve, rise = _UNITS[group](x, y, step)
            value = value + d**2 * (v * w * curve).sum(-1)
            slope = slope + (v * rise).sum(-1)
        return value, p * slope


def with_slope(value: Any, slope: Any, logps: Any) -> Any:
    """`value`, with the gradient `slope` with respect to `logps`; both were computed without one."""
    return value + slope * (logps - logps.detach())


def entropy_divergence(logps: Any, ref_logps: Any) -> Any:
    """p log(p / q) - p + q, without gradient; its derivative with respect to log p is p log(p / q)."""
    import torch

    delta = logps - ref_logps
    p, q = logps.exp(), ref_logps.exp()
    near = delta.clamp(-SMALL, SMALL)
    return torch.where(delta.abs() < SMALL, p * near**2 * _exp_rest(-near), p * delta - p + q)


# Each function takes x = u(p), y = u(q) and step = x - y = w (p - q). With S the antiderivative of s it returns
# K = (S(x) - S(y) - s(y) step) / step^2, which is positive, and the rise s(x) - s(y).


def _cube(x: Any, y: Any, step: Any) -> tuple[Any, Any]:
    return (x**2 + 2 * x * y + 3 * y**2) / 4, step * (x**2 + x * y + y**2)


def _square(x: Any, y: Any, step: Any) -> tuple[Any, Any]:
    return (x + 2 * y) / 3, step * (x + y)


def _sqrt(x: Any, y: Any, step: Any) -> tuple[Any, Any]:
    r, s = x.sqrt(), y.sqrt()
    return (2 * r + s) / (3 * (r + s) ** 2), step / (r + s)


def _cbrt(x: Any, y: Any, step: Any) -> tuple[Any, Any]:
    r, s = x ** (1 / 3), y ** (1 / 3)
    whole = r**2 + r * s + s**2
    return (3 * r**2 + 2 * r * s + s**2) / (4 * whole**2), step / whole


def _log(x: Any, y: Any, step: Any) -> tuple[Any, Any]:
    share = step / (y + SHIFT)
    return _log_rest(share) / (y + SHIFT), share.log1p()


def _exp(x: Any, y: Any, step: Any) -> tuple[Any, Any]:
    return y.exp() * _exp_rest(step), y.exp() * step.expm1()


_UNITS = dict(zip(GROUPS, (_cube, _square, _sqrt, _cbrt, _log, _exp), strict=True))


def _exp_rest(t: Any) -> Any:
    """(exp(t) - 1 - t) / t^2, which is 1/2 at 0."""
    import math

    return _or_series(t, (t.expm1() - t) / t**2, [1 / math.factorial(n + 2) for n in range(8)])


def _log_rest(t: Any) -> Any:
    """((1 + t) log(1 + t) - t) / t^2 for t > -1, which is 1/2 at 0."""
    return _or_series(t, ((1 + t) * t.log1p() - t) / t**2, [(-1) ** n / ((n + 1) * (n + 2)) for n in range(9)])


def _or_series(t: Any, formula: Any, coefficients: list[float]) -> Any:
    """The formula, and where it cancels the power series with these coefficients."""
    import torch

    series = torch.zeros_like(t)
    for coefficient in reversed(coefficients):
        series = series * t + coefficient
    return torch.where(t.abs() < SMALL, series, formula)
