"""Training through us: the numbers are those of bare TRL, of references of a few lines, and of the invariants."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import runs

KINDS = ["sft", "dpo", "grpo"]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`finished(kind)`: a finished run of four steps as (trainer, result), made once."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            trainer = runs.trainer(kind, tiny_model, tmp_path_factory.mktemp(kind))
            made[kind] = trainer, trainer.train()
        return made[kind]

    return get


# ---- against bare TRL ---------------------------------------------------------------------------------------


def chat(text: str, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def bare(kind: str, model: Path, folder: Path) -> list[dict[str, float]]:
    """The log of the same run on TRL alone, with its settings written out."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    common: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "seed": 3,
        "data_seed": 3,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    given: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        "processing_class": AutoTokenizer.from_pretrained(model),
    }
    if kind == "sft":
        rows = [
            {"prompt": chat(r["prompt"], "user"), "completion": chat(r["completion"], "assistant")}
            for r in runs.SFT_ROWS
        ]
        args = trl.SFTConfig(**common, max_length=64, completion_only_loss=True)
        trainer = trl.SFTTrainer(args=args, train_dataset=Dataset.from_list(rows), **given)
    elif kind == "dpo":
        rows = [
            {"prompt": chat(r["prompt"], "user"), **{k: chat(r[k], "assistant") for k in ("chosen", "rejected")}}
            for r in runs.PAIRS
        ]
        args = trl.DPOConfig(**common, beta=0.1, max_length=64)
        trainer = trl.DPOTrainer(args=args, train_dataset=Dataset.from_list(rows), **given)
    else:
        rows = [{"prompt": chat(r["prompt"], "user")} for r in runs.SFT_ROWS]
        args = trl.GRPOConfig(
            **common,
            num_generations=4,
            beta=0.04,
            epsilon=0.2,
            loss_type="grpo",
            scale_rewards="group",
            max_completion_length=12,
            temperature=1.0,
            top_k=0,
            use_bias_correction_kl=False,
            disable_dropout=False,
        )

        def share(completions: list[Any], **_: Any) -> list[float]:
            texts = [c[0]["content"] for c in completions]
            return [t.count("a") / len(t) if t else 0.0 for t in texts]

        trainer = trl.GRPOTrainer(reward_funcs=[share], args=args, train_dataset=Dataset.from_list(rows), **given)
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_equals_bare_trl(kind: str, finished: Any, tiny_model: Path, tmp_path: Path) -> None:
    trainer, _ = finished(kind)
    theirs = bare(kind, tiny_model, tmp_path)
    keys = {"sft": [], "dpo": ["rewards/margins", "logps/chosen"], "grpo": ["reward", "kl", "completions/mean_length"]}
    for key in ["loss", "grad_norm", "learning_rate", *keys[kind]]:
        ours = runs.logged(trainer.config.output_dir, key)
        assert ours == pytest.approx([row[key] for row in theirs], rel=1e-6, abs=1e-9), key
    assert len(theirs) == 4


# ---- invariants of training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_of_eight_equals_four_accumulated_twos(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    losses = []
    for batch, accumulated in ((8, 1), (2, 4)):
        trainer = runs.trainer(
            kind,
            tiny_model,
            tmp_path / f"b{batch}",
            train__per_device_batch_size=batch,
            train__gradient_accumulation_steps=accumulated,
            train__max_steps=3,
        )
        trainer.train()
        losses.append(runs.logged(trainer.config.output_dir, "grad_norm" if kind == "grpo" else "loss"))
    # GRPO's loss is 0 in its value while on-policy (advantages sum to 0), so its gradient is compared.
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_curve_and_weights(
    kind: str, finished: Any, tiny_model: Path, tmp_path: Path
) -> None:
    first, _ = finished(kind)
    again = runs.trainer(kind, tiny_model, tmp_path / "again")
    again.train()
    assert runs.logged(again.config.output_dir) == runs.logged(first.config.output_dir)
    assert runs.same_weights(again.config.output_dir, first.config.output_dir)


