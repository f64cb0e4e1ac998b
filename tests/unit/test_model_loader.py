"""ModelLoader: what is loaded, in which precision, with which adapter, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aligntune import errors
from aligntune.core.config.sections import ModelConfig, PeftConfig
from aligntune.utils.model_loader import ModelLoader
from aligntune.utils.model_source import find_source
from aligntune.utils.tokenizer import prepare_tokenizer, read_template


def loader(path: Path | str, *, training: bool = True, seed: int = 0, **keys: Any) -> ModelLoader:
    return ModelLoader(ModelConfig(name_or_path=str(path), device="cpu", **keys), training=training, seed=seed)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("training", "precision", "peft", "dtype"),
    [
        (True, "auto", False, "float32"),
        (True, "fp32", False, "float32"),
        (True, "bf16", False, "float32"),  # mixed precision keeps trained weights in fp32
        (True, "bf16", True, "bfloat16"),  # frozen weights
        (False, "bf16", False, "bfloat16"),
        (False, "auto", False, "float32"),
    ],
)
def test_weights_have_the_stated_dtype(
    tiny_model: Path, training: bool, precision: str, peft: bool, dtype: str
) -> None:
    keys = {"peft": PeftConfig(r=2)} if peft else {}
    one = loader(tiny_model, training=training, precision=precision, **keys)
    assert one.model_kwargs() == {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    model = one.load().model
    frozen = {str(p.dtype) for n, p in model.named_parameters() if "lora" not in n}
    assert frozen == {f"torch.{dtype}"}
    assert {str(p.dtype) for n, p in model.named_parameters() if "lora" in n} <= {"torch.float32"}


def test_loading_gives_the_stored_weights_and_the_true_path(tiny_model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    loaded = loader(tiny_model).load()
    stored = load_file(tiny_model / "model.safetensors")
    assert loaded.path == str(tiny_model)
    assert loaded.model.config._name_or_path == str(tiny_model)  # what TRL loads the reference model from
    for name, weights in stored.items():
        assert torch.equal(loaded.model.state_dict()[name], weights), name
    assert loaded.notes == []


def test_training_and_running_differ_in_padding_and_mode(tiny_model: Path) -> None:
    train, run = loader(tiny_model).load(), loader(tiny_model, training=False).load()
    assert (train.tokenizer.padding_side, run.tokenizer.padding_side) == ("right", "left")
    assert not run.model.training
    assert run.model.generation_config.pad_token_id == run.tokenizer.pad_token_id


def test_lora_is_seeded_and_trains_only_its_adapters(tiny_model: Path) -> None:
    import torch

    def adapters(seed: int) -> dict[str, Any]:
        model = loader(tiny_model, seed=seed, peft=PeftConfig(r=4, alpha=8)).load().model
        assert all(("lora" in name) == p.requires_grad for name, p in model.named_parameters())
        return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}

    first, again, other = adapters(1), adapters(1), adapters(2)
    assert len(first) == 2 * 7  # layers x (q, k, v, o, gate, up, down)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_every_peft_key_reaches_the_lora_config() -> None:
    peft = PeftConfig(
        r=3,
        alpha=5,
        dropout=0.1,
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
        use_rslora=True,
        use_dora=True,
    )
    lora = loader("x", peft=peft).lora_config()
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (3, 5, 0.1)
    assert lora.target_modules == {"q_proj"}
    assert (lora.modules_to_save, lora.use_rslora, lora.use_dora) == (["lm_head"], True, True)
    assert loader("x").lora_config() is None


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A saved adapter (r 4, alpha 8) over the tiny model whose weights are not zero."""
    import torch

    model = loader(tiny_model, peft=PeftConfig(r=4, alpha=8)).load().model
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.fill_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_folder_loads_as_base_plus_adapter(tiny_model: Path, adapter: Path) -> None:
    import torch

    loaded = loader(adapter, training=False).load()
    base = loader(tiny_model, training=False).load()
    ids = torch.tensor([[5, 6, 7]])
    assert loaded.path == str(adapter)
    assert any("runs with the adapter" in note for note in loaded.notes)
    assert not torch.allclose(loaded.model(ids).logits, base.model(ids).logits)
    with loaded.model.disable_adapter():
        assert torch.allclose(loaded.model(ids).logits, base.model(ids).logits)


