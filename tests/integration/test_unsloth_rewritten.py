"""A probe of Unsloth's rewritten trainers, which it uses on a GPU: they call our hooks, and compute what TRL's compute.

Unsloth's own patching is switched on without a GPU, and the model is a plain one with two dummy methods, so this is no
training on Unsloth: it shows that the rewritten class calls what the layer overrides, that a loss of ours changes the
loss through a forward pass of the backend (the rewritten class keeps its log-probabilities to itself), that values per
token stand where its loss expects them, and that no setting is changed on the way.
"""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_unsloth import needs_unsloth, python

from aligntune.quickstart import BASE_MODEL
from aligntune.quickstart.problems import write_datasets

needs_patching = pytest.mark.skipif(
    importlib.util.find_spec("PIL") is None, reason="Unsloth's patching for GPUs imports pillow"
)
PATCHED = """
    import os
    from pathlib import Path

    os.environ.update(UNSLOTH_ALLOW_CPU="1", UNSLOTH_COMPILE_DISABLE="1", UNSLOTH_DISABLE_STATISTICS="1")
    os.environ.update(UNSLOTH_GRPO_SEQ_PACKING="0", UNSLOTH_DISABLE_AUTO_PADDING_FREE="1")
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(given["folder"]) / "cache")
    import unsloth
    import unsloth.trainer
    from unsloth.models import rl

    os.environ.pop("UNSLOTH_ALLOW_CPU")
    rl.PatchFastRL()
    unsloth.trainer._patch_trl_trainer()
"""
"""A plain model would read several sequences in one row as one, so that packing of them is off."""
PROBE = (
    PATCHED
    + """
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aligntune.algorithms.plugin import Plugin
    from aligntune.backends.unsloth.backend import UnslothBackend
    from aligntune.core.rl.layer import layered

    rows = Dataset.from_list([{"prompt": f"Say {i}"} for i in range(8)])
    tokenizer = AutoTokenizer.from_pretrained(given["model"])

    def run(scale):
        called, passes, backend = set(), [], UnslothBackend()
        plain = backend.per_token_logps

        class Adds(Plugin):
            def rollout(self, generate, rows):
                called.add("rollout")
                return generate(rows)

            def advantages(self, rewards, out):
                called.add("advantages")
                return out["advantages"]

            def micro_batch(self, inputs):
                called.add("micro_batch")
                return inputs

            def token_loss(self, logps, inputs):
                called.add("token_loss")
                return scale + 0.0 * logps

        backend.per_token_logps = lambda *a: (passes.append(1), plain(*a))[1]
        model = AutoModelForCausalLM.from_pretrained(given["model"])
        for name in ("for_training", "for_inference"):
            setattr(type(model), name, lambda self, *a, **k: self)
        args = trl.GRPOConfig(
            output_dir=str(Path(given["folder"]) / "out"), per_device_train_batch_size=4, num_generations=4,
            gradient_accumulation_steps=1, steps_per_generation=1, max_steps=1, max_completion_length=8, beta=0.0,
            loss_type="grpo", logging_steps=1, report_to="none", use_cpu=True, bf16=False, fp16=False,
            optim="adamw_torch", save_strategy="no", gradient_checkpointing=False, seed=3, disable_tqdm=True,
        )
        reward = lambda completions, **columns: [float(len(c)) for c in completions]
        hf = layered(trl.GRPOTrainer)(
            model=model, args=args, train_dataset=rows, processing_class=tokenizer, reward_funcs=[reward]
        )
        hf.attach(Adds(), None, backend)
        hf.train()
        return {"loss": hf.state.log_history[0]["loss"], "called": sorted(called), "passes": len(passes)}

    result = {"class": trl.GRPOTrainer.__module__, "without": run(0.0), "with": run(5.0)}
"""
)
TRAIN = """
    from pathlib import Path
    from aligntune.core.backend_factory import create_trainer
    from aligntune.utils.files import read_lines

    result = {}
    for name, values in given["runs"].items():
        trainer = create_trainer(values)
        trainer.train()
        rows = [row for row in read_lines(Path(values["output_dir"]) / "metrics.jsonl") if "loss" in row]
        result[name] = {
            "class": [kind.__module__ for kind in type(trainer._hf).__mro__],
            "fp16": trainer._hf.args.fp16, "bf16": trainer._hf.args.bf16,
            **{key: [row[key] for row in rows] for key in ("loss", "grad_norm")},
        }
"""
PLAIN_MODEL = """
    from aligntune.backends.unsloth.backend import UnslothBackend, settle_precision
    from aligntune.utils.model_loader import ModelLoader

    def load_model(self, config):
        loaded = ModelLoader(config.model, training=True, seed=config.train.seed).load()
        for name in ("for_training", "for_inference"):
            setattr(type(loaded.model), name, lambda self, *a, **k: self)
        settle_precision(config.model.precision)
        return loaded

    UnslothBackend.load_model = load_model
"""
POLICY = ("grpo", "gbmpo", "rloo", "online_dpo", "ppo", "reinforce_pp", "counterfactual_grpo", "neural_mirror")


