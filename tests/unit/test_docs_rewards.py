"""The pages about rewards: every Python block runs and gives what its comments say, every YAML block is accepted.

The blocks of a page run in one namespace, in their order, in a folder that has what the pages name. A block that needs a
server or a model of the hub has a stub here, and says so in the page by a comment `<!-- test: ... -->` before it.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import helpers
import planted
import runs
from aligntune.core.config.io import load_config, parse_section
from aligntune.core.config.sections import JudgeConfig, RewardConfig
from aligntune.rewards import RewardRegistry
from aligntune.rewards.judges import load_rubric
from aligntune.rewards.training.config import load_reward_config
from aligntune.utils.rollouts import RolloutWriter

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("rewards", "judges", "reward-models", "audits")
BLOCK = re.compile(
    r"(?:<!-- test: (?P<why>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
ITEM = re.compile(r"^- ", re.MULTILINE)


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """The blocks of a page: the reason for a stub, where there is one, and the text."""
    found = BLOCK.finditer((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    return [(m["why"] or "", m["text"]) for m in found if m["language"] == language]


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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reward model, a run and data, under the names of the pages."""
    monkeypatch.chdir(tmp_path)
    model = helpers.save_tiny_reward_model(tmp_path / "runs/reward-model")
    (model / "reward_model.json").write_text(json.dumps({"scores": {"mean": 0.5, "std": 2.0}}))
    columns, config = planted.run(0)
    (tmp_path / "runs/grpo").mkdir()
    writer = RolloutWriter(tmp_path / "runs/grpo/rollouts")
    writer.append([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    writer.flush()
    (tmp_path / "runs/grpo/config.resolved.yaml").write_text(yaml.safe_dump(config))
    runs.write_rows(tmp_path / "prompts.jsonl", [{"prompt": "2 + 2 ="}] * 4)
    return tmp_path


def play(text: str, space: dict[str, Any]) -> None:
    """Run a block; an expression whose comment is a literal must have that value."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        code = ast.Module([node], [])
        if not isinstance(node, ast.Expr):
            exec(compile(code, "page", "exec"), space)
            continue
        value = eval(compile(ast.Expression(node.value), "page", "eval"), space)
        said = re.search(r"  # (.+)$", lines[(node.end_lineno or 1) - 1])
        if said:
            first, _, other = said[1].partition("; as a sum ")
            assert value == pytest.approx(literal(first, value)), (lines[node.lineno - 1], value)
            assert not other or value != literal(other, value)


def test_a_wrong_comment_is_caught() -> None:
    play("1 + 1      # 2\n1 + 1      # the sum", {})
    with pytest.raises(AssertionError):
        play("1 + 1      # 3", {})


def literal(said: str, value: Any) -> Any:
    """The value that a comment gives; `value` itself where it gives none."""
    try:
        return ast.literal_eval(said)
    except (SyntaxError, ValueError):
        return value


@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import trl

    space: dict[str, Any] = {"__name__": "page"}
    found = blocks(page, "python")
    assert found
    for why, text in found:
        with monkeypatch.context() as patch:
            if "trl.GRPOTrainer" in why:
                Trainer.made.clear()
                patch.setattr(trl, "GRPOTrainer", Trainer, raising=False)
            if "httpx" in why:
                patch.setattr(httpx, "AsyncClient", Client)
                (folder / "my_rewards.py").write_text(text)
            play(text, space)
            CHECKS.get(page, {}).get(text.splitlines()[0], lambda space: None)(space)


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
    shouting = RewardRegistry.get_reward_function("no_shouting", most=0.3)
    assert (shouting.compute("HELLO"), shouting.compute("hello")) == (0.0, 1.0)
    assert (shouting.kind, shouting.range) == ("measured", (0.0, 1.0))


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


CHECKS: dict[str, dict[str, Any]] = {
    "rewards": {
        "# my_rewards.py": own_functions,
        "from aligntune.rewards import reward": decorated,
        "import datasets": alone,
    },
    "reward-models": {
        "from aligntune.rewards.training import RewardModelLoader, TRLCompatibleRewardModel, best_of_n": trained,
        "import datasets": given_to_trl,
    },
    "audits": {"from aligntune.rewards import get_reward_function": audited},
}


def test_every_check_belongs_to_a_block() -> None:
    for page, checks in CHECKS.items():
        assert set(checks) <= {text.splitlines()[0] for _, text in blocks(page, "python")}


YAML = [(page, text) for page in PAGES for _, text in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "text"), YAML, ids=[f"{p}-{i}" for i, (p, _) in enumerate(YAML)])
def test_the_yaml_blocks_are_accepted(page: str, text: str, tmp_path: Path) -> None:
    if text.startswith("judge:") and "url: ..." in text:  # two lines, each a section of its own
        parts = [
            yaml.safe_load(line.replace("url: ...", "url: http://localhost:8000/v1")) for line in text.splitlines()
        ]
    else:
        parts = [yaml.safe_load(text)]
    for raw in parts:
        accept(raw, tmp_path)


def accept(raw: Any, folder: Path) -> None:
    """Check a block as what it is: a list of rewards, a rubric, a reward model's file, or sections of a run's."""
    if isinstance(raw, list):
        raw = {"rewards": raw}
    if "scale" in raw:
        (folder / "rubric.yaml").write_text(yaml.safe_dump(raw))
        assert load_rubric(str(folder / "rubric.yaml")).name == raw["name"]
    elif "objective" in raw:
        load_reward_config(raw)
    elif "data" in raw:
        for one in raw["rewards"]:
            parse_section(RewardConfig, one, "rewards")
    elif set(raw) == {"judge"}:
        settings = {k: "m" if v is ... else v for k, v in raw["judge"].items()}
        assert not parse_section(JudgeConfig, {"model": "m", **settings}, "judge").faults()
    else:
        load_config({"algo": "grpo", "model": {"name_or_path": "m"}, "datasets": ["rows.jsonl"], **raw})