def test_training_goes_on_with_a_stored_adapter(adapter: Path) -> None:
    model = loader(adapter, peft=PeftConfig(r=4, alpha=8)).load().model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    assert all(float(p.detach().mean()) == pytest.approx(0.1) for n, p in model.named_parameters() if "lora_B" in n)


def test_a_stored_adapter_is_not_trained_as_something_else(adapter: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"is a LoRA adapter, and model\.peft is not set"):
        loader(adapter).load()
    with pytest.raises(errors.ConfigurationError, match=r"has r 4 \(model\.peft: 16\), lora_alpha 8 \(model\.peft: 32"):
        loader(adapter, peft=PeftConfig()).load()


def test_an_adapter_without_its_base_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/nowhere/base")
    with pytest.raises(errors.ConfigurationError, match="names the base model '/nowhere/base'"):
        loader(adapter, training=False).load()


def test_gradient_checkpointing_is_switched_on(tiny_model: Path) -> None:
    config = ModelConfig(name_or_path=str(tiny_model), device="cpu")
    on = ModelLoader(config, training=True, seed=0, gradient_checkpointing=True).load().model
    assert on.is_gradient_checkpointing
    assert not loader(tiny_model).load().model.is_gradient_checkpointing


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantised_weights_are_not_trained_themselves(tiny_model: Path, kind: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="quantised weights cannot be trained") as caught:
        loader(tiny_model, quantization=kind).model_kwargs()
    assert "model.peft" in caught.value.hint


def test_the_attention_kernel_is_passed_on_or_refused(tiny_model: Path) -> None:
    eager = loader(tiny_model, attn_implementation="eager")
    assert eager.model_kwargs()["attn_implementation"] == "eager"
    assert eager.load().model.config._attn_implementation == "eager"
    with pytest.raises(errors.EnvironmentError, match="'flash_attention_2', which needs a CUDA GPU"):
        loader(tiny_model, attn_implementation="flash_attention_2").load()


def test_revision_and_remote_code_reach_the_library() -> None:
    kwargs = loader("owner/name", revision="abc", trust_remote_code=True).model_kwargs()
    assert (kwargs["revision"], kwargs["trust_remote_code"]) == ("abc", True)


def test_remote_code_is_refused_unless_allowed(copy: Path) -> None:
    edit_json(copy / "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (copy / "own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(errors.ConfigurationError, match=r"model\.trust_remote_code is false"):
        loader(copy).load()


def test_a_misspelt_folder_names_the_nearest(copy: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match="there is no folder") as caught:
        loader(copy.parent / "modle").load()
    assert f"did you mean '{copy}'?" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_hub_id_that_cannot_be_fetched_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    with pytest.raises(errors.EnvironmentError, match="'owner/nothing' is no folder here") as caught:
        loader("owner/nothing").load()
    assert "HF_HUB_OFFLINE" in caught.value.hint
    with pytest.raises(errors.EnvironmentError) as caught:
        loader("my-modle").load()
    assert "nearest is 'my-model'" in caught.value.hint
    with pytest.raises(errors.EnvironmentError, match=r"model\.revision: 'owner/nothing' at 'v1'"):
        loader("owner/nothing", revision="v1").load()


def test_what_is_a_path_and_what_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "model.safetensors").touch()
    assert find_source("owner/name").base == "owner/name"
    for name in ("out/sft", "./x", "/x/y", "a/b/c", "../x"):
        with pytest.raises(errors.ConfigurationError, match="there is no folder"):
            find_source(name)
    with pytest.raises(errors.ConfigurationError, match="is a file"):
        find_source("model.safetensors")
    with pytest.raises(errors.ConfigurationError, match="holds no model"):
        find_source("out")


def test_a_folder_of_checkpoints_names_the_last(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.move(copy, tmp_path / "run" / "checkpoint-5")
    with pytest.raises(errors.ConfigurationError) as caught:
        find_source(str(tmp_path / "run"))
    assert f"did you mean '{tmp_path / 'run' / 'checkpoint-5'}'" in caught.value.hint


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(errors.ConfigurationError, match=r"only pytorch_model\.bin, which can run code"):
        loader(copy).load()


def test_missing_weights_are_refused_and_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.ValidationError, match=r"lacks weights of LlamaForCausalLM: model\.norm\.weight"):
        loader(copy).load()


