"""The losses of supervised tuning against references: cross-entropy, dft, packed and padding-free rows, NEFTune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.algorithms.sft.supervised import check_boundaries, cut_rows
from aligntune.core.callbacks import Progress, StopRequest
from aligntune.core.config import build_config
from aligntune.errors import ConfigurationError, TrainingError

UNEVEN = [{"prompt": "Say", "completion": "word " * n} for n in (1, 9, 2, 7, 3, 5, 4, 6, 1, 8, 2, 40)]


def built(model: Path, folder: Path, **changes: Any) -> Any:
    """The library's trainer of a small run, ready to train."""
    trainer = runs.trainer("sft", model, folder, **changes)
    trainer._hf = trainer._build(StopRequest(), Progress("x"))
    return trainer._hf


def batches(hf: Any) -> list[dict[str, Any]]:
    return [{**batch} for batch in hf.get_train_dataloader()]


def loss_and_gradients(hf: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Of one batch as an optimizer step of its own, computed by the library's trainer."""
    hf.model.eval()  # nothing is random
    hf.model.zero_grad()
    items = hf._get_num_items_in_batch([batch], "cpu")
    loss = hf.compute_loss(hf.model, {**batch}, num_items_in_batch=items)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in hf.model.named_parameters()}


def reference(model: Any, ids: Any, labels: Any, attention: Any, kind: str) -> tuple[float, dict[str, Any]]:
    """Mean over the trained tokens of -log p (nll) or -sg(p) log p (dft), in float64."""
    import copy

    import torch

    exact = copy.deepcopy(model).double().eval()
    exact.__dict__.pop("forward", None)  # TRL 1.16 binds one to the model that it trains
    exact.zero_grad()
    logps = exact(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].log_softmax(-1)
    kept = labels[:, 1:] != -100
    chosen = logps.gather(-1, ids[:, 1:, None])[..., 0][kept]
    weights = chosen.exp().detach() if kind == "dft" else torch.ones_like(chosen)
    loss = -(weights * chosen).sum() / kept.sum()
    loss.backward()
    return loss.item(), {n: p.grad for n, p in exact.named_parameters()}


