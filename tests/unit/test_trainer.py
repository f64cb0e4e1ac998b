"""The trainer's surface, and what it decides without training."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runs
from aligntune.core import process
from aligntune.core.backend_factory import create_rl_trainer, create_sft_trainer, create_trainer, describe
from aligntune.core.best import count
from aligntune.core.callbacks import StopRequest, numbers
from aligntune.core.config import build_config
from aligntune.core.rl import TrainerBase
from aligntune.core.sft import SFTTrainerBase, SFTTrainerFactory, TaskType
from aligntune.core.state import TrainingState, TrainResult
from aligntune.core.trainer import Trainer
from aligntune.errors import ConfigurationError

METHODS = {
    "train": ["resume"],
    "evaluate": ["dataset"],
    "save_model": ["path"],
    "load_model": ["path"],
    "save_checkpoint": [],
    "load_checkpoint": ["path"],
    "generate": ["prompts", "options"],
}
OPTIONAL = ("train", "evaluate", "save_model")


@pytest.mark.parametrize("cls", [Trainer, TrainerBase, SFTTrainerBase, process.ProcessTrainer])
def test_the_methods_of_every_trainer(cls: type) -> None:
    for name, names in METHODS.items():
        signature = inspect.signature(getattr(cls, name))
        assert list(signature.parameters)[1:] == names, name
        if name in OPTIONAL:
            assert all(p.default is None for p in list(signature.parameters.values())[1:])
    for name in ("model", "tokenizer"):
        assert isinstance(inspect.getattr_static(cls, name), property)


def test_the_fields_of_state_and_result() -> None:
    assert {"step", "epoch", "best_metric", "checkpoint_path"} <= {f.name for f in dataclasses.fields(TrainingState)}
    result = TrainResult(0.5, 3, 1.0, "out", 10, {"reward": 2.0})
    assert dict(result) == {
        "final_loss": 0.5, "total_steps": 3, "training_time": 1.0, "model_path": "out", "peak_memory": 10,
        "metrics": {"reward": 2.0}, "reward": 2.0, "best": None, "intervals": {},
        "peak_gpu_memory": None,
    }  # fmt: skip
    assert result["reward"] == 2.0
    values = {"reward": 2.0, "eval_nll": 1.0, "eval_rows": 3.0, "eval/sums/accuracy": 0.5, "eval/seconds": 1.5}
    known = {"eval_nll": [0.9, 1.1], "eval/sums/accuracy": [0.25, 0.75]}
    assert TrainResult(0.5, 3, 1.0, "out", 10, values, None, known).evaluated() == [
        "eval_nll 1.0000 [0.9000, 1.1000]", "eval_rows 3.0000", "eval/sums/accuracy 0.5000 [0.2500, 0.7500]",
    ]  # fmt: skip
    with pytest.raises(KeyError):
        result["nothing"]


def test_making_a_trainer_imports_nothing_heavy(tmp_path: Path) -> None:
    raw = runs.plain("grpo", Path("model"), tmp_path)
    code = f"""
import json, sys
from aligntune.core.backend_factory import create_trainer, describe
from aligntune.core.config import build_config
config = build_config(json.loads({json.dumps(raw)!r}))
trainer = create_trainer(config)
describe(config)
print([m for m in ("torch", "transformers", "trl", "datasets", "peft", "unsloth") if m in sys.modules], type(trainer).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] TRLGRPOTrainer"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_the_description_shows_the_arguments_that_training_gets(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    config = build_config(runs.plain(kind, tiny_model, tmp_path))
    shown = describe(config)["arguments"]
    given = create_trainer(config).arguments()
    chosen = {k for k, v in shown.items() if v == "chosen from the hardware"}
    assert chosen == {"bf16", "fp16", "use_cpu"}
    same = set(given) - chosen - {"output_dir", "dataloader_pin_memory"}
    assert {k: shown[k] for k in same} == {k: given[k] for k in same}