def test_damaged_weights_are_named(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(errors.ValidationError, match=r"a weights file of .* is damaged"):
        loader(copy).load()


def test_a_tokenizer_beyond_the_embeddings_is_refused(copy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    rows = len(tokenizer)
    tokenizer.add_tokens(["newtoken"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(errors.ValidationError, match=rf"ids up to {rows}, and the model has {rows} embeddings"):
        loader(copy).load()


def test_a_contradictory_generation_config_is_repaired_so_that_the_model_can_be_saved(copy: Path) -> None:
    edit_json(copy / "generation_config.json", temperature=0.6, top_p=0.9, do_sample=False)
    loaded = loader(copy).load()
    assert any("do_sample=False" in note for note in loaded.notes)
    loaded.model.save_pretrained(copy.parent / "saved")
    stored = json.loads((copy.parent / "saved" / "generation_config.json").read_text())
    assert (stored["temperature"], stored["top_p"], stored["do_sample"]) == (0.6, 0.9, True)


def test_a_length_beyond_the_model_is_told(tiny_model: Path) -> None:
    notes = loader(tiny_model, max_seq_length=4096).load().notes
    assert any("max_seq_length is 4096, and the model was made for 2048" in note for note in notes)


class FakeTokenizer:
    """Only what `prepare_tokenizer` reads and sets."""

    def __init__(self, vocabulary: list[str], eos: str | None, unk: str | None = None, pad: str | None = None) -> None:
        self.vocabulary, self.eos_token, self.unk_token, self.pad_token = vocabulary, eos, unk, pad
        self.chat_template: str | None = "{{ messages }}"
        self.padding_side = "right"

    def get_vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.vocabulary)}


@pytest.mark.parametrize(
    ("tokenizer", "pad", "told"),
    [
        (FakeTokenizer(["<pad>"], "</s>", pad="<own>"), "<own>", None),
        (FakeTokenizer(["<|finetune_right_pad_id|>", "<|eot_id|>"], "<|eot_id|>"), "<|finetune_right_pad_id|>", "pads"),
        (FakeTokenizer(["<|endoftext|>", "<|im_end|>"], "<|im_end|>"), "<|endoftext|>", "pads"),
        (FakeTokenizer(["<unk>", "</s>"], "</s>", unk="<unk>"), "<unk>", "pads"),
        (FakeTokenizer(["<|endoftext|>"], "<|endoftext|>", unk="<|endoftext|>"), "<|endoftext|>", "end of sequence"),
    ],
)
def test_the_padding_token(tokenizer: FakeTokenizer, pad: str, told: str | None) -> None:
    notes = prepare_tokenizer(tokenizer, ModelConfig(name_or_path="x"), training=True)
    assert tokenizer.pad_token == pad
    assert (told is None and notes == []) or told in notes[0]


def test_a_tokenizer_that_cannot_pad_is_refused() -> None:
    with pytest.raises(errors.ValidationError, match="no padding, unknown or end-of-sequence token"):
        prepare_tokenizer(FakeTokenizer(["a"], None), ModelConfig(name_or_path="x"), training=True)


def test_a_missing_chat_template_is_told(tiny_model_plain: Path) -> None:
    notes = loader(tiny_model_plain).load().notes
    assert len(notes) == 1
    assert "no chat template" in notes[0]


def test_the_chat_template_can_be_replaced(tiny_model: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    for value in (template, str(tmp_path / "own.jinja")):
        tokenizer = loader(tiny_model, chat_template=value).load_tokenizer()
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "user: hi\n"


def test_a_bad_chat_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"is 'chatml\.jinja', and there is no such file"):
        read_template("chatml.jinja")
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}\n{{ m }")
    with pytest.raises(errors.ConfigurationError, match=r"bad\.jinja, line 2: not a valid Jinja template"):
        read_template(str(tmp_path / "bad.jinja"))
    assert "generation" in read_template(
        "{%- generation -%}{{ x }}{% endgeneration %}{% break %}".replace("{% break %}", "")
    )