def far(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest distance of two sets of gradients, relative to the norm of each weight's."""
    return max(float((found[n] - e).norm() / e.norm()) for n, e in expected.items())


# ---- the two losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nll", "dft"])
@pytest.mark.parametrize("trained", ["completion", "all"])
def test_the_loss_is_the_papers(kind: str, trained: str, tiny_model: Path, tmp_path: Path) -> None:
    hf = built(tiny_model, tmp_path, task__loss=kind, task__train_on=trained)
    batch = batches(hf)[0]
    value, gradients = loss_and_gradients(hf, batch)
    expected, exact = reference(hf.model, batch["input_ids"], batch["labels"], batch["attention_mask"], kind)
    assert value == pytest.approx(expected, rel=1e-6)
    assert far(gradients, exact) < 1e-5
    shares = (batch["labels"] != -100).sum() / batch["attention_mask"].sum()
    assert (shares > 0.98) == (trained == "all")


def test_dft_gradient_is_that_of_the_probability(tiny_model: Path, tmp_path: Path) -> None:
    """-sg(p) grad log p = -grad p: dft ascends the mean probability of the trained tokens."""
    import torch

    hf = built(tiny_model, tmp_path, task__loss="dft")
    batch = batches(hf)[0]
    _, gradients = loss_and_gradients(hf, batch)
    hf.model.zero_grad()
    probabilities = hf.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    kept = batch["labels"][:, 1:] != -100
    chosen = probabilities[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0][kept]
    (-chosen.mean()).backward()
    assert far(gradients, {n: p.grad for n, p in hf.model.named_parameters()}) < 1e-4
    assert torch.isfinite(chosen).all()


def test_dft_trains_with_accumulation_as_in_one_batch(tiny_model: Path, tmp_path: Path) -> None:
    curves = []
    for batch, accumulated in ((8, 1), (2, 4)):
        changes = {"train__per_device_batch_size": batch, "train__gradient_accumulation_steps": accumulated}
        trainer = runs.trainer("sft", tiny_model, tmp_path / str(batch), task__loss="dft", **changes)
        trainer.train()
        curves.append(runs.logged(trainer.config.output_dir))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


# ---- rows that are joined ---------------------------------------------------------------------------------------------


def uneven(folder: Path) -> dict[str, Any]:
    return {"dataset": {"name": str(runs.write_rows(folder / "uneven.jsonl", UNEVEN))}}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("joined", ["packing", "padding_free"])
@pytest.mark.parametrize("kind", ["nll", "dft"])
def test_joined_rows_have_the_loss_of_the_rows_apart(
    attention: str, joined: str, kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    """All rows as one step: the same tokens in another layout give the same loss and gradient."""
    changes = {
        **uneven(tmp_path),
        "task__loss": kind,
        "model__attn_implementation": attention,
        "train__per_device_batch_size": len(UNEVEN),
    }
    apart = built(tiny_model, tmp_path, **changes)
    together = built(tiny_model, tmp_path, **{f"task__{joined}": True}, **changes)
    [first], [second] = batches(apart), batches(together)
    assert first["input_ids"].shape[0] == len(UNEVEN)
    assert second["input_ids"].shape[0] == 1
    assert int((first["labels"][:, 1:] != -100).sum()) == int((second["labels"][:, 1:] != -100).sum())
    assert int(first["attention_mask"].sum()) == second["input_ids"].numel()  # the long row is cut in both
    (loss, gradients), (other, others) = loss_and_gradients(apart, first), loss_and_gradients(together, second)
    assert other == pytest.approx(loss, rel=1e-6)
    assert far(others, gradients) < 1e-5


@pytest.mark.parametrize("peft", [None, {"r": 4}])
def test_packing_trains_on_the_same_tokens_in_fewer_sequences(peft: Any, tiny_model: Path, tmp_path: Path) -> None:
    """One epoch in one step each, so that the two runs see the same rows; then the weights are the same too."""
    ends = {}
    for name, packed in (("apart", False), ("together", True)):
        changes = {"train__per_device_batch_size": 12, "train__max_steps": 3, "model__peft": peft}
        trainer = runs.trainer("sft", tiny_model, tmp_path / name, task__packing=packed, **changes, **uneven(tmp_path))
        trainer.train()
        ends[name] = trainer.config.output_dir
    assert runs.logged(ends["apart"]) == pytest.approx(runs.logged(ends["together"]), abs=1e-5)
    assert runs.logged(ends["apart"], "num_tokens") == runs.logged(ends["together"], "num_tokens")
    left, right = (runs.weights(folder) for folder in ends.values())
    assert max(float((left[k] - right[k]).abs().max()) for k in left) < 1e-5


def test_packing_is_best_fit_decreasing(tiny_model: Path, tmp_path: Path) -> None:
    hf = built(tiny_model, tmp_path, task__packing=True, **uneven(tmp_path))
    rows = hf.train_dataset
    lengths = [n for row in rows["seq_lengths"] for n in row]
    apart = built(tiny_model, tmp_path, **uneven(tmp_path)).train_dataset
    assert sorted(lengths) == sorted(len(r) for r in apart["input_ids"])
    bins: list[int] = []
    for n in sorted(lengths, reverse=True):  # best fit: into the fullest sequence that has room
        room = [i for i, used in enumerate(bins) if used + n <= 64]
        if room:
            bins[max(room, key=lambda i: bins[i])] += n
        else:
            bins.append(n)
    assert sorted(map(len, rows["input_ids"])) == sorted(bins)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_boundary_check_passes_where_rows_are_apart(attention: str, tiny_model: Path, tmp_path: Path) -> None:
    model = runs.trainer("sft", tiny_model, tmp_path, model__attn_implementation=attention).model
    model.train()
    check_boundaries(model, "task.packing")
    assert model.training


def test_the_boundary_check_finds_a_model_that_ignores_positions(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runs.trainer("sft", tiny_model, tmp_path).model
    real = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, position_ids=None, **k: real(self, **k))
    with pytest.raises(TrainingError, match=r"lets a row see the one before it .* so task\.packing"):
        check_boundaries(model, "task.packing")


def test_a_model_with_a_state_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    with pytest.raises(TrainingError, match="MambaForCausalLM lets a row see the one before it"):
        runs.trainer("sft", tmp_path / "mamba", tmp_path, task__packing=True).train()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["status"] == "failed"


def test_rows_are_cut_as_the_library_cuts_them() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4], [5]], "labels": [[-100, 2, 3, 4], [5]], "x": [1, 2]})
    assert cut_rows(rows, 3).to_dict() == {"input_ids": [[1, 2, 3], [5]], "labels": [[-100, 2, 3], [5]], "x": [1, 2]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_the_padding_does_not_change_the_loss(side: str, tiny_model: Path, tmp_path: Path) -> None:
    """Positions begin at each row's first token whichever side is padded; the model is asked with both layouts."""
    import torch

    hf = built(tiny_model, tmp_path, **uneven(tmp_path), train__per_device_batch_size=6)
    batch = batches(hf)[0]
    expected, gradients = loss_and_gradients(hf, batch)
    mask = batch["attention_mask"]
    order = torch.argsort(mask, dim=1, stable=True, descending=side == "right")
    moved = {k: v.gather(1, order) for k, v in batch.items() if k in ("input_ids", "labels", "attention_mask")}
    assert bool(moved["attention_mask"][:, -1].all()) == (side == "left")
    positions = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
    value, others = loss_and_gradients(hf, {**moved, "position_ids": positions})
    assert value == pytest.approx(expected, rel=1e-6)
    assert far(others, gradients) < 1e-5


def test_the_tokenizers_padding_side_does_not_change_a_run(tiny_model: Path, tmp_path: Path) -> None:
    curves = []
    for side in ("left", "right"):
        trainer = runs.trainer("sft", tiny_model, tmp_path / side, **uneven(tmp_path))
        trainer.tokenizer.padding_side = side
        trainer.train()
        curves.append(runs.logged(trainer.config.output_dir))
    assert curves[0] == curves[1]


# ---- NEFTune -----------------------------------------------------------------------------------------------------------


def test_neftune_is_uniform_noise_of_the_papers_size_in_training_only(tiny_model: Path, tmp_path: Path) -> None:
    """Each entry is uniform on (-a, a) with a = alpha / sqrt(L d)."""
    import torch

    trainer = runs.trainer("sft", tiny_model, tmp_path, task__neftune_noise_alpha=5.0, train__max_steps=1)
    seen: list[Any] = []
    embedding = trainer.model.get_input_embeddings()
    handle: list[Any] = []

    def begin(*_: Any) -> None:  # after the library's own hook, which it sets when training begins
        if not handle:
            handle.append(embedding.register_forward_hook(lambda m, i, o: seen.append((m.training, i[0], o.detach()))))

    trainer.model.register_forward_pre_hook(begin)
    trainer.train()
    (training, ids, output), *_ = seen
    assert training
    noise = output - torch.nn.functional.embedding(ids, _first_weights(tiny_model))
    bound = 5.0 / (ids.shape[1] * output.shape[2]) ** 0.5
    assert float(noise.abs().max()) <= bound * (1 + 1e-5)
    assert float(noise.abs().max()) > 0.99 * bound
    assert float(noise.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.05 * bound)


def _first_weights(model: Path) -> Any:
    return runs.weights(model)["model.embed_tokens.weight"]


def test_neftune_is_off_in_evaluation(tiny_model: Path, tmp_path: Path) -> None:
    """A held-out loss in the middle of training is that of the weights saved at that step."""
    held = {"name": str(runs.write_rows(tmp_path / "held.jsonl", runs.SFT_ROWS[:5]))}
    changes = {"task__neftune_noise_alpha": 20.0, "train__save_steps": 2}
    noisy = runs.trainer("sft", tiny_model, tmp_path / "n", evaluation={"dataset": held, "every": 2}, **changes)
    noisy.train()
    measured = runs.logged(noisy.config.output_dir, "eval_nll")
    stored = [str(Path(noisy.config.output_dir) / "checkpoint-2"), noisy.config.output_dir]
    again = [runs.trainer("sft", Path(m), tmp_path / str(i)).evaluate(held)["eval_nll"] for i, m in enumerate(stored)]
    assert measured == again
    plain = runs.trainer("sft", tiny_model, tmp_path / "p")
    plain.train()
    noise, none = runs.logged(noisy.config.output_dir), runs.logged(plain.config.output_dir)
    assert abs(noise[0] - none[0]) > 1e-4
    assert noise != none


# ---- what contradicts itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task__packing": True, "task__padding_free": True}, r"task\.padding_free: is part of task\.packing"),
        ({"task__packing": True, "task__neftune_noise_alpha": 5}, r"length of all joined rows with task\.packing"),
        ({"task__padding_free": True, "task__neftune_noise_alpha": 5}, r"joined rows with task\.padding_free"),
        ({"task__packing_strategy": "wrapped"}, r"task\.packing_strategy: unknown key"),
        ({"task__loss": "focal"}, r"task\.loss"),
        ({"task__neftune_noise_alpha": -1}, r"task\.neftune_noise_alpha"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build_config(runs.plain("sft", Path("model"), tmp_path, **changes))
