"""Algorithms as data: what they register, what they send to TRL, and which contradictions they refuse."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.algorithms.base import (
    ALGORITHMS,
    AlgorithmParams,
    Schema,
    algorithm,
    algorithm_names,
    get_algorithm,
    get_task,
    parse_params,
    task_names,
)
from aligntune.core.arguments import trainer_arguments
from aligntune.core.config import build_config, field_docs
from aligntune.errors import ConfigurationError
from aligntune.registry import import_attribute

ALL = [*map(get_task, task_names()), *map(get_algorithm, algorithm_names())]
KINDS = ["sft", "dpo", "grpo"]


def config(kind: str, folder: Path, **changes: Any) -> Any:
    return build_config(runs.plain(kind, Path("model"), folder, **changes))


def sent(kind: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return trainer_arguments(config(kind, folder, **changes), device="cpu", precision="fp32", output_dir="out")


def test_what_there_is() -> None:
    assert {"dpo", "grpo"} <= set(algorithm_names())
    assert {"instruction_following", "chat_completion", "text_generation"} <= set(task_names())
    assert get_algorithm("dpo").data is Schema.PREFERENCE
    assert get_algorithm("grpo").uses_rewards
    assert get_task("text_generation").data is Schema.TEXT


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.key)
def test_every_definition_is_complete(cls: type[AlgorithmParams]) -> None:
    """A summary, a source for every default, a learning rate of its own, and classes that exist."""
    assert (inspect.getdoc(cls) or "").strip().endswith(".")
    docs = field_docs(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        assert len(docs[field.name]) > 20, field.name
    assert 0 < cls.learning_rate < 1e-2
    assert inspect.isclass(import_attribute(cls.trainer))
    assert inspect.isclass(import_attribute(cls.args))


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_is_one_of_the_library(kind: str, tmp_path: Path) -> None:
    values = sent(kind, tmp_path)
    cls = import_attribute(config(kind, tmp_path).algorithm.args)
    assert set(values) <= {f.name for f in dataclasses.fields(cls)}


MEASURED = {
    "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "warmup_steps", "optim", "weight_decay",
    "gradient_accumulation_steps", "bf16", "logging_steps", "logging_nan_inf_filter", "seed", "router_aux_loss_coef",
    "gradient_checkpointing", "loss_type", "padding_free", "beta",
}  # fmt: skip
"""Defaults that differ between TRL 1.14.2 and Unsloth 2026.10.9 on a GPU, or between TRL and Transformers."""


@pytest.mark.parametrize("kind", KINDS)
def test_no_default_that_differs_between_backends_is_left_to_them(kind: str, tmp_path: Path) -> None:
    own = {"sft": {"beta"}, "dpo": set(), "grpo": {"padding_free"}}[kind]  # not known to that class
    assert MEASURED - own <= set(sent(kind, tmp_path))


def test_dpo_sends_the_loss_of_the_paper(tmp_path: Path) -> None:
    values = sent("dpo", tmp_path, algo__beta=0.3)
    expected = {"beta": 0.3, "loss_type": ["sigmoid"], "label_smoothing": 0.0, "f_divergence_type": "reverse_kl"}
    assert expected.items() <= values.items()
    assert values["max_length"] == 64


def test_grpo_sends_the_loss_of_the_paper(tmp_path: Path) -> None:
    values = sent("grpo", tmp_path, train__gradient_accumulation_steps=2, algo__epsilon_high=0.28)
    expected = {
        "loss_type": "grpo", "scale_rewards": "group", "beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.28,
        "use_bias_correction_kl": False, "importance_sampling_level": "token", "num_generations": 4,
        "steps_per_generation": 2, "max_completion_length": 12,
    }  # fmt: skip
    assert expected.items() <= values.items()


@pytest.mark.parametrize(
    ("task", "train_on", "completion", "assistant"),
    [
        ("instruction_following", "completion", True, False),
        ("instruction_following", "all", False, False),
        ("chat_completion", "assistant", False, True),
        ("chat_completion", "all", False, False),
    ],
)
def test_tasks_say_which_tokens_are_trained(
    task: str, train_on: str, completion: bool, assistant: bool, tmp_path: Path
) -> None:
    values = sent("sft", tmp_path, task={"name": task, "train_on": train_on})
    assert (values["completion_only_loss"], values["assistant_only_loss"]) == (completion, assistant)


def test_text_generation_trains_on_every_token(tmp_path: Path) -> None:
    values = sent("sft", tmp_path, task="text_generation")
    assert not values["completion_only_loss"]
    assert not values["assistant_only_loss"]


# ---- what depends on other sections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        (
            {"train__per_device_batch_size": 6},
            "algo.num_generations",
            "6 x steps per generation 1 = 6, and 6 / 4 = 1.5",
        ),
        ({"rewards": []}, "rewards", "is empty"),
        ({"rewards__0__weight": 0.0}, "rewards", "only zero weights"),
        ({"model__max_seq_length": 43}, "model.max_seq_length", "32 + generation.max_completion_length 12 = 44"),
        ({"algo__num_iterations": 2, "train__save_steps": 3}, "train.save_steps", "inside a generation window"),
    ],
)
def test_grpo_refuses_what_does_not_fit(changes: dict[str, Any], key: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config("grpo", tmp_path, **changes)
    assert key in caught.value.message
    assert words in f"{caught.value.message}; {caught.value.hint}"


def test_batches_that_fit_through_accumulation_are_taken(tmp_path: Path) -> None:
    """Two prompts of four completions, in four micro-batches of two."""
    config("grpo", tmp_path, train__per_device_batch_size=2, train__gradient_accumulation_steps=4)
    config("grpo", tmp_path, train__per_device_batch_size=2, algo__steps_per_generation=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algo__label_smoothing": 0.1, "algo__loss_type": "ipo"}, "has no effect with loss_type ipo"),
        ({"algo__loss_type": "exo_pair"}, "must be above 0"),
        ({"algo__beta": 0}, "greater than 0"),
        ({"algo__label_smoothing": 0.6}, "less than 0.5"),
    ],
)
def test_dpo_refuses_what_does_not_fit(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config("dpo", tmp_path, **changes)
    assert words in f"{caught.value.message}; {caught.value.hint}"


def test_a_run_can_stop_where_no_completions_are_kept(tmp_path: Path) -> None:
    """steps_per_generation 4 over accumulation 2: a generation serves two optimizer steps, times mu = 2 is four."""
    c = config(
        "grpo", tmp_path, algo__steps_per_generation=4, algo__num_iterations=2, train__gradient_accumulation_steps=2
    )
    assert [step for step in range(1, 9) if c.algo.resumable(c, step)] == [4, 8]
    assert config("sft", tmp_path).task.resumable(None, 3)


# ---- names ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        get_algorithm("gpro")
    assert "grpo" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("instruction_following", "rl", "write `task:"),
        ("sft", "rl", "write `task:"),
        ("dpo", "sft", "write `algo: dpo`"),
    ],
)
def test_a_name_of_the_other_kind_is_sent_there(name: str, kind: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_params(name, kind)
    assert words in caught.value.hint


def test_an_algorithm_is_one_class(tmp_path: Path) -> None:
    """As in the guide: a subclass with another default, registered, trains through the same trainer."""

    @algorithm("wider", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
    class Wider(get_algorithm("grpo")):  # type: ignore[misc]
        """GRPO with a wider upper clip."""

        epsilon_high: float = 0.28
        """Upper clip (arXiv:2503.14476)."""

    try:
        raw = runs.plain("grpo", Path("model"), tmp_path)
        raw["algo"] = {"name": "wider", "num_generations": 4}
        values = trainer_arguments(build_config(raw), device="cpu", precision="fp32", output_dir="out")
        assert values["epsilon_high"] == 0.28
        assert values["loss_type"] == "grpo"
    finally:
        ALGORITHMS.remove("wider")
