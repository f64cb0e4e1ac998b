"""The settings of supervised tuning on the Unsloth backend: the same first losses as on TRL, and adapters as asked."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from test_unsloth import python

import helpers
import runs

needs_unsloth = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed (see `aligntune info`)"
)
CASES: dict[str, dict[str, Any]] = {
    "dft": {"task__loss": "dft"},
    "neftune": {"task__neftune_noise_alpha": 5.0},
    "dora": {"model__peft": {"r": 4, "alpha": 8, "use_dora": True}},
    "rslora": {"model__peft": {"r": 4, "alpha": 8, "use_rslora": True}},
}
if importlib.util.find_spec("bitsandbytes"):
    CASES["4bit"] = {"model__quantization": "4bit", "model__peft": {"r": 4, "alpha": 8}}
TRAIN = """
    from pathlib import Path
    import runs
    result = {}
    for name, changes in given["cases"].items():
        trainer = runs.trainer(
            "sft", given["model"], Path(given["folder"]) / name, backend="unsloth",
            train__max_steps=2, train__save_steps=2, **changes,
        )
        trainer.train()
        kinds = {type(m).__name__ for m in trainer.model.modules()}
        result[name] = {
            "losses": runs.logged(trainer.config.output_dir),
            "scaling": sorted({m.scaling["default"] for m in trainer.model.modules() if hasattr(m, "scaling")
                               and isinstance(m.scaling, dict)}),
            "4bit": "Linear4bit" in kinds,
            "magnitudes": sum("lora_magnitude_vector" in n for n, p in trainer.model.named_parameters() if p.requires_grad),
            "dtypes": sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}),
            "checkpoint": (Path(trainer.config.output_dir) / "checkpoint-2" / "trainer_state.json").exists(),
        }
"""


@needs_unsloth
def test_losses_and_adapters_equal_those_of_trl(tmp_path: Path) -> None:
    model = helpers.save_tiny_model(tmp_path / "wide", hidden=64)
    theirs = python(TRAIN, tmp_path, model=model, folder=tmp_path / "unsloth", cases=CASES)
    for name, changes in CASES.items():
        ours = runs.trainer("sft", model, tmp_path / "trl" / name, train__max_steps=2, **changes)
        ours.train()
        assert theirs[name]["losses"] == pytest.approx(runs.logged(ours.config.output_dir), abs=1e-5), name
        assert theirs[name]["checkpoint"]
        assert theirs[name]["dtypes"] == ["torch.float32"]
    assert theirs["rslora"]["scaling"] == [8 / 4**0.5]
    assert {name: run["magnitudes"] for name, run in theirs.items() if run["magnitudes"]} == {"dora": 2 * 7}
    if "4bit" in CASES:
        assert theirs["4bit"]["4bit"]
