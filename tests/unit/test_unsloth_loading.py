"""What Unsloth is given, without a GPU: with fakes, and by reading the installed package's source."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.backends.unsloth import backend as module
from aligntune.backends.unsloth.backend import UnslothBackend
from aligntune.backends.unsloth.loading import accepted, adapter_arguments, load_arguments, returning_logits
from aligntune.core.backend import BACKENDS, Backend
from aligntune.core.config import load_config
from aligntune.errors import ConfigurationError, EnvironmentError

LORA = {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj"], "use_rslora": True}
VLLM = {"max_prompt_length": 32, "max_completion_length": 12, "use_vllm": True, "vllm_gpu_memory_utilization": 0.4}


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Any:
    """`config(kind, ...)` on the Unsloth backend."""
    return lambda kind="sft", **changes: load_config(
        runs.plain(kind, tiny_model, tmp_path, **{"backend": "unsloth", **changes})
    )


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, {"full_finetuning"}),
        ({"model__peft": LORA}, {"load_in_16bit"}),
        ({"model__peft": LORA, "model__quantization": "4bit"}, {"load_in_4bit"}),
        ({"model__peft": LORA, "model__quantization": "8bit"}, {"load_in_8bit"}),
    ],
)
def test_exactly_one_way_of_loading_is_asked_for(changes: dict[str, Any], flags: set[str], config: Any) -> None:
    given = load_arguments(config(**changes), "dtype")
    ways = ("full_finetuning", "load_in_16bit", "load_in_4bit", "load_in_8bit")
    assert {way for way in ways if given[way]} == flags
    assert all(isinstance(given[way], bool) for way in ways)  # never left to a default, which is 4 bit


def test_every_value_is_the_configurations(config: Any) -> None:
    c = config(model__peft=LORA, train__gradient_checkpointing=True, train__seed=11, model__max_seq_length=48)
    given = load_arguments(c, "dtype")
    assert given["model_name"] == c.model.name_or_path
    assert (given["max_seq_length"], given["dtype"], given["random_state"]) == (48, "dtype", 11)
    assert given["use_gradient_checkpointing"] is True
    assert given["fast_inference"] is False
    assert "gpu_memory_utilization" not in given
    assert given["float32_mixed_precision"] is True
    adapters = adapter_arguments(c)
    assert (adapters["r"], adapters["lora_alpha"], adapters["lora_dropout"]) == (4, 8, 0.1)
    assert (adapters["target_modules"], adapters["use_rslora"], adapters["use_dora"]) == (["q_proj"], True, False)
    assert (adapters["random_state"], adapters["use_gradient_checkpointing"], adapters["bias"]) == (11, True, "none")
    assert adapter_arguments(config()) == {}


def test_vllm_stands_inside_its_model(config: Any) -> None:
    c = config("grpo", generation=VLLM, model__peft=LORA)
    given = load_arguments(c, "dtype")
    assert (given["fast_inference"], given["gpu_memory_utilization"], given["max_lora_rank"]) == (True, 0.4, 4)
    assert UnslothBackend().arguments(c) == {"top_k": -1}  # its trainer writes that for "off"
    assert UnslothBackend().arguments(config("grpo", generation={**VLLM, "top_k": 5}, model__peft=LORA)) == {}
    assert UnslothBackend().arguments(config("grpo")) == {}


@pytest.mark.parametrize(
    "key", ["vllm_mode: server", "vllm_tensor_parallel_size: 2", "vllm_max_model_length: 64", "vllm_server_port: 9"]
)
def test_keys_that_its_vllm_does_not_read_are_refused(key: str, config: Any) -> None:
    name, value = key.split(": ")
    generation = {**VLLM, name: int(value) if value.isdigit() else value}
    if name == "vllm_server_port":
        generation["vllm_mode"] = "server"
    with pytest.raises(ConfigurationError, match=r"generation\.vllm_"):
        config("grpo", generation=generation, model__peft=LORA)


def test_what_vllm_on_unsloth_cannot_be_is_refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, lora = config("grpo", generation=VLLM), config("grpo", generation=VLLM, model__peft=LORA)
    with pytest.raises(ConfigurationError, match=r"model\.peft is not set") as caught:
        module._refuse_on_gpu(whole)
    assert "model.peft" in caught.value.hint
    module._refuse_on_gpu(lora)
    with pytest.raises(ConfigurationError, match=r"generation\.use_vllm has no effect on Unsloth's CPU backend"):
        module._refuse_on_cpu(lora)


# ---- guards by introspection ------------------------------------------------------------------------------------


def test_a_release_that_lacks_an_argument_is_refused_by_name() -> None:
    def older(model_name: str, load_in_4bit: bool = True, **kwargs: Any) -> None: ...

    def hidden(*args: Any, **kwargs: Any) -> None: ...

    given = {"model_name": "m", "load_in_4bit": False, "random_state": 3}
    assert accepted(older, given) == {"model_name": "m", "load_in_4bit": False}  # means nothing where it is not named
    assert accepted(hidden, given) == given
    with pytest.raises(EnvironmentError, match="does not take full_finetuning") as caught:
        accepted(older, {**given, "full_finetuning": True})
    assert BACKENDS["unsloth"].install in caught.value.hint


def parameters(file: Path, cls: str, name: str) -> set[str]:
    """Names of a method's parameters, read from the source: the GPU classes cannot be imported here."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == cls]
    method = next(n for c in found for n in c.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return {a.arg for a in [*method.args.args, *method.args.kwonlyargs]}


def test_the_installed_release_names_every_argument(config: Any) -> None:
    """Its GPU loader, too, which does not run here."""
    spec = importlib.util.find_spec("unsloth")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("unsloth is not installed")
    models = Path(spec.submodule_search_locations[0]) / "models"
    c = config("grpo", generation=VLLM, model__peft=LORA)
    loads = parameters(models / "loader.py", "FastLanguageModel", "from_pretrained")
    assert set(load_arguments(c, "dtype")) <= loads
    adapts = parameters(models / "llama.py", "FastLlamaModel", "get_peft_model")
    assert set(adapter_arguments(c)) - {"use_dora"} <= adapts  # DoRA goes on to PEFT's own configuration
    wide = parameters(models / "vision.py", "FastBaseModel", "get_peft_model")
    assert set(adapter_arguments(c)) - {"use_dora", "max_seq_length"} <= wide | {"max_seq_length"}


# ---- the calls, with a fake in the place of the package ---------------------------------------------------------


class Fake:
    """Stands for `FastLanguageModel`, and keeps what it was given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[tuple[str, dict[str, Any]]]()

    def from_pretrained(self, **given: Any) -> Any:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.calls.append(("load", given))
        return AutoModelForCausalLM.from_pretrained(self.folder), AutoTokenizer.from_pretrained(self.folder)

    def get_peft_model(self, model: Any, **given: Any) -> Any:
        self.calls.append(("adapt", given))
        return model


def test_the_model_is_loaded_and_adapted_with_these_values(
    config: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    fake = Fake(tiny_model)
    monkeypatch.setattr(module, "import_attribute", lambda name: fake)
    c = config(model__peft=LORA, model__precision="bf16")
    loaded = UnslothBackend().load_model(c)
    assert [name for name, _ in fake.calls] == ["load", "adapt"]
    assert fake.calls[0][1] == load_arguments(c, torch.bfloat16)
    assert fake.calls[1][1] == adapter_arguments(c)
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    fake.calls.clear()
    UnslothBackend().load_model(config())
    assert [name for name, _ in fake.calls] == ["load"]


def test_log_probabilities_come_from_logits_whatever_its_trainer_has_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth's GRPO trainer lets its model return hidden states while a loss is computed."""
    import torch

    monkeypatch.setenv("UNSLOTH_RETURN_HIDDEN_STATES", "1")
    monkeypatch.delenv("UNSLOTH_RETURN_LOGITS", raising=False)
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))

    def model(**given: Any) -> Any:
        hidden = os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] == "1"
        return type("Output", (), {"logits": torch.zeros(2, 5, 16) if hidden else logits})

    inputs = {
        "prompt_ids": torch.ones(2, 2, dtype=torch.long), "prompt_mask": torch.ones(2, 2, dtype=torch.long),
        "completion_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "completion_mask": torch.ones(2, 3, dtype=torch.long),
    }  # fmt: skip
    found = UnslothBackend().per_token_logps(model, inputs, 0.5)
    assert torch.equal(found, Backend.per_token_logps(UnslothBackend(), lambda **_: model_output(logits), inputs, 0.5))
    assert os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] == "1"
    assert "UNSLOTH_RETURN_LOGITS" not in os.environ
    with returning_logits():
        assert os.environ["UNSLOTH_RETURN_LOGITS"] == "1"
    assert "UNSLOTH_RETURN_LOGITS" not in os.environ


def model_output(logits: Any) -> Any:
    return type("Output", (), {"logits": logits})


def test_merging_on_a_machine_that_cannot_is_an_error_with_the_way_out(config: Any, tmp_path: Path) -> None:
    class Model:
        def save_pretrained_merged(self, folder: str, tokenizer: Any, save_method: str) -> None:
            assert save_method == "merged_16bit"
            raise NotImplementedError("4-bit on CPU")

    with pytest.raises(EnvironmentError, match="cannot merge these adapters on this machine: 4-bit on CPU") as caught:
        UnslothBackend().save_merged(config(), Model(), None, tmp_path / "merged")
    assert "save_model" in caught.value.hint
