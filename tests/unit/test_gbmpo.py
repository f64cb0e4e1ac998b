"""GBMPO's divergences and the neural mirror map: references of a few lines, gradients, and what a divergence must be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import runs
from aligntune.algorithms import mirror_map
from aligntune.algorithms.base import get_algorithm, parse_params
from aligntune.algorithms.gbmpo import KEEP_REFERENCE, WEIGHTS, BregmanPlugin, NeuralPlugin, divergence
from aligntune.algorithms.mirror_map import MirrorMap
from aligntune.core.arguments import trainer_arguments
from aligntune.core.config import build_config
from aligntune.core.config.io import effective, notices
from aligntune.errors import ConfigurationError, TrainingError

NAMED = [name for name in WEIGHTS if name != "neural"]


def config(folder: Path, **changes: Any) -> Any:
    raw = runs.plain("grpo", Path("model"), folder, **{"algo__name": "gbmpo", "algo__num_generations": 4, **changes})
    return build_config(raw)


def draws(seed: int = 0, shape: tuple[int, ...] = (4, 7), dtype: Any = torch.float64) -> tuple[Any, Any]:
    """Log-probabilities of policy and reference: some tiny, some near 0, some pairs nearly equal."""
    generator = torch.Generator().manual_seed(seed)
    logps, ref = (-torch.rand(shape, generator=generator, dtype=torch.float64) * 6 for _ in range(2))
    ref[0] = logps[0] + 1e-3 * (ref[0] + 3)  # nearly equal
    logps[1] = logps[1] * 1e-4 - 1e-9  # probabilities near 1
    ref[2] = ref[2] * 4  # probabilities near 0
    return logps.clamp(max=0).to(dtype), ref.clamp(max=0).to(dtype)


# ---- the formulas ----------------------------------------------------------------------------------------------


def named_by_hand(name: str, logps: Any, ref: Any) -> Any:
    p, q, delta = logps.exp(), ref.exp(), logps - ref
    return {
        "prob_l2": p**2 / 2 - q**2 / 2 - q * (p - q),
        "l2": logps**2 / 2 - ref**2 / 2 - ref * delta,
        "generalized_kl": (p * logps - p) - (q * ref - q) - ref * (p - q),
    }[name.replace("2_kl", "2")]


def neural_by_hand(raw: dict[str, Any], logps: Any, ref: Any) -> Any:
    """phi(p) - phi(q) - phi'(q)(p - q), unit by unit."""
    s = [
        lambda u: u**3,
        lambda u: u**2,
        lambda u: u**0.5,
        lambda u: u ** (1 / 3),
        lambda u: (u + 1e-3).log(),
        torch.exp,
    ]
    big = [lambda u: u**4 / 4, lambda u: u**3 / 3, lambda u: u**1.5 / 1.5, lambda u: 0.75 * u ** (4 / 3),
           lambda u: (u + 1e-3) * (u + 1e-3).log() - u, torch.exp]  # fmt: skip
    v, w, b, a, c = (torch.log1p(raw[k].exp()) for k in "vwbac")
    p, q, total = logps.exp(), ref.exp(), 0.0
    for g in range(6):
        for j in range(21):
            x, y = w[g, j] * p + b[g, j], w[g, j] * q + b[g, j]
            total = total + v[g, j] * ((big[g](x) - big[g](y)) / w[g, j] - s[g](y) * (p - q))
    return total + a / 2 * (p - q) ** 2 + c * (p * logps - p - q * ref + q - ref * (p - q))


