"""The quickstart: evaluate a base model, SFT, GRPO and DPO, evaluate every stage on the same problems, report.

Each stage is a recipe of `recipes/quickstart/`, run through the factory like any other; what differs from the file
(paths, seed, `--fast`) is written out under `recipes/` in the output folder, so that each can be opened and run alone,
with a file of stages beside them that makes all of it again by `aligntune run`.

>>> data, text = run_quickstart("runs/quickstart", fast=True)
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.core.config import (
    apply_overrides,
    build_config,
    dump_config,
    parse_section,
    read_yaml,
)
from aligntune.errors import ConfigurationError
from aligntune.quickstart import BASE_MODEL
from aligntune.quickstart.pairs import sample_pairs
from aligntune.quickstart.problems import FILES, write_datasets
from aligntune.utils.files import disk_errors
from aligntune.utils.run_folder import RunFolder

RECIPES = Path(__file__).parents[1] / "recipes" / "quickstart"
STAGES = Path(__file__).with_name("stages.yaml")
CORRECT = "rewards/math_correctness"
"""The component of the evaluation's reward that says whether an answer is right."""
FAST: dict[str, list[str]] = {
    "sft": ["train.max_steps=80"],
    "grpo": [
        "train.max_steps=12",
        "train.learning_rate=3e-4",
        "train.warmup_steps=2",
        "train.per_device_batch_size=64",
    ],
    "dpo": ["train.max_steps=12", "train.learning_rate=2e-4", "train.warmup_steps=1"],
}
"""What `--fast` changes: the same stages, too short to meet the full run's bars."""
FAST_SIZES = {"pairs_train": 150, "pairs_test": 150}
SECONDS = {"data": 2, "base": 8, "sft": 45, "pairs": 12, "grpo": 50, "dpo": 20, "evaluate": 8}
"""Rough seconds per step on an idle core, for the estimate of the time left; corrected as steps end."""


@dataclass
class StageResult:
    """One stage: where it ran, what it cost, what it scored on each held-out problem."""

    name: str
    parent: str | None = None
    run_dir: Path | None = None
    seconds: float = 0.0
    peak_memory: int = 0
    items: list[dict[str, Any]] = field(default_factory=list)

    @property
    def correct(self) -> list[float]:
        """1 or 0 for each problem, in the order of the test file."""
        return [float(item[CORRECT]) for item in self.items]


class Clock:
    """Says what happens now and about how long the rest takes."""

    def __init__(self, steps: dict[str, float], say: Callable[[str], None]) -> None:
        self.left = dict(steps)
        self.say = say
        self._scale = 1.0
        self._running: tuple[str, float] | None = None

    def begin(self, step: str, sentence: str) -> None:
        """Announce a step, and correct the estimate by how long the last one took."""
        self.end()
        rest = sum(self.left.values()) * self._scale
        self.say(f"{sentence}  (about {max(round(rest / 5) * 5, 5)} s left)")
        self._running = (step, time.monotonic())

    def end(self) -> float:
        """End the running step; its seconds."""
        if self._running is None:
            return 0.0
        step, start = self._running
        seconds = time.monotonic() - start
        expected = self.left.pop(step, None)
        if expected and expected >= 10:
            self._scale = 0.5 * self._scale + 0.5 * seconds / expected
        self._running = None
        return seconds


