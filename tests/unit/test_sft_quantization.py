"""Weights in 4 and 8 bit on the CPU: adapters learn over them with the right gradients, and nothing falls back."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest

import helpers
import runs
from aligntune.errors import ConfigurationError, EnvironmentError, TrainingError
from aligntune.utils.quantization import check_quantization, kept_adapters, quantized_layers, settle_quantized

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install bitsandbytes"
)
KINDS = ["4bit", "8bit"]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 and 128 numbers, which are whole blocks."""
    return helpers.save_tiny_model(tmp_path_factory.mktemp("models") / "wide", hidden=64)


SPANS = {"model__peft": {"r": 4, "alpha": 8}, "train__learning_rate": 1e-2}


def quantized(kind: str, model: Path, folder: Path, what: str = "sft", **changes: Any) -> Any:
    return runs.trainer(what, model, folder, **{**SPANS, "model__quantization": kind, **changes})


def dequantized(layer: Any, kind: str) -> Any:
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    if kind == "4bit":
        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return int8_vectorwise_dequant(layer.weight.CB, layer.weight.SCB)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapters_gradients_are_those_over_the_dequantised_weights(
    kind: str, wide_model: Path, tmp_path: Path
) -> None:
    import torch

    trainer, plain = (quantized(k, wide_model, tmp_path / str(k)) for k in (kind, None))
    mine, other = trainer.model.train(), plain.model.train()
    names = dict(other.named_modules())
    assert len(quantized_layers(mine, kind)) == 2 * 7
    with torch.no_grad():
        for name, module in mine.named_modules():
            if module in quantized_layers(mine, kind):
                values = dequantized(module, kind).to(torch.float32)
                stored = names[name].weight
                assert 0 < float((values - stored).norm() / stored.norm()) < {"4bit": 0.1, "8bit": 0.015}[kind]
                stored.copy_(values)
        for (name, a), (_, b) in zip(mine.named_parameters(), other.named_parameters(), strict=True):
            if "lora_B" in name:
                b.copy_(a.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(name))))
    ids = torch.arange(2, 34).reshape(2, 16)
    losses = [model(input_ids=ids, labels=ids).loss for model in (mine, other)]
    for loss in losses:
        loss.backward()
    # 8 bit rounds activations too (vector-wise, 1 part in 254).
    tolerance = {"4bit": 1e-5, "8bit": 3e-2}[kind]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=tolerance / 10)
    grads = dict(other.named_parameters())
    for name, weight in mine.named_parameters():
        if weight.requires_grad:
            expected = grads[name].grad
            assert float((weight.grad - expected).norm() / expected.norm()) < tolerance, name


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_with_adapters_in_fp32_and_frozen_integers(kind: str, wide_model: Path, tmp_path: Path) -> None:
    import torch

    trainer = quantized(kind, wide_model, tmp_path, train__max_steps=8)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    losses = runs.logged(trainer.config.output_dir)
    assert losses[-1] < losses[0] - 0.15
    after = dict(trainer.model.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert all("lora_" in n for n in moved)
    assert {str(after[n].dtype) for n in moved} == {"torch.float32"}
    stored = {str(p.dtype) for n, p in after.items() if "base_layer" in n}
    assert stored == {"torch.uint8" if kind == "4bit" else "torch.int8"}
    saved = runs.weights(trainer.config.output_dir)
    assert saved
    assert all("lora_" in n for n in saved)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_in_between_changes_nothing(kind: str, wide_model: Path, tmp_path: Path) -> None:
    """bitsandbytes rearranges 4-bit weights in a forward pass without gradient on some CPUs, which breaks training."""
    data = {"name": str(runs.write_rows(tmp_path / "held.jsonl", runs.SFT_ROWS[:5]))}
    straight = quantized(kind, wide_model, tmp_path / "a")
    straight.train()
    watched = quantized(kind, wide_model, tmp_path / "b", evaluation={"dataset": data, "every": 1, "max_new_tokens": 2})
    watched.train()
    assert runs.logged(watched.config.output_dir) == runs.logged(straight.config.output_dir)
    assert runs.same_weights(watched.config.output_dir, straight.config.output_dir)


@needs_bitsandbytes
def test_dpo_over_four_bits_starts_at_the_logarithm_of_two(wide_model: Path, tmp_path: Path) -> None:
    import math

    trainer = quantized("4bit", wide_model, tmp_path, "dpo", train__max_steps=2)
    trainer.train()
    losses = runs.logged(trainer.config.output_dir)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[1] < losses[0]


@needs_bitsandbytes
def test_the_layout_that_cannot_be_trained_is_switched_off(wide_model: Path, tmp_path: Path) -> None:
    model = quantized("4bit", wide_model, tmp_path).model
    assert {getattr(m, "support_avx512bf16_for_cpu", False) for m in quantized_layers(model, "4bit")} == {False}


@needs_bitsandbytes
def test_four_bits_are_read_rightly_where_we_allow_them() -> None:
    """NF4's error on normal numbers is 0.09 of their norm; the kernel of the CPU errs by more in narrow rows."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for rows, columns in ((7, 64), (64, 128), (100, 192), (32, 4864)):
        values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.02
        found = dequantize_4bit(*quantize_4bit(values, quant_type="nf4"))
        assert float((found - values).norm() / values.norm()) < 0.105


@needs_bitsandbytes
def test_four_bits_in_narrow_rows_are_refused_on_the_cpu(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError, match="a multiple of 64: this model has one of 32") as caught:
        _ = quantized("4bit", tiny_model, tmp_path).model
    assert "8bit" in caught.value.hint
    assert len(quantized_layers(quantized("8bit", tiny_model, tmp_path).model, "8bit")) == 14


def test_a_model_that_was_not_quantised_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = runs.trainer("sft", tiny_model, tmp_path).model
    for kind in KINDS:
        with pytest.raises(TrainingError, match="no layer of LlamaForCausalLM was quantised"):
            settle_quantized(model, kind)


def test_what_a_machine_lacks_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentError, match="runs on CUDA GPUs and on the CPU, and this run is on Apple GPU"):
        check_quantization("4bit", "mps", "Apple GPU")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    for device in ("cpu", "cuda"):
        with pytest.raises(EnvironmentError, match="needs the bitsandbytes package") as caught:
            check_quantization("8bit", device, "the CPU")
        assert caught.value.hint == "run `pip install bitsandbytes==0.50.2`"
        assert caught.value.exit_code == 3
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.49.2.dev0")
    check_quantization("4bit", "cuda", "a GPU")
    with pytest.raises(EnvironmentError, match=r"on the CPU needs bitsandbytes 0\.50\.2 or newer, and 0\.49\.2\.dev0"):
        check_quantization("4bit", "cpu", "the CPU")
    for enough in ("0.50.2", "0.51.0rc1", "1.0"):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, v=enough: v)
        check_quantization("4bit", "cpu", "the CPU")


def test_quantised_weights_without_adapters_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.quantization.*needs adapters"):
        runs.trainer("sft", tiny_model, tmp_path, model__quantization="4bit")


def test_adapters_come_back_as_they_were(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    model = runs.trainer("sft", tiny_model, tmp_path, **SPANS).model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for quantised in (True, False):
        with kept_adapters(model, quantised):
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.data = weight.data.to(torch.bfloat16)
        dtypes = {str(p.dtype) for p in model.parameters() if p.requires_grad}
        assert dtypes == {"torch.float32" if quantised else "torch.bfloat16"}
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters()) == quantised