def value_and_slope(function: Any, logps: Any) -> tuple[Any, Any]:
    given = logps.clone().requires_grad_()
    values = function(given)
    (values * torch.arange(1, values.numel() + 1).reshape(values.shape)).sum().backward()
    return values.detach(), given.grad


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_divergences_and_gradients_equal_the_formula(name: str, seed: int) -> None:
    logps, ref = draws(seed)
    phi = MirrorMap.random(seed)
    ours = phi.divergence if name == "neural" else lambda a, b: divergence(name, a, b)
    hand = (lambda a, b: neural_by_hand(phi.raw, a, b)) if name == "neural" else lambda a, b: named_by_hand(name, a, b)
    mine, expected = (value_and_slope(lambda x, f=f: f(x, ref), logps) for f in (ours, hand))
    assert torch.allclose(mine[0], expected[0], rtol=1e-8, atol=1e-13)
    assert torch.allclose(mine[1], expected[1], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_equal_finite_differences(name: str) -> None:
    logps, ref = (t.reshape(-1)[:12] - 0.01 for t in draws(3))
    phi = MirrorMap.random(5)
    ours = phi.divergence if name == "neural" else lambda a, b: divergence(name, a, b)
    _, slope = value_and_slope(lambda x: ours(x, ref), logps)
    step = 1e-5
    numeric = (ours(logps + step, ref) - ours(logps - step, ref)) / (2 * step)
    assert torch.allclose(slope / torch.arange(1, 13), numeric, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_divergence_is_never_negative_and_zero_at_equality_only(name: str, dtype: Any) -> None:
    for seed in range(4):
        logps, ref = draws(seed, (8, 200), dtype)
        ours = MirrorMap.random(seed).divergence if name == "neural" else lambda a, b: divergence(name, a, b)
        found = ours(logps, ref)
        assert (found >= 0).all()
        apart = (logps.exp() - ref.exp()).abs() > 1e-5
        assert (found[apart] > 0).all()
        given = logps.clone().requires_grad_()
        same = ours(given, logps)
        same.sum().backward()
        assert (same == 0).all()
        assert (given.grad == 0).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_extreme_probabilities_give_finite_values_and_gradients(name: str) -> None:
    ends = torch.tensor([0.0, -1e-7, -1e-3, -1.0, -20.0, -90.0, -300.0])
    logps, ref = torch.cartesian_prod(ends, ends).unbind(1)
    ours = MirrorMap.random(0).divergence if name == "neural" else lambda a, b: divergence(name, a, b)
    given = logps.clone().requires_grad_()
    found = ours(given, ref)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(given.grad).all()
    assert (found >= 0).all()


def test_an_unknown_divergence_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown divergence tv"):
        divergence("tv", torch.zeros(1), torch.zeros(1))
    with pytest.raises(ConfigurationError, match=r"algo\.divergence: input should be 'prob_l2', 'prob_l2_kl'"):
        config(tmp_path, algo__divergence="tv")


# ---- the map -----------------------------------------------------------------------------------------------------


def test_the_map_is_convex_and_its_divergence_is_that_of_its_potential() -> None:
    phi = MirrorMap.random(2)
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    potential = phi.potential(p)
    assert (potential[2:] - 2 * potential[1:-1] + potential[:-2] > 0).all()
    p, q = p[1::2].clone().requires_grad_(), p[1::2].flip(0)
    (slope,) = torch.autograd.grad(phi.potential(q.requires_grad_()).sum(), q)
    expected = phi.potential(p) - phi.potential(q) - slope * (p - q)
    assert torch.allclose(phi.divergence(p.log(), q.log()), expected, rtol=1e-9, atol=1e-12)


def test_the_parameters_keep_their_signs_whatever_the_search_does() -> None:
    generator = torch.Generator().manual_seed(0)
    phi = MirrorMap.from_flat(10 * torch.randn(mirror_map.SIZE, generator=generator, dtype=torch.float64))
    own = phi.parameters(torch.zeros((), dtype=torch.float64))
    assert all((own[k] >= 0).all() for k in "vwbac")
    assert (own["b"] > 0).all()
    logps, ref = draws(0)
    assert (phi.divergence(logps, ref) >= 0).all()


def test_a_map_has_126_units_and_survives_saving(tmp_path: Path) -> None:
    phi = MirrorMap.random(7)
    assert phi.raw["v"].shape == (6, 21)
    assert phi.flat().shape == (mirror_map.SIZE,) == (380,)
    loaded = MirrorMap.load(phi.save(tmp_path / "deep" / "map.safetensors"))
    assert torch.equal(loaded.flat(), phi.flat())
    assert torch.equal(MirrorMap.from_flat(phi.flat().tolist()).flat(), phi.flat())
    assert torch.equal(MirrorMap.random(7).flat(), phi.flat())
    assert not torch.equal(MirrorMap.random(8).flat(), phi.flat())
    assert float(phi.parameters(torch.zeros(()))["v"].mean()) == pytest.approx(1 / 126, rel=0.3)


def test_long_batches_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logps, ref = draws(0)
    whole = MirrorMap.random(0).divergence(logps, ref)
    monkeypatch.setattr(mirror_map, "CHUNK", 5)
    assert torch.equal(MirrorMap.random(0).divergence(logps, ref), whole)


def test_files_that_are_no_maps_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ConfigurationError, match=r"none\.safetensors is not a mirror map"):
        MirrorMap.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello there")
    with pytest.raises(ConfigurationError, match="is not a mirror map"):
        MirrorMap.load(tmp_path / "text.safetensors")
    save_file({"v": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigurationError, match="is not a mirror map: it holds"):
        MirrorMap.load(tmp_path / "other.safetensors")
    raw = MirrorMap.random(0).raw
    path = MirrorMap({**raw, "w": raw["w"] + 1e5}).save(tmp_path / "huge.safetensors")
    with pytest.raises(ConfigurationError, match="not finite"):
        MirrorMap.load(path)


# ---- the plugin --------------------------------------------------------------------------------------------------


def attached(plugin: Any) -> dict[str, list[float]]:
    """Give a plugin a trainer of its own; what it logs."""
    logged: dict[str, list[float]] = {}
    plugin.log = lambda name, value: logged.setdefault(name, []).append(value)
    accelerator = SimpleNamespace(reduce=lambda t, reduction: t, is_main_process=False)
    plugin.trainer = SimpleNamespace(accelerator=accelerator)
    return logged


@pytest.mark.parametrize("name", NAMED)
def test_the_plugin_weighs_the_divergence_and_logs_means_over_counted_tokens(name: str) -> None:
    plugin = BregmanPlugin(name, 0.3, 0.04 if name.endswith("2_kl") else 0.0)
    logged = attached(plugin)
    logps, ref = draws(1)
    mask = (torch.arange(7) < torch.tensor([[7], [3], [1], [5]])).long()
    found = plugin.token_loss(logps, {"ref_per_token_logps": ref, "completion_mask": mask})
    expected = named_by_hand(name, logps, ref)
    assert torch.allclose(found, 0.3 * expected, rtol=1e-8, atol=1e-13)
    assert logged["divergence"] == [pytest.approx(float(expected[mask.bool()].mean()))]
    k3 = (ref - logps).exp() - (ref - logps) - 1
    by_us = [] if name.endswith("2_kl") else [pytest.approx(float(k3[mask.bool()].mean()))]
    assert logged.get("kl", []) == by_us


def test_half_precision_is_widened_first() -> None:
    plugin = BregmanPlugin("l2", 1.0, 0.0)
    attached(plugin)
    logps = torch.full((1, 2), -0.5, dtype=torch.bfloat16)
    found = plugin.token_loss(
        logps, {"ref_per_token_logps": torch.full((1, 2), -0.499), "completion_mask": torch.ones(1, 2)}
    )
    assert found.dtype == torch.float32
    assert found.tolist()[0] == pytest.approx([5e-7] * 2, rel=1e-2)


def test_a_missing_reference_is_told() -> None:
    plugin = BregmanPlugin("l2", 1.0, 0.0)
    attached(plugin)
    with pytest.raises(TrainingError, match="log-probabilities of the reference"):
        plugin.token_loss(torch.zeros(1, 2), {"completion_mask": torch.ones(1, 2)})


# ---- the configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weight"), WEIGHTS.items())
def test_each_divergence_has_its_weight_and_its_kl_term(name: str, weight: float, tmp_path: Path) -> None:
    c = config(tmp_path, algo__divergence=name)
    plugin = c.algo.plugin(c)
    assert (plugin.divergence, plugin.weight) == (name, weight)
    assert weight == (0.1 if name == "prob_l2" else 1e-4)
    assert plugin.loss_beta == (0.04 if name in ("prob_l2_kl", "l2_kl") else 0.0)
    sent = trainer_arguments(c, device="cpu", precision="fp32", output_dir="out")
    assert sent["beta"] == (plugin.loss_beta or KEEP_REFERENCE) > 0
    assert sent["use_bias_correction_kl"] is False
    assert isinstance(plugin, NeuralPlugin) == (name == "neural")
    other = config(tmp_path, algo__divergence=name, algo__divergence_weight=0.7)
    assert other.algo.plugin(other).weight == 0.7


def test_neural_mirror_is_gbmpo_with_the_neural_divergence(tmp_path: Path) -> None:
    path = MirrorMap.random(4).save(tmp_path / "map.safetensors")
    one = config(tmp_path, algo={"name": "neural_mirror", "num_generations": 4, "mirror_path": str(path)})
    two = config(tmp_path, algo__divergence="neural", algo__mirror_path=str(path))
    plugins = [c.algo.plugin(c) for c in (one, two)]
    assert vars(plugins[0]) == vars(plugins[1])
    assert plugins[0].mirror_path == str(path)
    a, b = (trainer_arguments(c, device="cpu", precision="fp32", output_dir="out") for c in (one, two))
    assert a == b


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algo__beta": 0.1}, "algo.beta: has no effect here: prob_l2 has no KL term"),
        ({"algo__divergence": "l2_kl", "algo__beta": 0.0}, "must be above 0 with l2_kl"),
        ({"algo__mirror_path": "map.safetensors"}, "prob_l2 has no neural map"),
        ({"algo__divergence": "neural", "algo__mirror_path": "/nowhere/map"}, "there is no file /nowhere/map"),
        ({"algo__divergence_weight": 0.0}, "greater than 0"),
        ({"algo": {"name": "neural_mirror", "beta": 0.1}}, "algo.beta"),
        ({"algo": {"name": "neural_mirror", "divergence": "l2"}}, "algo.divergence"),
    ],
)
def test_what_has_no_effect_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(tmp_path, **changes)
    assert words in f"{caught.value.message}; {caught.value.hint}"


