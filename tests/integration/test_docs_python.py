"""Every Python block of README and docs runs and gives what its comments say.

The blocks of a page run in one namespace, in their order, in a copy of the folder of `docs_folder`. Trainings are cut to
two steps. A block that needs a server or a model of the hub has a stub here, and the page says so (`docs_blocks`). Pages
that train on several backends or over seeds are slow; those that go step by step are run by test_docs_walk.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import docs_folder
from aligntune.rewards import RewardRegistry
from docs_blocks import blocks, pages, play

SLOW = ("docs/backends.md", "docs/compare.md", "docs/stages.md")
PAGES = [p for p in pages() if not p.startswith(("docs/index.md", "docs/how-to/")) and blocks(p, "python")]


class Trainer:
    """Stands for TRL's trainer: takes what the real one takes."""

    made: list[dict[str, Any]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from trl.trainer.grpo_trainer import GRPOTrainer

        self.made.append(inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs).arguments)


class Client:
    """Stands for httpx's client: every text has the score 0.5."""

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def post(self, url: str, json: dict[str, Any]) -> Any:
        return SimpleNamespace(json=lambda: {"score": 0.5, "url": url})


@pytest.fixture
def folder(docs_prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared folder as the working folder; registries are put back."""
    import datasets

    from aligntune.algorithms.base import ALGORITHMS, algorithm_names
    from aligntune.core import backend_factory
    from aligntune.eval.registry import _KINDS
    from aligntune.rewards import list_rewards
    from aligntune.rewards.base import REWARDS

    assert algorithm_names()  # the registries are filled when they are first read
    assert list_rewards()

    copy = Path(shutil.copytree(docs_prepared, tmp_path / "here"))
    monkeypatch.chdir(copy)
    monkeypatch.setattr(datasets, "load_dataset", docs_folder.hub_data)
    make = backend_factory.create_trainer
    monkeypatch.setattr(backend_factory, "create_trainer", lambda config, **more: make(smaller(config), **more))
    for registry in (ALGORITHMS, REWARDS, _KINDS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    return copy


def smaller(config: Any) -> Any:
    """The configuration with two steps of four rows of 64 tokens."""
    from aligntune.core.config import load_config

    config = config if dataclasses.is_dataclass(config) else load_config(config)
    train = dataclasses.replace(config.train, max_steps=2, per_device_batch_size=4)
    changes: dict[str, Any] = {"train": train, "model": dataclasses.replace(config.model, max_seq_length=64)}
    if getattr(config.algorithm, "num_generations", None):
        changes["algo"] = dataclasses.replace(config.algorithm, num_generations=2)
        sizes = {"max_completion_length": 8, "max_prompt_length": 32}
        changes["generation"] = dataclasses.replace(config.generation, **sizes)
        changes["evaluation"] = dataclasses.replace(config.evaluation, max_new_tokens=8)
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in PAGES])
def test_the_python_blocks_run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import trl

    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    space: dict[str, Any] = vars(module)
    for block in blocks(page, "python"):
        if block.needs:
            continue
        with monkeypatch.context() as patch:
            if "trl.GRPOTrainer" in block.stub:
                Trainer.made.clear()
                patch.setattr(trl, "GRPOTrainer", Trainer, raising=False)
            if "httpx" in block.stub:
                patch.setattr(httpx, "AsyncClient", Client)
            if block.file:
                (folder / Path(block.file).name).write_text(block.text, encoding="utf-8")
            play(block.text, space)
            CHECKS.get(page, {}).get(first_line(block.text), lambda space: None)(space)


def first_line(text: str) -> str:
    return text.splitlines()[0]


def own_functions(space: dict[str, Any]) -> None:
    """The functions of the page, used by their path as a run's file does."""

    def made(name: str, **params: Any) -> Any:
        return RewardRegistry.get_reward_function(f"my_rewards.py:{name}", **params)

    assert made("no_apology").compute("I am sorry.") == 0.0
    assert made("no_apology", word="pardon").compute("I am sorry.") == 1.0
    assert made("cites").columns == {"reference", "tags"}
    assert made("cites").compute("so 4", answer="4", tags=["x"]) == 1.0
    assert made("cites").compute("so 4", answer="4", tags=[]) is None
    assert made("theirs").batch(["a", "abc"], {"prompt": ["p", "p"]}) == [1.0, 3.0]
    assert made("asked", url="http://localhost").batch(["a", "b"]) == [0.5, 0.5]
    assert made("compute_score").compute("so 4", answer="4") == 1.0


def decorated(space: dict[str, Any]) -> None:
    name, option = ("no_shouting", "most") if "no_shouting" in space else ("shouting", "most")
    reward = RewardRegistry.get_reward_function(name, **{option: 0.3})
    assert (reward.compute("HELLO"), reward.compute("hello")) == (0.0, 1.0)
    assert (reward.kind, reward.range) == ("measured", (0.0, 1.0))


def trained(space: dict[str, Any]) -> None:
    assert space["best"][0].text in ("4", "5")
    assert space["std"] == 2.0
    assert len(space["model"](["2 + 2?"], ["4"])) == 1


def given_to_trl(space: dict[str, Any]) -> None:
    first, second = Trainer.made
    assert first["reward_funcs"] == [space["model"]]
    assert second["reward_funcs"][0].config.num_labels == 1
    assert second["reward_processing_classes"][0].pad_token_id is not None


def alone(space: dict[str, Any]) -> None:
    batch = {"prompts": ["70 + 2 ="] * 2, "completions": ["#### 72", "#### 7"], "answer": ["72"] * 2}
    first, second = (made["reward_funcs"][0] for made in Trainer.made)
    assert (first.__name__, first(**batch)) == ("math_correctness", [1.0, 0.0])
    assert (second.__name__, second(**batch)) == ("total", [1.1, 0.1])


def audited(space: dict[str, Any]) -> None:
    assert space["report"].findings == []
    assert math.isfinite(space["report"].components["total"].mean)


def new_algorithm(space: dict[str, Any]) -> None:
    from aligntune.core.config import load_config

    config = load_config(
        {"algo": {"name": "ipo", "beta": 0.2}, "model": {"name_or_path": "m"}, "datasets": ["x.jsonl"]}
    )
    assert config.algorithm.arguments(config)["beta"] == 0.2
    assert config.train.learning_rate == 1e-6


def new_kind(space: dict[str, Any]) -> None:
    from aligntune.eval import EvalRunner
    from aligntune.eval.config import build_eval_config

    task = {"name": "loud", "kind": "shouting", "dataset": "prompts.jsonl", "max_new_tokens": 4}
    result = EvalRunner(build_eval_config({"model": {"name_or_path": "runs/sft"}, "tasks": [task]})).run()
    assert 0 <= result.metric("loud").value <= 1


def evaluated(space: dict[str, Any]) -> None:
    assert space["result"].metric("sums").n == 12


def trained_here(space: dict[str, Any]) -> None:
    assert space["trainer"].state.step == 2


def both_backends(space: dict[str, Any]) -> None:
    losses = [
        json.loads(Path(f"runs/{i}-{b}/manifest.json").read_text()) for i, b in ((0, "trl"), (1, "unsloth"), (2, "trl"))
    ]
    assert [m["status"] for m in losses] == ["finished"] * 3


CHECKS: dict[str, dict[str, Any]] = {
    "README.md": {"from aligntune import create_rl_trainer": trained_here},
    "CONTRIBUTING.md": {
        '"""Identity preference optimisation (Azar et al. 2023, arXiv:2310.12036): the loss in one formula, the data it needs."""': new_algorithm,
        "from aligntune.rewards import reward": decorated,
    },
    "docs/backends.md": {"from aligntune.core.backend_factory import create_trainer": both_backends},
    "docs/evaluation.md": {
        "from aligntune.eval import EvalRunner, load_eval_config": evaluated,
        "from aligntune.algorithms import Schema": new_kind,
    },
    "docs/rewards.md": {
        "# my_rewards.py": own_functions,
        "from aligntune.rewards import reward": decorated,
        "import datasets": alone,
    },
    "docs/reward-models.md": {
        "from aligntune.rewards.training import RewardModelLoader, TRLCompatibleRewardModel, best_of_n": trained,
        "import datasets": given_to_trl,
    },
    "docs/audits.md": {"from aligntune.rewards import get_reward_function": audited},
}


def test_every_check_belongs_to_a_block() -> None:
    for page, checks in CHECKS.items():
        assert set(checks) <= {first_line(b.text) for b in blocks(page, "python")}