def test_another_seed_gives_another_curve(finished: Any, tiny_model: Path, tmp_path: Path) -> None:
    other = runs.trainer("sft", tiny_model, tmp_path / "other", train__seed=4)
    other.train()
    assert runs.logged(other.config.output_dir) != runs.logged(finished("sft")[0].config.output_dir)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_during_training_changes_nothing(kind: str, finished: Any, tiny_model: Path, tmp_path: Path) -> None:
    data = {"name": str(runs.write_rows(tmp_path / "held.jsonl", (runs.PAIRS if kind == "dpo" else runs.SFT_ROWS)[:5]))}
    watched = runs.trainer(
        kind,
        tiny_model,
        tmp_path / "w",
        evaluation={"dataset": data, "every": 2, "temperature": 0.7, "max_new_tokens": 4},
    )
    result = watched.train()
    assert runs.logged(watched.config.output_dir) == runs.logged(finished(kind)[0].config.output_dir)
    name = {"sft": "eval_nll", "dpo": "eval_rewards/accuracies", "grpo": "eval_reward"}[kind]
    measured = runs.logged(watched.config.output_dir, name)
    assert len(measured) == 2
    assert result.metrics[name] == measured[-1]
    best = min(measured) if kind == "sft" else max(measured)
    assert watched.state.best_metric == best
    assert watched.state.best_step == 2 * (measured.index(best) + 1)
    samples = [
        json.loads(line) for line in (Path(watched.config.output_dir) / "samples.jsonl").read_text().splitlines()
    ]
    assert [s["step"] for s in samples] == [2] * 4 + [4] * 4


def test_gradient_checkpointing_gives_the_same_losses(finished: Any, tiny_model: Path, tmp_path: Path) -> None:
    saving = runs.trainer("sft", tiny_model, tmp_path / "gc", train__gradient_checkpointing=True)
    saving.train()
    assert saving.model.is_gradient_checkpointing
    expected = runs.logged(finished("sft")[0].config.output_dir)
    assert runs.logged(saving.config.output_dir) == pytest.approx(expected, rel=1e-6)


def test_dpo_starts_at_the_logarithm_of_two(finished: Any) -> None:
    trainer, _ = finished("dpo")
    losses = runs.logged(trainer.config.output_dir)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0]


LEARNING = {
    "train__max_steps": 60,
    "train__per_device_batch_size": 16,
    "train__learning_rate": 1e-2,
    "algo__num_generations": 8,
    "algo__beta": 0.0,
}


def rise(model: Path, folder: Path, seed: int) -> float:
    trainer = runs.trainer("grpo", model, folder / f"s{seed}", **LEARNING, train__seed=seed)
    trainer.train()
    rewards = runs.logged(trainer.config.output_dir, "reward")
    return sum(rewards[-10:]) / 10 - sum(rewards[:10]) / 10


def test_grpo_learns_a_reachable_reward(tiny_model: Path, tmp_path: Path) -> None:
    """Share of one letter among 256 byte tokens: near 0.004 at the start."""
    assert rise(tiny_model, tmp_path, seed=0) > 0.2


@pytest.mark.slow
def test_grpo_learns_from_every_seed(tiny_model: Path, tmp_path: Path) -> None:
    assert all(rise(tiny_model, tmp_path, seed) > 0.2 for seed in (1, 2, 3))