class Story:
    """The stages in order, with what they share.

    Args:
        out: folder for data, runs, recipes and the report; made if it is missing.
        fast: the short form.
        seed: of data, training and sampling.
        say: prints a line of progress.

    Raises:
        ConfigurationError: `out` holds an earlier quickstart, is a file, or cannot be written.
    """

    def __init__(self, out: str | Path, *, fast: bool, seed: int, say: Callable[[str], None]) -> None:
        self.out = Path(out).expanduser().absolute()
        self.fast, self.seed = fast, seed
        if (self.out / "data").exists() or (self.out / "report.html").exists():
            raise ConfigurationError(f"{self.out} holds a quickstart already", hint="choose another folder with --out")
        RunFolder.check(self.out / "sft")  # raises where nothing can be written
        share = 0.3 if fast else 1.0
        self.clock = Clock({k: v * share for k, v in SECONDS.items()}, say)
        self.stages: dict[str, StageResult] = {}
        self.pairs_held_out = 0

    @property
    def data(self) -> Path:
        """The folder of the data files."""
        return self.out / "data"

    def prepare(self) -> None:
        """Write the data and a copy of the base model."""
        self.clock.begin("data", "writing the problems")
        with disk_errors(self.out):
            write_datasets(self.data, seed=self.seed, sizes=FAST_SIZES if self.fast else None)
            shutil.copytree(BASE_MODEL, self.out / "base")

    def recipe(self, name: str, overrides: list[str] | None = None) -> dict[str, Any]:
        """A recipe with this run's paths, seed and `--fast` changes; written to `recipes/` for the user."""
        raw = read_yaml(RECIPES / f"{name}.yaml")
        raw = _moved(raw, f"{self.out}/")
        seed_key = "seed" if name == "eval" else "train.seed"
        changes = [f"{seed_key}={self.seed}", *(FAST.get(name, []) if self.fast else []), *(overrides or [])]
        return apply_overrides(raw, changes)

    def train(self, name: str, parent: str, sentence: str) -> StageResult:
        """Run a training recipe through the factory."""
        from aligntune.core.backend_factory import create_trainer

        self.clock.begin(name, sentence)
        config = build_config(self.recipe(name))
        folder = self.out / "recipes"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(dump_config(config), encoding="utf-8")
        result = create_trainer(config).train()
        stage = StageResult(name, parent, Path(result.model_path), peak_memory=result.peak_memory)
        stage.seconds = self.clock.end()
        self.stages[name] = stage
        return stage

    def sample(self) -> None:
        """Sample pairs from the SFT model: some to train on, some held out."""
        from aligntune.utils import ModelLoader

        self.clock.begin("pairs", "sampling preference pairs from the SFT model")
        task = parse_section(_eval_config(), self.recipe("eval")).tasks[0]
        loaded = ModelLoader(_model(self.out / "sft"), training=False, seed=self.seed).load()
        for split in ("train", "test"):
            count = sample_pairs(
                loaded.model,
                loaded.tokenizer,
                self.data / FILES[f"pairs_{split}"],
                self.data / f"pairs_{split}.jsonl",
                task.rewards,
                max_new_tokens=task.max_new_tokens,
                seed=self.seed,
            )
        self.pairs_held_out = count

    def evaluate(self, name: str) -> None:
        """Greedy answers of one stage to the held-out problems."""
        from aligntune.eval import EvalRunner

        folder = self.out / name
        overrides = [f"model.name_or_path={json.dumps(str(folder))}", f"output_dir={json.dumps(str(folder / 'eval'))}"]
        config = parse_section(_eval_config(), self.recipe("eval", overrides))
        self.stages[name].items = EvalRunner(config).run().tasks["sums"].items

    def write_stages(self) -> Path:
        """`recipes/stages.yaml`: the same story as stages, with this run's folder and seed."""
        text = STAGES.read_text(encoding="utf-8")
        for line, value in (
            ("output_dir: runs/quickstart/stages", str(self.out / "stages")),
            ("  folder: runs/quickstart", str(self.out)),
            ("  seed: 0", self.seed),
        ):
            key = line.partition(":")[0]
            text = text.replace(f"{line}\n", f"{key}: {json.dumps(value, ensure_ascii=False)}\n", 1)
        path = self.out / "recipes" / STAGES.name
        with disk_errors(path):
            path.write_text(text, encoding="utf-8")
        return path

    def rank_pairs(self) -> dict[str, Any]:
        """How DPO and its SFT parent rank the held-out pairs, by every measure that the evaluation has."""
        from aligntune.eval import EvalRunner

        task = {
            "name": "pairs",
            "kind": "preference",
            "dataset": str(self.data / "pairs_test.jsonl"),
            "reference_model": str(self.out / "sft"),
            "batch_size": 64,
        }
        raw = {"model": {"name_or_path": str(self.out / "dpo")}, "tasks": [task], "seed": self.seed}
        dpo = EvalRunner(parse_section(_eval_config(), raw)).run().tasks["pairs"].items
        raw["model"] = {"name_or_path": str(self.out / "sft")}
        task.pop("reference_model")
        sft = EvalRunner(parse_section(_eval_config(), raw)).run().tasks["pairs"].items
        return {
            "pairs": len(dpo),
            "dpo": _share([i["chosen_reward"] > i["rejected_reward"] for i in dpo]),
            "sft_ranking": _share([i["chosen_logp"] > i["rejected_logp"] for i in sft]),
            "sft_ranking_per_token": _share([i["chosen_logp_per_token"] > i["rejected_logp_per_token"] for i in sft]),
        }


def run_quickstart(
    out: str | Path, *, fast: bool = False, seed: int = 0, say: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], str]:
    """Run the whole story.

    Args:
        out: a folder that holds no quickstart yet.
        fast: about a minute, with less to show.
        seed: of every stage.
        say: where progress goes; None is standard error.

    Returns:
        The figures as plain values, and the text that the command line prints.
    """
    from aligntune.quickstart.telling import summarize, tell

    begun = time.monotonic()
    _use_one_thread()
    story = Story(out, fast=fast, seed=seed, say=say or _to_stderr)
    story.prepare()
    story.stages["base"] = StageResult("base")
    story.clock.begin("base", "evaluating the base model")
    story.evaluate("base")
    story.stages["base"].seconds = story.clock.end()
    story.train("sft", "base", "SFT: teaching the answer format, in two ways of answering")
    story.sample()
    story.train("grpo", "sft", "GRPO: reinforcing right answers")
    story.train("dpo", "sft", "DPO: preferring right answers to wrong ones")
    story.clock.begin("evaluate", "evaluating every stage on the same problems")
    for name in ("sft", "grpo", "dpo"):
        story.evaluate(name)
    preference = story.rank_pairs()
    story.write_stages()
    story.clock.end()
    data = summarize(story, preference, time.monotonic() - begun)
    return data, tell(story, data)


def _moved(value: Any, folder: str) -> Any:
    """A recipe's values with its paths under another folder than `runs/quickstart/`."""
    if isinstance(value, dict):
        return {k: _moved(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(v, folder) for v in value]
    return value.replace("runs/quickstart/", folder) if isinstance(value, str) else value


def _use_one_thread() -> None:
    """A model this small trains fastest on one thread; two that wait for each other are slower where cores are shared.

    `OMP_NUM_THREADS` decides where it is set.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _eval_config() -> Any:
    from aligntune.eval import EvalConfig

    return EvalConfig


def _model(folder: Path) -> Any:
    from aligntune.core.config import ModelConfig

    return ModelConfig(name_or_path=str(folder))


def _share(hits: list[bool]) -> dict[str, float]:
    """A proportion with its Wilson interval, as plain values."""
    from aligntune.eval.stats import wilson_interval

    found = wilson_interval(sum(hits), len(hits))
    return {"value": found.estimate, "low": float(found.low or 0.0), "high": float(found.high or 1.0)}
