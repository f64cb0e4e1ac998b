"""A sequence classifier as a reward: its logits, its templates, what it refuses, and its place among other rewards."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import helpers
import runs
from aligntune.core.config import RewardConfig
from aligntune.core.config.aliases import keywords_to_keys
from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards import build_rewards, get_reward_function

CHAT = [{"role": "user", "content": "Say 1"}]
ANSWERS = ["yes", "", "a much longer answer, with a second clause", "\ud800 \0 漢字", "no" * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.save_tiny_reward_model(tmp_path_factory.mktemp("rm") / "rm")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.save_tiny_reward_model(tmp_path_factory.mktemp("rm") / "plain", chat=False)


def reference(folder: Path, text: str) -> float:
    """The logit of one text, one forward pass without padding, in float64."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    return float(model(input_ids=ids).logits[0, 0].detach())


def test_the_score_is_the_logit_of_prompt_and_answer(folder: Path, plain: Path) -> None:
    reward = get_reward_function("reward_model", path=str(folder), batch_size=2)
    written = "<|im_start|>user\nSay 1<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert reward.compute("yes", prompt=CHAT) == pytest.approx(reference(folder, written), abs=1e-6)
    assert reward.compute("yes", prompt="Say 1: ") == pytest.approx(reference(folder, "Say 1: yes"), abs=1e-6)
    other = get_reward_function("reward_model", path=str(plain))
    assert other.compute("yes", prompt="Say 1: ") == pytest.approx(reference(plain, "Say 1: yes"), abs=1e-6)


def test_batches_agree_with_single_answers_in_any_order_and_after_pickling(folder: Path) -> None:
    reward = get_reward_function("reward_model", path=str(folder), batch_size=2)
    prompts = [CHAT, [{"role": "user", "content": "Something longer than that"}]] * 2 + [CHAT]
    scores = reward.batch(ANSWERS, {"prompt": prompts})
    assert scores == pytest.approx([reward.compute(t, prompt=p) for t, p in zip(ANSWERS, prompts, strict=True)], 1e-5)
    assert reward.batch(ANSWERS[::-1], {"prompt": prompts[::-1]}) == pytest.approx(scores[::-1], 1e-5)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.params == reward.params
    assert copy.batch(ANSWERS, {"prompt": prompts}) == scores
    assert len(set(scores)) == len(scores)


def test_it_is_frozen_in_evaluation_mode(folder: Path) -> None:
    import torch

    reward: Any = get_reward_function("reward_model", path=str(folder))
    with torch.enable_grad():
        reward.compute("yes", prompt=CHAT)
    model, _, limit = reward.model.load()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert limit == 512
    reward.place("cpu")
    assert reward.model._loaded is None
    assert next(reward.model.load()[0].parameters()).device.type == "cpu"


def test_what_is_longer_than_the_limit_is_cut_and_counted(folder: Path) -> None:
    rewards = build_rewards([RewardConfig(type="reward_model", params={"path": str(folder), "max_length": 20})])
    scores = rewards.score_batch(["y", "x" * 100], {"prompt": ["ab", "ab"]})
    assert scores.stats["reward_model/truncated"] == 1
    assert scores.total[1] == pytest.approx(reference(folder, "ab" + "x" * 18), abs=1e-6)


def test_it_is_weighed_among_other_rewards(folder: Path) -> None:
    rewards = build_rewards(
        [
            RewardConfig(type="reward_model", weight=0.5, params={"path": str(folder)}),
            RewardConfig(type="length", weight=2.0, params={"unit": "characters", "min_length": 1}),
        ]
    )
    scores = rewards.score_batch(["yes"], {"prompt": [CHAT]})
    assert scores.total[0] == pytest.approx(0.5 * scores.raw["reward_model"][0] + 2.0)
    assert str(folder) in rewards.components[0].source
    assert "model.safetensors " in rewards.components[0].source