# ---- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_with_lora_only_adapters_move(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    trainer = runs.trainer(
        kind, tiny_model, tmp_path / kind, model__peft={"r": 4, "alpha": 8}, train__learning_rate=1e-2
    )
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = {k.replace(".ref.", ".default."): v for k, v in trainer.model.state_dict().items() if ".ref." not in k}
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved
    assert all("lora_" in k for k in moved)
    saved = runs.weights(trainer.config.output_dir)
    assert saved
    assert all("lora_" in k for k in saved)
    assert all(".ref." not in k for k in saved)
    if kind == "dpo":
        assert runs.logged(trainer.config.output_dir)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_the_reference_of_lora_is_the_model_with_its_adapter_off(tiny_model: Path, tmp_path: Path) -> None:
    """The same adapter merged into full weights, measured against the starting folder, has the same margins."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = runs.trainer("dpo", tiny_model, tmp_path, model__peft={"r": 4}, train__learning_rate=1e-2)
    trainer.train()
    data = tmp_path / "dpo.jsonl"
    ours = trainer.evaluate(data)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), trainer.config.output_dir)
    margins = margins_by_hand(merged.merge_and_unload(), base, AutoTokenizer.from_pretrained(tiny_model), beta=0.1)
    assert ours["eval_rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    assert abs(ours["eval_rewards/margins"]) > 1e-3


# ---- evaluation against references ---------------------------------------------------------------------------------


def logps_by_hand(model: Any, tokenizer: Any, prompt: str, answer: str) -> Any:
    """Log-probabilities of the answer's tokens (with their terminator) under the chat template."""
    import torch

    asked = tokenizer.apply_chat_template(chat(prompt, "user"), add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(chat(prompt, "user") + chat(answer, "assistant"), tokenize=False)
    start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    return logps[start - 1 :]


def margins_by_hand(model: Any, reference: Any, tokenizer: Any, beta: float) -> list[float]:
    def gain(prompt: str, answer: str) -> float:
        mine, base = (logps_by_hand(m, tokenizer, prompt, answer).sum() for m in (model, reference))
        return float(mine - base)

    return [beta * (gain(r["prompt"], r["chosen"]) - gain(r["prompt"], r["rejected"])) for r in runs.PAIRS]


def test_sft_evaluation_is_the_mean_over_tokens(finished: Any) -> None:
    trainer, _ = finished("sft")
    data = Path(trainer.config.output_dir).parent / "sft.jsonl"
    rows = [logps_by_hand(trainer.model.eval(), trainer.tokenizer, r["prompt"], r["completion"]) for r in runs.SFT_ROWS]
    tokens = sum(len(row) for row in rows)
    nll = -sum(float(row.double().sum()) for row in rows) / tokens
    measured = trainer.evaluate(data)
    assert measured["eval_tokens"] == tokens
    assert measured["eval_nll"] == pytest.approx(nll, rel=1e-6)
    assert measured["eval_perplexity"] == pytest.approx(math.exp(nll), rel=1e-6)


def test_sft_evaluation_does_not_depend_on_the_batch_size(tiny_model: Path, tmp_path: Path) -> None:
    long = [{"prompt": "x", "completion": "y" * n} for n in (1, 2, 30, 3, 40, 5)]
    data = runs.write_rows(tmp_path / "uneven.jsonl", long)
    found = [
        runs.trainer("sft", tiny_model, tmp_path, evaluation__batch_size=n).evaluate(data)["eval_nll"]
        for n in (1, 4, 8)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_dpo_evaluation_equals_margins_by_hand(finished: Any, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    trainer, _ = finished("dpo")
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    margins = margins_by_hand(trainer.model.eval(), reference, trainer.tokenizer, beta=0.1)
    measured = trainer.evaluate(Path(trainer.config.output_dir).parent / "dpo.jsonl")
    assert measured["eval_rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    assert measured["eval_rewards/accuracies"] == sum(m > 0 for m in margins) / len(margins)
    assert measured["eval_loss"] == pytest.approx(
        sum(math.log1p(math.exp(-m)) for m in margins) / len(margins), abs=1e-5
    )


def test_an_untrained_dpo_model_has_no_margin(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("dpo", tiny_model, tmp_path)
    measured = trainer.evaluate(tmp_path / "dpo.jsonl")
    assert measured["eval_rewards/margins"] == 0.0
    assert measured["eval_loss"] == pytest.approx(math.log(2))


def test_the_held_out_loss_is_only_given_for_the_loss_that_is_trained(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("dpo", tiny_model, tmp_path, algo__loss_type="ipo")
    measured = trainer.evaluate(tmp_path / "dpo.jsonl")
    assert "eval_loss" not in measured
    assert measured["eval_rewards/margins"] == 0.0


def test_a_loaded_model_is_measured_against_the_starting_one(finished: Any, tiny_model: Path, tmp_path: Path) -> None:
    trained, _ = finished("dpo")
    fresh = runs.trainer("dpo", tiny_model, tmp_path)
    fresh.load_model(trained.config.output_dir)
    data = tmp_path / "dpo.jsonl"
    assert fresh.evaluate(data) == pytest.approx(trained.evaluate(data), rel=1e-5)


def test_grpo_evaluation_is_the_mean_reward_of_its_own_answers(finished: Any) -> None:
    trainer, _ = finished("grpo")
    measured = trainer.evaluate(Path(trainer.config.output_dir).parent / "grpo.jsonl")
    answers = trainer.generate([r["prompt"] for r in runs.SFT_ROWS], max_new_tokens=12)
    expected = [a.count("a") / len(a) if a else 0.0 for a in answers]
    assert measured["eval_reward"] == pytest.approx(sum(expected) / len(expected))
    assert measured["eval_rewards/share_of_a"] == measured["eval_reward"]
    assert measured["eval_rows"] == len(runs.SFT_ROWS)


def test_generate_keeps_the_order_and_is_repeatable(finished: Any) -> None:
    trainer, _ = finished("sft")
    prompts = ["Say 1", "Say a much longer thing than that", "Say 2"]
    answers = trainer.generate(prompts, max_new_tokens=5)
    assert answers == [trainer.generate(p, max_new_tokens=5)[0] for p in prompts]
    warm = [trainer.generate(prompts, max_new_tokens=5, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


# ---- what a run leaves behind --------------------------------------------------------------------------------------


@pytest.mark.parametrize("peft", [None, {"r": 4}])
def test_a_saved_model_loads_to_the_same_logits(peft: Any, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    trainer = runs.trainer("sft", tiny_model, tmp_path, model__peft=peft)
    result = trainer.train()
    folder = trainer.save_model(tmp_path / "elsewhere")
    ids = torch.tensor([trainer.tokenizer("Say 3")["input_ids"]])
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        for path in (result.model_path, folder):
            other = runs.trainer("sft", tiny_model, tmp_path, model__peft=peft, output_dir=str(tmp_path / "no"))
            other.load_model(path)
            assert torch.equal(other.model.eval()(ids).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_a_mapping_and_agrees_with_state_and_files(kind: str, finished: Any) -> None:
    trainer, result = finished(kind)
    folder = Path(trainer.config.output_dir)
    losses = runs.logged(folder)
    assert result["final_loss"] == result.final_loss == pytest.approx(sum(losses) / 4, rel=1e-5, abs=1e-7)
    assert result["total_steps"] == 4 == trainer.state.step
    assert result["model_path"] == str(folder)
    assert result["training_time"] > 0
    assert result["loss"] == losses[-1] == result.metrics["loss"]
    assert set(result) == {*result.__dataclass_fields__, *result.metrics}
    assert len(result) == len(set(result))
    assert trainer.state.status == "finished"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["summary"]["final_loss"] == result.final_loss
    assert manifest["notes"] != []
    assert manifest["notes"] == trainer.notes[: len(manifest["notes"])]  # evaluating later adds its own
    for name in ("config.resolved.yaml", "metrics.jsonl", "model.safetensors", "report.html", "README.md"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "rollouts").is_dir() == (kind == "grpo")


def test_the_resolved_config_trains_the_same_run_again(finished: Any, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.config import load_config

    trainer, _ = finished("grpo")
    file = Path(trainer.config.output_dir) / "config.resolved.yaml"
    again = create_trainer(load_config(file, overrides=[f"output_dir={tmp_path / 'again'}"]))
    again.train()
    assert runs.same_weights(again.config.output_dir, trainer.config.output_dir)


def test_rollouts_hold_each_step_with_its_rewards(finished: Any) -> None:
    from aligntune.utils.rollouts import read_rollouts

    trainer, _ = finished("grpo")
    table = read_rollouts(trainer.config.output_dir).to_pydict()
    assert table["step"] == [s for s in (1, 2, 3, 4) for _ in range(4)]
    means = [sum(table["reward"][i : i + 4]) / 4 for i in range(0, 16, 4)]
    assert means == pytest.approx(runs.logged(trainer.config.output_dir, "reward"), abs=1e-6)
    assert all(
        r == pytest.approx(t.count("a") / len(t) if t else 0)
        for r, t in zip(table["reward"], table["completion"], strict=True)
    )


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_reference_that_differs_from_the_start_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """TRL reads the reference from disk by name: a model that was changed in memory would train against another one."""
    import torch

    from aligntune.errors import TrainingError

    trainer = runs.trainer("dpo", tiny_model, tmp_path)
    with torch.no_grad():
        trainer.model.model.norm.weight.add_(0.1)
    with pytest.raises(TrainingError, match=r"reference model differs .* model\.norm\.weight"):
        trainer.train()


def test_settings_that_the_library_changes_are_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    from aligntune.errors import TrainingError

    ours = trl.SFTConfig.__post_init__

    def meddle(self: Any) -> None:
        ours(self)
        self.learning_rate = 5e-5

    monkeypatch.setattr(trl.SFTConfig, "__post_init__", meddle)
    with pytest.raises(TrainingError, match=r"learning_rate: 0\.001 became 5e-05"):
        runs.trainer("sft", tiny_model, tmp_path).train()


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_stands_in_the_library_as_it_was_sent(kind: str, finished: Any) -> None:
    trainer, _ = finished(kind)
    sent = trainer.arguments()
    names = {
        "logging_steps",
        "max_steps",
        "seed",
        "weight_decay",
        "lr_scheduler_type",
        "optim",
        "bf16",
        "max_grad_norm",
    }
    assert names <= set(sent)
    for name, value in sent.items():
        now = getattr(trainer._hf.args, name)
        now = getattr(now, "value", now)
        if value is not None and name not in ("report_to", "gradient_checkpointing_kwargs"):
            assert now == value, name


def test_a_reward_that_raises_stops_before_anything_is_written(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.errors import RewardError

    trainer = runs.trainer("grpo", tiny_model, tmp_path)
    (tmp_path / "share.py").write_text("def share_of_a(text):\n    return 1 / 0\n")
    with pytest.raises(RewardError, match="share_of_a"):
        trainer.train()
    assert not (tmp_path / "out").exists()


def test_a_reward_that_raises_later_fails_the_run_in_its_manifest(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.errors import RewardError

    trainer = runs.trainer("grpo", tiny_model, tmp_path)
    (tmp_path / "share.py").write_text("def share_of_a(text):\n    return 1 / (len(text) == 0)\n")
    with pytest.raises(RewardError, match="share_of_a"):
        trainer.train()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["status"] == "failed" == trainer.state.status
    assert manifest["error"]["type"] == "RewardError"


def test_a_loss_that_is_not_a_number_fails_the_run(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from aligntune.errors import TrainingError

    trainer = runs.trainer("sft", tiny_model, tmp_path)
    with torch.no_grad():
        trainer.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not a finite number"):
        trainer.train()
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert runs.logged(tmp_path / "out") == ["NaN"]  # it stopped at the first one


@pytest.mark.parametrize(
    ("key", "value", "package"),
    [("logging__report_to", ["tensorboard"], "tensorboard"), ("train__optimizer", "adamw_8bit", "bitsandbytes")],
)
def test_a_setting_without_its_package_is_refused_with_the_command(
    key: str, value: Any, package: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from aligntune.errors import EnvironmentError

    found = importlib.util.find_spec
    hidden = (package, "tensorboardX")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else found(name, *a))
    trainer = runs.trainer("sft", tiny_model, tmp_path, **{key: value})
    with pytest.raises(EnvironmentError, match=package) as caught:
        trainer.train()
    assert f"pip install {package}" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_logging_service_gets_the_metrics(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    runs.trainer("sft", tiny_model, tmp_path, logging__report_to=["tensorboard"]).train()
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


def test_evaluate_without_data_says_what_to_set(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.errors import ConfigurationError

    with pytest.raises(ConfigurationError) as caught:
        runs.trainer("sft", tiny_model, tmp_path).evaluate()
    assert "evaluation.dataset" in caught.value.hint


def test_a_checkpoint_before_training_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.errors import TrainingError

    with pytest.raises(TrainingError, match="before training"):
        runs.trainer("sft", tiny_model, tmp_path).save_checkpoint()