def configurations(folder: Path, backend: str) -> dict[str, dict[str, Any]]:
    """Two steps of every kind of loss, in fp32, on a model that has learned to end its answers."""
    small = {"sft": 60, "rl": 60, "pairs_train": 60, "pairs_test": 4, "test": 4}
    files = write_datasets(folder / f"data-{backend}", sizes=small)
    rows = [json.loads(line) for line in files["sft"].read_text(encoding="utf-8").splitlines()]
    pairs = folder / f"pairs-{backend}.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}) + "\n"
            for a, b in pairwise(rows)
        ),
        encoding="utf-8",
    )
    common = {
        "backend": backend,
        "model": {"name_or_path": str(BASE_MODEL), "max_seq_length": 128, "precision": "fp32", "peft": {"r": 4}},
        "train": {"max_steps": 2, "per_device_batch_size": 8, "learning_rate": 1e-3, "seed": 3},
        "logging": {"steps": 1},
    }
    made: dict[str, dict[str, Any]] = {
        "sft": {"task": {"name": "instruction_following"}, "dataset": {"name": str(files["sft"])}},
        "dpo": {"algo": {"name": "dpo"}, "datasets": [{"name": str(pairs)}]},
    }
    for name in POLICY:
        many = {} if name == "online_dpo" else {"num_generations": 4}
        made[name] = {
            "algo": {"name": name, **(many if name != "ppo" else {})},
            "datasets": [{"name": str(files["rl"])}],
            "rewards": [{"type": "math_correctness"}, {"type": "length", "weight": 0.1}],
            "generation": {"max_prompt_length": 40, "max_completion_length": 24},
        }
    return {k: {**common, **v, "output_dir": str(folder / f"{k}-{backend}")} for k, v in made.items()}


@pytest.mark.slow
@needs_unsloth
@needs_patching
def test_the_rewritten_trainers_compute_what_those_of_trl_compute(tmp_path: Path) -> None:
    """Prompts differ in length, so that the rewritten class moves padding; fp32 stays fp32 there."""
    stock = python(TRAIN, tmp_path, runs=configurations(tmp_path, "trl"))
    code = PATCHED + PLAIN_MODEL + TRAIN
    rewritten = python(code, tmp_path, folder=tmp_path, runs=configurations(tmp_path, "unsloth"))
    assert set(rewritten) == set(stock) == {"sft", "dpo", *POLICY}
    for name, found in rewritten.items():
        assert any(module.startswith("Unsloth") for module in found["class"]), name
        assert not any(module.startswith("Unsloth") for module in stock[name]["class"]), name
        assert (found["fp16"], found["bf16"]) == (False, False), name
        assert found["loss"] == pytest.approx(stock[name]["loss"], rel=1e-3, abs=1e-5), name
        assert found["grad_norm"] == pytest.approx(stock[name]["grad_norm"], rel=2e-3, abs=1e-5), name


@pytest.mark.slow
@needs_unsloth
@needs_patching
def test_the_rewritten_trainer_calls_the_hooks(tiny_model: Path, tmp_path: Path) -> None:
    found = python(PROBE, tmp_path, model=tiny_model, folder=tmp_path)
    assert found["class"] == "UnslothGRPOTrainer"
    for run in (found["without"], found["with"]):
        assert run["called"] == ["advantages", "micro_batch", "rollout", "token_loss"]
        assert run["passes"] == 1
    assert float(found["with"]["loss"]) - float(found["without"]["loss"]) == pytest.approx(5.0, abs=1e-4)
