"""Finding rewards by name, by file and by module; the factory; and that none of it imports a library."""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aligntune import rewards as package
from aligntune.errors import ConfigurationError, RewardError
from aligntune.rewards import (
    MathCorrectnessReward,
    RewardConfig,
    RewardFunction,
    RewardFunctionFactory,
    RewardRegistry,
    RewardType,
    build_rewards,
    get_reward_function,
    list_rewards,
    reward,
)
from aligntune.rewards.base import KINDS, REWARDS

BUILTINS = [
    "answer_format", "bertscore", "bias", "bleu", "brevity", "causal_reasoning", "choice", "chrf", "citation_check",
    "code_completeness", "code_correctness", "code_execution", "code_quality", "code_syntax", "coherence",
    "commonsense", "compression_ratio", "conciseness", "contains", "context_relevance", "cosine_length",
    "counterfactual_math", "counterfactual_reasoning", "diversity", "engagement", "exact_match", "f1", "factuality",
    "financial_accuracy", "fluency", "gated", "grounded_nli", "hallucination", "harmlessness", "helpfulness",
    "honesty", "ifeval", "instruction_following", "json_schema", "judge_pairwise", "judge_rubric", "language",
    "legal_compliance", "length", "length_controlled", "logical_consistency", "math_correctness", "math_reasoning",
    "mbpp_reward", "medical_accuracy", "meteor", "metric_only", "politeness", "readability", "regex", "relevance",
    "repetition", "rescaled", "reward_ensemble", "reward_model", "rouge", "safety", "semantic_similarity",
    "sentiment", "soft_overlong", "sql_result", "stdio_tests", "temporal_consistency", "think_format", "tool_call",
    "toxicity", "xml_tags",
]  # fmt: skip
RANGES = {
    **dict.fromkeys(
        ("reward_model", "reward_ensemble", "gated", "length_controlled", "metric_only", "rescaled"),
        (-math.inf, math.inf),
    ),
    "mbpp_reward": (-0.5, 1),
    "soft_overlong": (-1, 0),
    "cosine_length": (-1, 1),
    "sentiment": (-1, 1),
}

FILE = """
from neighbour import LIMIT
from aligntune.rewards import reward, RewardFunction

def no_apology(text, *, word="sorry", **columns):
    return float(word not in text) * LIMIT

def theirs(prompts, completions, **kwargs):
    return [float(len(c)) for c in completions]

@reward("decorated_in_a_file", range=(0, 5))
def decorated(text: str, tag: str) -> float:
    return float(text == tag)

class Stateful(RewardFunction):
    name = "stateful"
    def compute(self, text, **kwargs):
        return 2.0

value = 3
"""


@pytest.fixture
def rewards_file(tmp_path: Path):
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("LIMIT = 1.0\n")
    yield tmp_path / "my_rewards.py"
    REWARDS.remove("decorated_in_a_file")
    sys.modules.pop("neighbour", None)


def test_the_catalogue() -> None:
    assert [n for n in list_rewards() if n in BUILTINS] == BUILTINS
    assert [t.value for t in RewardType] == BUILTINS
    assert RewardType.LENGTH == "length"
    for name in BUILTINS:
        info = RewardRegistry.describe(name)
        assert info.kind in KINDS
        assert info.range == RANGES.get(name, (0, 1))
        assert info.summary.endswith(".")
    assert RewardRegistry.describe("math_correctness").columns == ("reference",)
    assert RewardRegistry.describe("length").parameters["max_length"] == 500


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="unknown reward 'math_corectness'") as e:
        build_rewards([RewardConfig(type="math_corectness")])
    assert "did you mean 'math_correctness'?" in e.value.hint
    with pytest.raises(AttributeError, match="no attribute 'NoSuchReward'"):
        package.NoSuchReward  # noqa: B018


def test_classes_and_the_factory() -> None:
    made = get_reward_function("math_correctness")
    assert isinstance(made, MathCorrectnessReward)
    assert issubclass(MathCorrectnessReward, RewardFunction)
    assert MathCorrectnessReward().compute("#### 5", reference="5") == 1.0
    assert RewardFunctionFactory.create_reward(RewardType.LENGTH, max_length=20).params == {"max_length": 20}
    assert RewardFunctionFactory.create_reward("length").params == {}
    config = RewardConfig(type="length", params={"min_length": 2}, deadline=4)
    assert RewardFunctionFactory.create_reward(config, max_length=9).params == {"min_length": 2, "max_length": 9}
    assert RewardFunctionFactory.create_reward(config).deadline == 4
    assert RewardFunctionFactory.create_composite([config]).components[0].name == "length"


