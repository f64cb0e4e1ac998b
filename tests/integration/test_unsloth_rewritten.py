"""A probe of Unsloth's rewritten GRPOTrainer, which it uses on a GPU: the layer's hooks are called there too.

Unsloth's own patching is switched on without a GPU, and the model gets two dummy methods, so this is no training on
Unsloth: it shows only that the rewritten class calls what the layer overrides, and that a loss of ours changes the loss
through a forward pass of the backend (the rewritten class keeps its log-probabilities to itself).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from test_unsloth import needs_unsloth, python

PROBE = """
    import os
    from pathlib import Path

    os.environ.update(UNSLOTH_ALLOW_CPU="1", UNSLOTH_COMPILE_DISABLE="1", UNSLOTH_DISABLE_STATISTICS="1")
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(given["folder"]) / "cache")
    import unsloth
    import unsloth.trainer
    from unsloth.models import rl

    os.environ.pop("UNSLOTH_ALLOW_CPU")
    rl.PatchFastRL()
    unsloth.trainer._patch_trl_trainer()
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


@pytest.mark.slow
@needs_unsloth
@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Unsloth's patching for GPUs imports pillow")
def test_the_rewritten_trainer_calls_the_hooks(tiny_model: Path, tmp_path: Path) -> None:
    found = python(PROBE, tmp_path, model=tiny_model, folder=tmp_path)
    assert found["class"] == "UnslothGRPOTrainer"
    for run in (found["without"], found["with"]):
        assert run["called"] == ["advantages", "micro_batch", "rollout", "token_loss"]
        assert run["passes"] == 1
    assert float(found["with"]["loss"]) - float(found["without"]["loss"]) == pytest.approx(5.0, abs=1e-4)
