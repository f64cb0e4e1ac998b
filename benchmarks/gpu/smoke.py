"""Smoke: Unsloth trains every algorithm that AlignTune has, and every way of loading a model that it offers.

Each in a fresh process: the first and last loss, the peak of memory, the symbols that Unsloth replaced, or the error.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gpu import configs, models
from gpu.child import run, short, train
from gpu.parity import ROUNDS
from gpu.record import Case, Part, Settings, Values

SHOWN = ("first_loss", "last_loss", "steps", "peak_bytes", "peak_of", "foreign", "step_seconds")
MOST, LONG = 180.0, 300.0
"""Seconds of one run, and of one that trains in rounds."""
WAYS: dict[str, Values] = {
    "16-bit LoRA": {},
    "4-bit LoRA": {"model": {"quantization": "4bit"}},
    "8-bit LoRA": {"model": {"quantization": "8bit"}},
    "all weights": {"peft": None},
    "rank-stabilised LoRA": {"peft": {**configs.LORA, "use_rslora": True}},
    "DoRA": {"peft": {**configs.LORA, "use_dora": True}},
    "attention only, dropout": {"peft": {**configs.LORA, "target_modules": ["q_proj", "v_proj"], "dropout": 0.1}},
    "gradient checkpointing": {"train": {"gradient_checkpointing": True}},
    "packing": {"task": {"name": "text_generation", "packing": True}},
    "8-bit optimizer": {"train": {"optimizer": "adamw_8bit"}},
}
"""Name to what is laid over a supervised run."""
ON_GPU_ONLY = {"8-bit LoRA", "packing", "8-bit optimizer"}
MERGE = """
import json, sys
from aligntune.core.backend_factory import create_trainer
trainer = create_trainer(json.loads(sys.argv[1]))
trainer.train()
print("@@" + str(trainer.save_merged(sys.argv[2])))
"""


def algorithms(wanted: bool, settings: Settings) -> list[Case]:
    """The algorithms that sample (`wanted`), or those that do not."""
    named = [n for n in configs.names() if configs.samples(n) == wanted]
    return [Case(n, partial(_algorithm, n, settings), LONG if n in ROUNDS else MOST) for n in named]


def _algorithm(name: str, settings: Settings, seconds: float) -> Values:
    model, _ = models.build("llama", "0.1b", settings, small_vocabulary=True)
    values = configs.config(name, settings, model, backend="unsloth")
    return short(train(values, f"smoke/{name}", seconds, settings), *SHOWN)


def ways(settings: Settings) -> list[Case]:
    """Ways of loading, adapters, saving, and vLLM where it is installed."""
    named = [w for w in WAYS if not (settings.cpu and w in ON_GPU_ONLY)]
    cases = [Case(way, partial(_way, way, settings), MOST) for way in named]
    cases += [Case(f"architecture {a}", partial(_architecture, a, settings), MOST) for a in models.ARCHITECTURES]
    cases.append(Case("merged saving", partial(_merged, settings), MOST))
    if not settings.cpu:
        cases.append(Case("vLLM", partial(_vllm, settings), LONG))
    return cases


def _way(way: str, settings: Settings, seconds: float) -> Values:
    model, _ = models.build("llama", "0.1b", settings, small_vocabulary=True)
    values = configs.config("text_generation", settings, model, backend="unsloth", **WAYS[way])
    return short(train(values, f"ways/{way}", seconds, settings), *SHOWN)


def _architecture(name: str, settings: Settings, seconds: float) -> Values:
    model, _ = models.build(name, "0.1b", settings)
    values = configs.config("text_generation", settings, model, backend="unsloth")
    return short(train(values, f"ways/{name}", seconds, settings), *SHOWN)


def _merged(settings: Settings, seconds: float) -> Values:
    """Adapters merged into 16-bit weights by Unsloth load and train on TRL."""
    import json
    import sys

    from gpu.child import environment, last

    model, _ = models.build("llama", "0.1b", settings, small_vocabulary=True)
    folder = settings.work / "runs" / "ways" / "merged"
    values = configs.config("text_generation", settings, model, backend="unsloth")
    values["output_dir"] = str(folder / "run")
    _clear(folder)
    line = [sys.executable, "-c", MERGE, json.dumps(values), str(folder / "merged")]
    done = run(line, seconds / 2, env=environment(settings))
    if done.returncode:
        return {"ok": False, "error": last(done.stderr)}
    after = configs.config("text_generation", settings, folder / "merged", backend="trl", peft=None)
    return short(train(after, "ways/after-merging", seconds / 2, settings), *SHOWN)


def _clear(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _vllm(settings: Settings, seconds: float) -> Values:
    """GRPO with Unsloth's model inside vLLM; not run where vLLM is not installed."""
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        return {"ok": True, "skipped": "vLLM is not installed"}
    model, _ = models.build("llama", "0.1b", settings, small_vocabulary=True)
    generation = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.3}
    values = configs.config("grpo", settings, model, backend="unsloth", generation=generation)
    return short(train(values, "ways/vllm", seconds, settings), *SHOWN)


PARTS = [
    Part("smoke-supervised", "Unsloth trains every task and preference algorithm", partial(algorithms, False), True),
    Part("smoke-policy", "Unsloth trains every algorithm that samples", partial(algorithms, True), True),
    Part("smoke-ways", "Unsloth loads, adapts, quantises and saves in every way that it offers", ways, True),
]
