"""The parts that train a classifier: loss, sampler, batches, and the loading of heads."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import helpers
from aligntune.core.config import ModelConfig, SFTConfig
from aligntune.core.config.io import build_config
from aligntune.core.sft.classification import BalancedSampler, Collator, LabelLoss
from aligntune.errors import ConfigurationError, EnvironmentError, ValidationError
from aligntune.utils.classifier_loader import ClassifierLoader, stored_labels

# ---- the loss ------------------------------------------------------------------------------------------------------


def reference(logits: Any, labels: Any, weights: Any, count: int) -> Any:
    """(1/N) sum_i w_{y_i} (-log softmax(z_i)_{y_i}), row by row in float64."""
    import torch

    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits.double().reshape(-1, logits.shape[-1]), labels.flatten().tolist(), strict=True):
        if label != -100:
            total = total + weights[label] * (torch.log(torch.exp(row).sum()) - row[label])
    return total / count


@pytest.mark.parametrize("shape", [(6,), (3, 5)])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 3.0]])
@pytest.mark.parametrize("count", [None, 11])
def test_the_loss_and_its_gradient_are_those_of_the_formula(shape: Any, weights: Any, count: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, 4, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, shape, generator=generator)
    labels.flatten()[::4] = -100
    loss = LabelLoss(weights)
    ours = loss(SimpleNamespace(logits=logits), labels, num_items_in_batch=count)
    ours.backward()
    mine, logits.grad = logits.grad, None
    wanted = reference(logits, labels, weights or [1.0] * 4, count or int((labels != -100).sum()))
    wanted.backward()
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(mine, logits.grad, rtol=1e-5, atol=1e-7)
    assert loss.calls == 1


def test_equal_weights_of_one_change_nothing_and_scale_as_a_factor() -> None:
    import torch

    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1, -100])
    outputs = SimpleNamespace(logits=logits)
    plain = LabelLoss()(outputs, labels)
    assert torch.equal(plain, LabelLoss([1.0] * 3)(outputs, labels))
    torch.testing.assert_close(LabelLoss([4.0] * 3)(outputs, labels), 4 * plain)


def test_a_batch_is_filled_up_on_the_right() -> None:
    batch = Collator(7)([{"input_ids": [1, 2], "labels": [0, -100]}, {"input_ids": [3], "labels": [1], "text": "kept"}])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[0, -100], [1, -100]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert Collator(0)([{"input_ids": [1], "labels": 2}])["labels"].tolist() == [2]


# ---- the sampler -----------------------------------------------------------------------------------------------------


def test_every_class_comes_equally_often() -> None:
    labels = [0] * 50 + [1] * 7 + [2] * 1 + [5] * 2
    sampler = BalancedSampler(labels, seed=3)
    rows = list(sampler)
    assert len(rows) == len(sampler) == len(labels)
    assert Counter(labels[i] for i in rows) == {0: 15, 1: 15, 2: 15, 5: 15}
    times = Counter(rows)
    assert max(times[i] for i in range(50)) == 1  # a frequent class does not repeat
    assert {times[i] for i in range(50, 57)} <= {2, 3}  # a rare one deals its rows in whole rounds
    uneven = BalancedSampler([0, 0, 0, 1, 1, 2, 2], seed=0)
    assert sorted(Counter([0, 0, 0, 1, 1, 2, 2][i] for i in uneven).values()) == [2, 2, 3]


def test_the_order_follows_from_seed_and_epoch() -> None:
    labels = [0, 1] * 20
    first, again, other = BalancedSampler(labels, 1), BalancedSampler(labels, 1), BalancedSampler(labels, 2)
    assert list(first) == list(again) != list(other)
    orders = []
    for epoch in (0, 1, 2):
        first.set_epoch(epoch)
        orders.append(list(first))
    assert orders[0] != orders[1] != orders[2]
    again.set_epoch(2)
    assert list(again) == orders[2]


# ---- heads -----------------------------------------------------------------------------------------------------------


def loader(folder: Path, labels: list[str], head: Any = "sequence_classification", **options: Any) -> ClassifierLoader:
    new_head = options.pop("new_head", False)
    given = {"training": True, "seed": 5, **options.pop("options", {})}
    config = ModelConfig(name_or_path=str(folder), **options)
    return ClassifierLoader(config, head=head, labels=labels, new_head=new_head, **given)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model (no pooler, learned positions) with a byte tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = helpers.byte_tokenizer(chat=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_fresh_head_follows_from_the_seed(tiny_model: Path) -> None:
    import torch

    first = loader(tiny_model, ["no", "yes", "well"]).load()
    torch.manual_seed(99)  # another state of the process
    second = loader(tiny_model, ["no", "yes", "well"]).load()
    third = loader(tiny_model, ["no", "yes", "well"], options={"seed": 6}).load()
    assert first.model.score.weight.shape == (3, 32)
    assert torch.equal(first.model.score.weight, second.model.score.weight)
    assert not torch.equal(first.model.score.weight, third.model.score.weight)
    assert first.model.config.id2label == {0: "no", 1: "yes", 2: "well"}
    assert first.model.config.label2id == {"no": 0, "yes": 1, "well": 2}
    assert first.model.config.pad_token_id == first.tokenizer.pad_token_id
    assert any("head is new (score): 3 labels" in note for note in first.notes)
    assert not any("chat template" in note for note in first.notes)


def test_an_encoder_without_a_pooler_gets_one(bert: Path) -> None:
    made = loader(bert, ["a", "b"]).load()
    assert any("head is new (classifier, pooler)" in note for note in made.notes)
    tags = loader(bert, ["a", "b"], head="token_classification").load()
    assert any("head is new (classifier)" in note for note in tags.notes)


@pytest.mark.parametrize("head", ["sequence_classification", "token_classification"])
def test_lora_trains_the_head_in_full(head: Any, tiny_model: Path, bert: Path) -> None:
    for folder, names in ((tiny_model, {"score"}), (bert, {"classifier"})):
        model = loader(folder, ["a", "b"], head=head, peft={"r": 2}).load().model
        trained = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
        if folder is bert and head == "sequence_classification":
            names = names | {"pooler"}
        assert {name for name in names if any(f"{name}.modules_to_save" in t for t in trained)} == names, trained
        assert all(any(f".{name}.modules_to_save" in t for name in names) for t in trained), trained
        assert not any("lora_" in n and any(f".{name}." in n for name in names) for n, _ in model.named_parameters())
        assert any("lora_" in n for n, _ in model.named_parameters())


def test_the_users_list_of_modules_is_not_changed(tiny_model: Path) -> None:
    made = loader(tiny_model, ["a", "b"], peft={"r": 2, "modules_to_save": ["norm"]})
    made.load()
    assert made.config.peft is not None
    assert made.config.peft.modules_to_save == ["norm"]
    assert {"norm", "score"} <= set(made.lora_config().modules_to_save)


def test_what_a_models_own_head_says(tiny_model: Path, tmp_path: Path) -> None:
    named = loader(tiny_model, ["no", "yes"]).load()
    for part in (named.model, named.tokenizer):
        part.save_pretrained(tmp_path / "named")
    named.model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    for part in (named.model, named.tokenizer):
        part.save_pretrained(tmp_path / "unnamed")

    def ask(folder: Path, head: Any = "sequence_classification", *, replaced: bool = False) -> Any:
        return stored_labels(ModelConfig(name_or_path=str(folder)), head, listed=False, replaced=replaced)

    assert ask(tiny_model) is None
    assert ask(tmp_path / "named") == ["no", "yes"]
    assert ask(tmp_path / "unnamed") == 2
    assert ask(tmp_path / "named", replaced=True) is None
    assert ask(tmp_path / "named", "token_classification", replaced=True) is None
    with pytest.raises(ConfigurationError, match="needs a TokenClassification head"):
        ask(tmp_path / "named", "token_classification")
    with pytest.raises(EnvironmentError, match="'nobody/nothing' is no folder here"):
        ask(Path("nobody/nothing"))
    with pytest.raises(ConfigurationError, match=r"task\.new_head has no effect"):
        ask(tiny_model, replaced=True)


def test_a_new_head_takes_the_place_of_the_old_one(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    old = loader(tiny_model, ["no", "yes"]).load()
    for part in (old.model, old.tokenizer):
        part.save_pretrained(tmp_path)
    kept = loader(tmp_path, ["no", "yes"], options={"seed": 8}).load()
    assert torch.equal(kept.model.score.weight, old.model.score.weight)
    assert not any("head is new" in note for note in kept.notes)
    for labels in (["no", "yes"], ["a", "b", "c"]):
        new = loader(tmp_path, labels, new_head=True, options={"seed": 8}).load()
        assert new.model.score.weight.shape[0] == len(labels)
        assert not any(torch.equal(row, other) for row in new.model.score.weight for other in old.model.score.weight)
        assert new.model.score.weight.std().item() == pytest.approx(0.02, rel=0.5)
        assert torch.equal(new.model.model.norm.weight, old.model.model.norm.weight)
        assert any("head is new" in note for note in new.notes)


def test_a_trunk_without_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValidationError, match=r"lacks weights of LlamaForSequenceClassification: .*up_proj"):
        loader(tmp_path, ["a", "b"]).load()


# ---- the configuration -------------------------------------------------------------------------------------------


def config(**task: Any) -> Any:
    return build_config({"task": task, "model": {"name_or_path": "x"}, "dataset": "y"})


def test_the_tasks_have_their_own_learning_rate_and_arguments() -> None:
    made = config(name="text_classification")
    assert isinstance(made, SFTConfig)
    assert made.train.learning_rate == 5e-5
    from aligntune.core.arguments import trainer_arguments

    values = trainer_arguments(made, device="cpu", precision="fp32", output_dir="o")
    assert values["remove_unused_columns"] is False
    assert "router_aux_loss_coef" not in values


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"class_weights": "balanced", "balanced_sampling": True}, "counts rare classes twice"),
        ({"class_weights": {}}, "task.class_weights: is empty"),
        ({"class_weights": {"a": -1.0}}, "class_weights"),
        ({"class_weights": "sqrt"}, "class_weights"),
        ({"labels": ["a", "b", "a"]}, "'a' twice"),
        ({"labels": ["a"]}, "task.labels"),
        ({"packing": True}, "task.packing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(task: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        config(name="text_classification", **task)


@pytest.mark.parametrize(
    "key",
    ["model.chat_template", "evaluation.max_new_tokens", "evaluation.temperature", "dataset.system_prompt",
     "logging.rollouts"],
)  # fmt: skip
def test_keys_of_text_generation_are_refused(key: str) -> None:
    from aligntune.core.config.reading import set_key

    values = {"evaluation.max_new_tokens": 3, "evaluation.temperature": 0.5, "logging.rollouts": False}
    for name in ("text_classification", "token_classification"):
        raw: dict[str, Any] = {"task": name, "model": {"name_or_path": "x"}, "dataset": {"name": "y"}}
        set_key(raw, key, values.get(key, "x"))
        with pytest.raises(ConfigurationError, match=f"{key}: has no effect here"):
            build_config(raw)


def test_a_balanced_draw_is_for_texts_only() -> None:
    with pytest.raises(ConfigurationError, match="balanced_sampling"):
        config(name="token_classification", balanced_sampling=True)


def test_the_backends_say_what_trains_there() -> None:
    from aligntune.core.backend import PLAIN_MODEL
    from aligntune.core.backend_factory import list_backends

    backends = list_backends()
    assert backends["trl"]["notes"] == {}
    for name in ("text_classification", "token_classification"):
        assert backends["unsloth"]["notes"][name] == PLAIN_MODEL
        assert name in backends["unsloth"]["algorithms"]


def test_first_loss_of_a_zero_head_is_the_log_of_the_labels() -> None:
    import torch

    loss = LabelLoss()(SimpleNamespace(logits=torch.zeros(4, 7)), torch.tensor([0, 3, 6, 2]))
    assert float(loss) == pytest.approx(math.log(7))


@pytest.mark.parametrize("head", ["sequence_classification", "token_classification"])
def test_a_quantised_trunk_keeps_its_head_whole(head: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="quantisation needs the extra")
    folder = helpers.save_tiny_model(tmp_path, hidden=64)
    model = loader(folder, ["a", "b"], head=head, peft={"r": 2}, quantization="4bit").load().model
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["base_model.model.model.layers.0.self_attn.q_proj"] == "Linear4bit"
    assert kinds["base_model.model.score.modules_to_save.default"] == "Linear"