def test_the_factories_give_the_named_classes(tiny_model: Path, tmp_path: Path) -> None:
    import aligntune.backends.trl as trl_backend
    from aligntune.backends.trl.rl import TRLDPOTrainer

    common: dict[str, Any] = {"model_name": str(tiny_model), "output_dir": str(tmp_path / "o")}
    data = runs.write_rows(tmp_path / "p.jsonl", runs.PAIRS)
    dpo = create_rl_trainer(dataset_name=str(data), algorithm="dpo", beta=0.2, **common)
    assert type(dpo) is TRLDPOTrainer is trl_backend.TRLDPOTrainer
    assert dpo.config.algo.beta == 0.2  # type: ignore[attr-defined]
    sft = create_sft_trainer(dataset_name=str(data), **common)
    assert isinstance(sft, trl_backend.TRLSFTTrainer)
    assert isinstance(sft, SFTTrainerBase)
    assert type(SFTTrainerFactory.create(sft.config)) is type(sft)  # type: ignore[arg-type]
    assert TaskType.CHAT_COMPLETION == "chat_completion"
    with pytest.raises(ConfigurationError, match="algo dpo"):
        TRLDPOTrainer(build_config(runs.plain("grpo", tiny_model, tmp_path)))
    with pytest.raises(ConfigurationError, match="not for this function"):
        create_sft_trainer(config=dpo.config)


def test_a_trainer_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="takes a configuration with `task`"):
        SFTTrainerBase(build_config(runs.plain("dpo", Path("model"), tmp_path)))


def test_evaluate_names_a_wrong_key(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("sft", tiny_model, tmp_path)
    with pytest.raises(ConfigurationError, match="nam: unknown key"):
        trainer.evaluate({"nam": "x"})


def test_the_output_folder_is_absolute_for_the_library(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = runs.trainer("sft", tiny_model, tmp_path, output_dir="here/run")
    assert trainer.arguments()["output_dir"] == str(tmp_path / "here" / "run")


def test_nothing_is_written_where_data_are_wrong(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.errors import ValidationError

    trainer = runs.trainer("sft", tiny_model, tmp_path, model__max_seq_length=3)
    with pytest.raises(ValidationError, match=r"model\.max_seq_length = 3"):
        trainer.train()
    assert not (tmp_path / "out").exists()


def test_training_on_the_assistant_needs_a_chat_template(tiny_model_plain: Path, tmp_path: Path) -> None:
    from aligntune.errors import ValidationError

    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    data = str(runs.write_rows(tmp_path / "m.jsonl", rows))
    changes: dict[str, Any] = {"dataset": {"name": data}, "train__max_steps": 1}
    trainer = runs.trainer("sft", tiny_model_plain, tmp_path, task="chat_completion", **changes)
    with pytest.raises(ValidationError, match="needs a chat template") as caught:
        trainer.train()
    assert "task.train_on: all" in caught.value.hint
    assert not (tmp_path / "out").exists()
    plain = runs.trainer(
        "sft", tiny_model_plain, tmp_path, task={"name": "chat_completion", "train_on": "all"}, **changes
    )
    assert plain.train().total_steps == 1


@pytest.mark.parametrize(
    ("values", "best", "found"),
    [
        ({"eval_nll": 2.0}, None, 2.0),
        ({"eval_nll": 2.0}, 1.0, None),
        ({"eval_nll": 0.5}, 1.0, 0.5),
        ({"eval_reward": 2.0}, 1.0, 2.0),
        ({"eval_reward": 1.0}, 1.0, None),
        ({"eval_rewards/accuracies": 0.9, "eval_loss": 0.1}, 0.8, 0.9),
        ({"eval_loss": 0.1}, None, None),
    ],
)
def test_the_best_value_is_the_lowest_loss_or_the_highest_reward(
    values: dict[str, float], best: float | None, found: float | None
) -> None:
    train = SimpleNamespace(best_metric=None, best_mode=None)
    state = TrainingState(best_metric=best, best_step=1)
    count(SimpleNamespace(config=SimpleNamespace(train=train), state=state, _directions={}), 5, values)
    assert (state.best_metric, state.best_step) == ((best, 1) if found is None else (found, 5))
    assert state.without_gain == (found is None)


def test_only_numbers_are_logged() -> None:
    assert numbers({"loss": 1, "flag": True, "text": "x", "kl": 0.5, "none": None}) == {"loss": 1.0, "kl": 0.5}


def test_a_second_signal_stops_at_once() -> None:
    import signal

    stop = StopRequest()
    with stop.listening():
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_old_name_of_checkpointing_is_passed_without_a_word() -> None:
    from aligntune.core.arguments import library_arguments

    def newer(**values: Any) -> dict[str, Any]:
        warnings.warn("`gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=2)
        if values.get("seed") == 1:
            warnings.warn("`seed` is deprecated", FutureWarning, stacklevel=2)
        return values

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = {"gradient_checkpointing": False}
        assert library_arguments(newer, given) == given  # type: ignore[arg-type]
        with pytest.raises(FutureWarning, match="`seed`"):
            library_arguments(newer, {"seed": 1})  # type: ignore[arg-type]