@pytest.mark.parametrize(
    ("old", "name", "kind"),
    [
        ("gbmpo_l2", "gbmpo", "l2"),
        ("gbmpo_l2kl", "gbmpo", "l2_kl"),
        ("gbmpo_probl2", "gbmpo", "prob_l2"),
        ("gbmpo_probl2kl", "gbmpo", "prob_l2_kl"),
        ("nmgrpo", "neural_mirror", None),
    ],
)
def test_old_names_stand_for_today_s_with_their_parameters(old: str, name: str, kind: Any, tmp_path: Path) -> None:
    cls, given = parse_params(old, "rl")
    assert cls is get_algorithm(name) is get_algorithm(old)
    assert given == ({"divergence": kind} if kind else {})
    c = config(tmp_path, algo={"name": old, "num_generations": 2})
    assert c.algo.key == name
    assert getattr(c.algo, "divergence", None) == kind
    assert effective(c)["algo"]["name"] == name
    (line,) = notices({"algo": {"name": old}})
    assert line.startswith(f"'{old}' is now called '{name}'")
    assert kind is None or line.endswith(f"with divergence: {kind}")


def test_the_notice_is_printed_wherever_the_old_name_stands(tmp_path: Path, cli: Any) -> None:
    from aligntune.core.backend_factory import create_rl_trainer

    raw = runs.plain("grpo", Path("model"), tmp_path)
    file = tmp_path / "run.yaml"
    line = "note: 'gbmpo_l2kl' is now called 'gbmpo' with divergence: l2_kl\n"
    file.write_text(json.dumps({**raw, "algo": {"name": "gbmpo_l2kl", "num_generations": 4}}))
    assert cli("train", file, "--dry-run").err == line
    file.write_text(json.dumps(raw))
    for arguments in (["--algorithm", "gbmpo_l2kl"], ["algo=gbmpo_l2kl"], ["algo.name=gbmpo_l2kl"]):
        ran = cli("train", file, *arguments, "train.per_device_batch_size=8", "--dry-run")
        assert (ran.code, ran.err) == (0, line)
    with pytest.warns(FutureWarning, match="'gbmpo_l2kl' is now called 'gbmpo' with divergence: l2_kl"):
        made = create_rl_trainer(file, algorithm="gbmpo_l2kl", batch_size=8)
    assert (type(made).__name__, made.config.algo.divergence) == ("TRLGBMPOTrainer", "l2_kl")


def test_the_trainers_have_their_names() -> None:
    import aligntune.backends.trl as trl
    import aligntune.backends.unsloth as unsloth

    for name in ("GBMPO", "NeuralMirror", "MetaES"):
        assert getattr(trl, f"TRL{name}Trainer").__name__ == f"TRL{name}Trainer"
        assert getattr(unsloth, f"Unsloth{name}Trainer").__name__ == f"Unsloth{name}Trainer"


def test_an_old_name_cannot_be_turned_into_another_divergence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(tmp_path, algo={"name": "gbmpo_l2", "divergence": "prob_l2"})
    assert "stands for gbmpo with divergence: l2" in caught.value.message
    assert "write `name: gbmpo`" in caught.value.hint


def test_the_resolved_configuration_loads_again(tmp_path: Path) -> None:
    for name in WEIGHTS:
        c = config(tmp_path, algo__divergence=name)
        assert build_config(effective(c)).algo == c.algo
    assert math.isclose(config(tmp_path, algo__divergence="l2_kl").algo.beta, 0.04)