def test_custom_rewards() -> None:
    try:
        RewardRegistry.register_custom_reward("test_custom", lambda text, tag: float(text == tag), range=(0, 1))
        assert "test_custom" in list_rewards()
        assert get_reward_function("test_custom").compute("a", tag="a") == 1.0
        assert build_rewards([RewardConfig(type="test_custom")]).required_columns == {"tag"}
        with pytest.raises(ConfigurationError, match="reward 'length' is registered already"):
            RewardRegistry.register_custom_reward("length", lambda text: 0.0)
        with pytest.raises(ConfigurationError, match="is int, neither a function"):
            RewardRegistry.register_custom_reward("three", 3)  # type: ignore[arg-type]
    finally:
        REWARDS.remove("test_custom")


def test_rewards_from_a_file(rewards_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rewards_file.parent)
    composite = build_rewards([
        RewardConfig(type="my_rewards.py:no_apology", params={"word": "pardon"}),
        RewardConfig(type=f"{rewards_file}:theirs", weight=0.5),
        RewardConfig(type="my_rewards.py:decorated"),
        RewardConfig(type="my_rewards.py:Stateful"),
    ])  # fmt: skip
    assert [c.name for c in composite.components] == ["no_apology", "theirs", "decorated_in_a_file", "stateful"]
    assert composite.required_columns == {"tag"}
    scores = composite.score_batch(["pardon", "ok"], {"tag": ["ok", "ok"]})
    assert scores.components == {
        "no_apology": [0, 1], "theirs": [6, 2], "decorated_in_a_file": [0, 1], "stateful": [2, 2],
    }  # fmt: skip
    assert scores.total == [5.0, 5.0]
    assert "def no_apology" in composite.components[0].source
    assert "class Stateful" in composite.components[3].source
    copy = pickle.loads(pickle.dumps(composite.components[0].reward))
    assert copy.compute("pardon") == 0.0
    assert str(rewards_file.parent) not in sys.path


def test_a_changed_file_is_read_again(rewards_file: Path) -> None:
    rewards_file.write_text("def f(text): return 1.0\n")
    assert get_reward_function(f"{rewards_file}:f").compute("") == 1.0
    then = rewards_file.stat().st_mtime
    rewards_file.write_text("def f(text): return 2.0\n")
    os.utime(rewards_file, (then, then))  # as large and as old as before: only the content tells
    assert get_reward_function(f"{rewards_file}:f").compute("") == 2.0


def test_rewards_from_a_module() -> None:
    made = get_reward_function("aligntune.rewards.builtin.format:think_format")
    assert made.compute("<think>a</think>b") == 1.0
    import operator

    assert callable(operator.length_hint)
    assert get_reward_function("operator:length_hint").batch(["abc"]) == [3.0]


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("missing.py:f", "the reward file missing.py does not exist", "paths are relative to"),
        ("my_reward.py:f", "the reward file my_reward.py does not exist", "did you mean"),
        ("my_rewards.py:no_apologies", "my_rewards.py has no function 'no_apologies'", "did you mean 'no_apology'?"),
        ("my_rewards.py:value", "reward 'value' is int, neither a function", "fn\\(text"),
        ("my_rewards.py", "reward 'my_rewards.py' names no function", "my_rewards.py:function"),
        ("broken.py:f", "the reward file broken.py failed to import: SyntaxError", "run: python broken.py"),
        ("no_such_package.x:f", "the reward module 'no_such_package.x' cannot be imported", "installed package"),
    ],
)
def test_what_cannot_be_found(rewards_file: Path, monkeypatch, name: str, what: str, hint: str) -> None:
    monkeypatch.chdir(rewards_file.parent)
    Path("broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigurationError, match=what) as e:
        get_reward_function(name)
    assert re.search(hint, e.value.hint)


def test_a_hung_user_function_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef slow(text):\n    time.sleep(60)\n")
    composite = build_rewards([RewardConfig(type=f"{tmp_path}/slow.py:slow", deadline=0.2)])
    with pytest.raises(RewardError, match=r"reward 'slow' overran its deadline: no result after 0\.2 s"):
        composite.score_batch(["a"])


def test_a_new_reward_is_one_function() -> None:
    """What the next rewards of the catalogue need: a decorated function in a module of `builtin`, found by the scan."""
    try:

        @reward("test_new", kind="measured")
        def fresh(text: str, *, most: int = 3) -> float:
            """1 up to `most` letters."""
            return float(len(text) <= most)

        assert build_rewards([RewardConfig(type="test_new", params={"most": 2})]).compute("abc") == 0.0
        assert RewardRegistry.describe("test_new").parameters == {"most": 3}
    finally:
        REWARDS.remove("test_new")


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys, aligntune.rewards as r\n"
        "r.list_rewards(); r.RewardType; r.MathCorrectnessReward; r.TRLReward\n"
        "r.build_rewards([r.RewardConfig(type='math_correctness')]).compute('#### 5', reference='5')\n"
        "heavy = ('torch', 'transformers', 'trl', 'datasets', 'numpy', 'pandas', 'sympy', 'math_verify')\n"
        "print([n for n in heavy if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120).stdout
    assert out.strip() == "[]"
