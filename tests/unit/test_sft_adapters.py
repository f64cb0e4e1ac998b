"""LoRA, rsLoRA and DoRA as their papers say, through our configuration: forward values, what trains, what is saved."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import helpers
import runs
from aligntune.errors import EnvironmentError

IDS = [[5, 6, 7, 8, 9, 10]]


def tuned(model: Path, folder: Path, **peft: Any) -> Any:
    """A run with adapters whose B matrices are not zero."""
    import torch

    trainer = runs.trainer("sft", model, folder, model__peft={"r": 4, "alpha": 8, **peft}, train__learning_rate=1e-2)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    return trainer


def adapted(model: Any) -> dict[str, Any]:
    """Each adapted layer by name."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}


def effective_weight(layer: Any, scale: float, dora: bool) -> Any:
    """W + s B A (Hu et al. 2021, eq. 3), or m (W + s B A) / ||W + s B A|| by output row (Liu et al. 2024, eq. 5)."""
    weight = layer.base_layer.weight + scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    if not dora:
        return weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    return magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("peft", "scale"),
    [({}, 8 / 4), ({"use_rslora": True}, 8 / 4**0.5), ({"use_dora": True}, 8 / 4), ({"r": 16, "use_rslora": True}, 2)],
)
def test_a_layers_output_is_the_papers(peft: dict[str, Any], scale: float, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    model = tuned(tiny_model, tmp_path, **peft).model.eval()
    layers = adapted(model)
    assert len(layers) == 2 * 7
    for name, layer in layers.items():
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(len(name)))
        with torch.no_grad():
            expected = x @ effective_weight(layer, scale, "use_dora" in peft).T
            assert torch.allclose(layer(x), expected, atol=1e-6), name
            assert not torch.allclose(layer(x), layer.base_layer(x), atol=1e-4)


def test_rslora_learns_another_curve_than_lora(tiny_model: Path, tmp_path: Path) -> None:
    curves = {}
    for name, peft in (("lora", {}), ("rslora", {"use_rslora": True}), ("equal", {"use_rslora": True, "alpha": 4})):
        changes = {"model__peft": {"r": 4, "alpha": 8, **peft}, "train__learning_rate": 1e-2}
        trainer = runs.trainer("sft", tiny_model, tmp_path / name, **changes)
        trainer.train()
        curves[name] = runs.logged(trainer.config.output_dir)
    assert curves["lora"] != curves["rslora"]
    assert curves["lora"] == curves["equal"]  # 4 / sqrt(4) = 8 / 4


def test_dora_starts_at_the_model_and_trains_magnitudes(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    plain = runs.trainer("sft", tiny_model, tmp_path / "plain", train__max_steps=1)
    trainer = runs.trainer(
        "sft", tiny_model, tmp_path, model__peft={"r": 4, "use_dora": True}, train__learning_rate=1e-2
    )
    ids = torch.tensor(IDS)
    assert torch.allclose(trainer.model.eval()(ids).logits, plain.model.eval()(ids).logits, atol=1e-6)
    before = {}
    for name, layer in adapted(trainer.model).items():
        before[name] = layer.lora_magnitude_vector["default"].weight.detach().clone()
        assert torch.allclose(before[name], layer.base_layer.weight.norm(dim=1), atol=1e-6)
    trainer.train()
    for name, layer in adapted(trainer._hf.accelerator.unwrap_model(trainer._hf.model)).items():
        assert not torch.equal(layer.lora_magnitude_vector["default"].weight, before[name]), name
    saved = runs.weights(trainer.config.output_dir)
    assert sum("lora_magnitude_vector" in name for name in saved) == len(before)
    losses = runs.logged(trainer.config.output_dir)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("peft", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_saved_adapter_loads_to_the_same_model(peft: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    import torch

    trainer = tuned(tiny_model, tmp_path, **peft)
    trainer.train()
    ids = torch.tensor(IDS)
    again = runs.trainer(
        "sft", Path(trainer.config.output_dir), tmp_path / "again", model__peft={"r": 4, "alpha": 8, **peft}
    )
    with torch.no_grad():
        assert torch.allclose(again.model.eval()(ids).logits, trainer.model.eval()(ids).logits, atol=1e-6)


@pytest.mark.parametrize("peft", [{"use_rslora": True}, {"use_dora": True}])
def test_the_adapter_off_is_the_base_model(peft: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    import torch

    trainer = tuned(tiny_model, tmp_path, **peft)
    base = runs.trainer("sft", tiny_model, tmp_path / "base").model.eval()
    model, ids = trainer.model.eval(), torch.tensor(IDS)
    with torch.no_grad(), model.disable_adapter():
        assert torch.allclose(model(ids).logits, base(ids).logits, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_dora_over_quantised_weights(tmp_path: Path) -> None:
    import torch

    wide = helpers.save_tiny_model(tmp_path / "wide", hidden=64)
    changes = {"model__quantization": "4bit", "model__peft": {"r": 4, "use_dora": True}, "train__learning_rate": 1e-2}
    trainer = runs.trainer("sft", wide, tmp_path, **changes)
    plain = runs.trainer("sft", wide, tmp_path, model__quantization="4bit", model__peft={"r": 4})
    ids = torch.tensor(IDS)
    with torch.no_grad():
        assert torch.allclose(trainer.model.eval()(ids).logits, plain.model.eval()(ids).logits, atol=1e-5)
    trainer.train()
    losses = runs.logged(trainer.config.output_dir)
    assert losses[-1] < losses[0]
    refused = runs.trainer("sft", wide, tmp_path / "eight", **{**changes, "model__quantization": "8bit"})
    with pytest.raises(EnvironmentError, match=r"over which model\.peft\.use_dora fails on the CPU") as caught:
        refused.train()
    assert "4bit" in caught.value.hint
    assert not (tmp_path / "eight" / "out").exists()
