"""Adapters merged into 16-bit weights: the merged model answers as the adapters do, on both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_unsloth import needs_unsloth, python

import helpers
import runs
from aligntune.errors import ConfigurationError

LORA = {"r": 8, "alpha": 16}
CHANGES: dict[str, Any] = {"model__peft": LORA, "train__max_steps": 3, "train__learning_rate": 1e-2}


def logits(folder: Path) -> Any:
    """The model's output on fixed tokens, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(5, 37).unsqueeze(0)).logits


def gaps(merged: Path, run: Any, base: Path) -> tuple[float, float]:
    """Largest difference of the merged model's logits to those with the adapter, and of the base model's."""
    import torch

    model = run.model.eval()
    with torch.no_grad():
        adapted = model(torch.arange(5, 37).unsqueeze(0)).logits.float()
    return float((logits(merged) - adapted).abs().max()), float((logits(base) - adapted).abs().max())


def test_merged_weights_are_the_model_and_its_adapters(tiny_model: Path, tmp_path: Path) -> None:
    run = runs.trainer("sft", tiny_model, tmp_path, **CHANGES)
    run.train()
    folder = run.save_merged(tmp_path / "merged")
    close, far = gaps(folder, run, tiny_model)
    assert close < 0.02 < 0.1 < far  # bf16 rounds to 3 digits; the adapters matter
    saved = runs.weights(folder)
    assert {str(w.dtype) for w in saved.values()} == {"torch.bfloat16"}
    assert not any("lora" in name for name in saved)
    assert hasattr(run.model, "peft_config")  # the model in training keeps its adapters
    assert sorted(p.name for p in tmp_path.glob(".merging-*")) == []
    again = runs.trainer("sft", folder, tmp_path / "again", train__max_steps=1)
    assert again.train().total_steps == 1
    with pytest.raises(ConfigurationError, match="holds something already"):
        run.save_merged(folder)


def test_quantised_weights_are_merged_into_those_that_were_quantised(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = helpers.save_tiny_model(tmp_path / "base", hidden=64)
    run = runs.trainer("sft", base, tmp_path, model__quantization="4bit", **CHANGES)
    run.train()
    folder = run.save_merged(tmp_path / "merged")
    close, far = gaps(folder, run, base)
    assert close < far / 2
    assert {str(w.dtype) for w in runs.weights(folder).values()} == {"torch.bfloat16"}


def test_there_is_nothing_to_merge_without_adapters(tiny_model: Path, tmp_path: Path) -> None:
    run = runs.trainer("sft", tiny_model, tmp_path)
    with pytest.raises(ConfigurationError, match="nothing to merge"):
        run.save_merged(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


MERGE = """
    from pathlib import Path
    import runs
    folder = Path(given["folder"])
    trainer = runs.trainer("sft", given["model"], folder, backend="unsloth", **given["changes"])
    trainer.train()
    merged = trainer.save_merged(folder / "merged")
    import torch
    with torch.no_grad():
        logits = trainer.model.eval()(torch.arange(5, 37).unsqueeze(0)).logits.float()
    result = {"merged": str(merged), "logits": logits.tolist(), "beside": sorted(p.name for p in Path(".").iterdir())}
    if "quantised" in given:
        from aligntune.errors import EnvironmentError
        other = runs.trainer("sft", given["quantised"], folder / "4bit", backend="unsloth", model__quantization="4bit",
                             **given["changes"])
        other.train()
        try:
            other.save_merged(folder / "not")
            result["refused"] = ""
        except EnvironmentError as error:
            result["refused"] = f"{error.message} | {error.hint}"
        result["left"] = (folder / "not").exists()
"""


@needs_unsloth
@pytest.mark.slow
def test_unsloth_merges_too(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    work = tmp_path / "work"
    work.mkdir()
    more = {"quantised": helpers.save_tiny_model(tmp_path / "wide", hidden=64)} if _bitsandbytes() else {}
    found = python(MERGE, work, model=tiny_model, folder=tmp_path / "run", changes=CHANGES, **more)
    gap = float((logits(Path(found["merged"])) - torch.tensor(found["logits"])).abs().max())
    assert gap < 0.02
    assert {str(w.dtype) for w in runs.weights(found["merged"]).values()} <= {"torch.bfloat16", "torch.float16"}
    assert found["beside"] == []
    if more:
        assert "cannot merge these adapters on this machine" in found["refused"]
        assert not found["left"]


def _bitsandbytes() -> bool:
    import importlib.util

    return importlib.util.find_spec("bitsandbytes") is not None
