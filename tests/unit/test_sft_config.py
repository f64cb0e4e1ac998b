"""Configurations made in Python speak as those of files do."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pytest

from aligntune.algorithms.base import get_algorithm, get_task
from aligntune.core.config import ModelConfig, PeftConfig, RLConfig, SFTConfig, TrainConfig, build_config, load_config
from aligntune.errors import ConfigurationError

SFT: dict[str, Any] = {"task": "text_generation", "model": {"name_or_path": "m"}, "dataset": "rows.jsonl"}
RL: dict[str, Any] = {"algo": "dpo", "model": {"name_or_path": "m"}, "datasets": "pairs.jsonl"}

FAULTS: list[tuple[dict[str, Any], str]] = [
    ({**SFT, "trian": {}}, "trian"),
    ({**SFT, "train": {"learning_rat": 1e-4}}, "train.learning_rat"),
    ({**SFT, "model": {"name_or_path": "m", "peft": {"rank": 4}}}, "model.peft.rank"),
    ({**SFT, "train": {"max_steps": 0}}, "train.max_steps"),
    ({**SFT, "task": {"name": "text_generation", "pack": True}}, "task.pack"),
    ({**SFT, "task": "text_generatoin"}, "text_generatoin"),
    ({**SFT, "task": "dpo"}, "algo: dpo"),
    ({k: v for k, v in SFT.items() if k != "dataset"}, "dataset"),
    (
        {**SFT, "train": {"learning_rat": 1e-4}, "loging": {}, "task": {"name": "text_generation", "loss": "x"}},
        "3 settings",
    ),
    ({**RL, "algo": {"name": "dpo", "beta": -1}}, "algo.beta"),
    ({**RL, "algo": {"beta": 1}}, "algo needs a name"),
    ({**RL, "backend": "trll"}, "backend"),
]


@pytest.mark.parametrize(("raw", "named"), FAULTS)
def test_a_fault_in_python_reads_as_in_a_file(raw: dict[str, Any], named: str) -> None:
    cls: Any = RLConfig if "algo" in raw else SFTConfig
    with pytest.raises(ConfigurationError) as file:
        build_config(raw)
    with pytest.raises(ConfigurationError) as python:
        cls(**raw)
    assert named in str(python.value)
    assert python.value.message == f"{cls.__name__}(...): {file.value.message}"
    assert python.value.hint == file.value.hint
    assert python.value.context == file.value.context
    assert python.value.exit_code == 2


def test_every_section_speaks_so() -> None:
    for make, named in (
        (lambda: ModelConfig(name_or_path="m", quantization="3bit"), r"ModelConfig\(\.\.\.\): quantization: "),
        (lambda: PeftConfig(rank=3), r"PeftConfig\(\.\.\.\): rank: unknown key"),  # type: ignore[call-arg]
        (lambda: ModelConfig(), r"name_or_path: is missing"),  # type: ignore[call-arg]
        (lambda: get_algorithm("dpo")(beta=-2), r"DPO\(\.\.\.\): beta: "),
        (lambda: get_task("text_generation")(packing="maybe"), r"TextGeneration\(\.\.\.\): packing: "),
        (lambda: dataclasses.replace(TrainConfig(), max_steps=-1), r"TrainConfig\(\.\.\.\): max_steps: "),
    ):
        with pytest.raises(ConfigurationError, match=named):
            make()


def test_a_good_configuration_is_as_before() -> None:
    config = SFTConfig(**SFT, train={"max_steps": 3})
    assert config.train == TrainConfig(max_steps=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, output_dir="x").output_dir == "x"
    assert load_config(config).train.max_steps == 3
    names = list(inspect.signature(SFTConfig).parameters)
    assert {"model", "task", "dataset", "train"} <= set(names)


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        (["train.num_epochs=2", "train.max_steps=null"], None, 2),
        (["train.max_steps=5", "train.num_epochs=2"], None, 2),
        (["train.num_epochs=2", "train.max_steps=5"], 5, 3),
        (["train.max_steps=null"], None, 3),
    ],
)
def test_the_later_of_steps_and_epochs_wins_and_an_empty_one_takes_nothing_away(
    overrides: list[str], steps: int | None, epochs: float
) -> None:
    config = load_config({**SFT, "train": {"learning_rate": 1e-4}}, overrides=overrides)
    assert (config.train.max_steps, config.train.num_epochs) == (steps, epochs)