def test_conversations_need_a_template(plain: Path) -> None:
    reward = get_reward_function("reward_model", path=str(plain))
    with pytest.raises(ConfigurationError, match="a reward model whose tokenizer has no chat template"):
        reward.batch(["yes"], {"prompt": [CHAT]})
    with pytest.raises(RewardError, match="gets none"):
        reward.batch(["yes"], {})
    with pytest.raises(ConfigurationError, match="gets none"):
        reward.compute("yes")


def test_what_is_no_reward_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="is no sequence classifier"):
        get_reward_function("reward_model", path=str(tiny_model)).batch(["a"], {"prompt": ["b"]})
    two = helpers.save_tiny_reward_model(tmp_path / "two", labels=2)
    with pytest.raises(ValidationError, match="has 2 outputs"):
        get_reward_function("reward_model", path=str(two)).batch(["a"], {"prompt": ["b"]})
    (two / "model.safetensors").rename(two / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="has no safetensors weights"):
        get_reward_function("reward_model", path=str(two)).batch(["a"], {"prompt": ["b"]})
    with pytest.raises(ConfigurationError, match=r"reward model: there is no folder './gone'"):
        get_reward_function("reward_model", path="./gone").batch(["a"], {"prompt": ["b"]})


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "needs path"),
        ({"path": "x", "batch": 4}, "no parameter 'batch'"),
        ({"path": "x", "batch_size": 0}, "batch_size is 0"),
        ({"path": "x", "max_length": "long"}, "max_length = 'long' does not fit"),
        ({"path": "x", "precision": "int8"}, "precision is 'int8'"),
    ],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        get_reward_function("reward_model", **params)


def test_precision_and_remote_code_reach_the_loader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    seen: list[Any] = []
    real = AutoModelForSequenceClassification.from_pretrained

    def spy(path: str, **given: Any) -> Any:
        seen.append(given)
        return real(path, **given)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", spy)
    get_reward_function("reward_model", path=str(folder), precision="bf16", trust_remote_code=True).compute(
        "a", prompt="b"
    )
    assert seen[0]["dtype"] is torch.bfloat16
    assert seen[0]["trust_remote_code"]
    assert seen[0]["use_safetensors"]


def test_an_adapter_over_a_base_scores_as_the_merged_model(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    base.config.pad_token_id = 0
    adapted = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "score" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "adapter")
    ids = AutoTokenizer.from_pretrained(tiny_model)("ab", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = float(adapted.eval()(input_ids=ids).logits[0, 0])
    reward = get_reward_function("reward_model", path=str(tmp_path / "adapter"))
    assert reward.compute("b", prompt="a") == pytest.approx(wanted, abs=1e-5)


def test_the_factory_keyword_names_it() -> None:
    keys = keywords_to_keys("rl", {"algorithm": "grpo", "reward_functions": ["length"], "reward_model_name": "out/rm"})
    assert keys["rewards"] == [
        {"type": "length", "weight": 1.0},
        {"type": "reward_model", "params": {"path": "out/rm"}},
    ]
    assert keywords_to_keys("rl", {"reward_model_name": "rm"})["rewards"][0]["params"] == {"path": "rm"}
    with pytest.raises(ConfigurationError, match="supervised runs have no rewards"):
        keywords_to_keys("sft", {"reward_model_name": "rm"})


def test_grpo_learns_from_it_and_refuses_a_missing_template_before_it_writes(
    tiny_model: Path, folder: Path, plain: Path, tmp_path: Path
) -> None:
    spec = [{"type": "reward_model", "params": {"path": str(folder)}}]
    run = runs.trainer("grpo", tiny_model, tmp_path / "a", rewards=spec, train__max_steps=2)
    run.train()
    assert len(runs.logged(tmp_path / "a/out", "rewards/reward_model/mean")) == 2
    assert runs.logged(tmp_path / "a/out", "frac_reward_zero_std")[0] == 0
    spec = [{"type": "reward_model", "params": {"path": str(plain)}}]
    bad = runs.trainer("grpo", tiny_model, tmp_path / "b", rewards=spec)
    with pytest.raises(ConfigurationError, match="tokenizer has no chat template"):
        bad.train()
    assert not (tmp_path / "b/out").exists()
