"""Distillation: the divergence against a reference, the loss of whole steps, where answers come from, the teacher."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import helpers
import runs
from aligntune.core.config import build_config
from aligntune.core.rl import distill
from aligntune.core.rl.distill import divergence
from aligntune.errors import ConfigurationError, TrainingError, ValidationError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than the student, with the same tokens, and logits that are far from flat."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = helpers.save_tiny_model(tmp_path_factory.mktemp("teacher") / "t", seed=5, hidden=48)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(6)
    model.save_pretrained(folder)
    return folder


def start(model: Path, folder: Path, teacher: Path, algo: Any = None, **changes: Any) -> Any:
    named = {"name": "gkd", "teacher": str(teacher), **(algo or {})}
    offline = named.get("lmbda") == 0 and not named.get("seq_kd")
    defaults = {} if offline else {"generation": {"max_completion_length": 8}}
    return runs.trainer("gkd", model, folder, **{"algo": named, **defaults, **changes})


def reference(student: list[float], teacher: list[float], beta: float, temperature: float) -> float:
    """The divergence of one token by the formula, in plain Python."""

    def soft(x: list[float]) -> list[float]:
        e = [math.exp(v / temperature) for v in x]
        return [v / sum(e) for v in e]

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    q, p = soft(student), soft(teacher)
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return kl(p, q) if beta == 0 else kl(q, p) if beta == 1 else beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_equals_the_formula(beta: float, temperature: float) -> None:
    import torch

    torch.manual_seed(1)
    q = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    p = 3 * torch.randn(6, 11, dtype=torch.float64)
    ours = divergence(q, p, beta, temperature)
    wanted = [reference(q[i].tolist(), p[i].tolist(), beta, temperature) for i in range(6)]
    assert ours.tolist() == pytest.approx(wanted, rel=1e-10)
    (gradient,) = torch.autograd.grad(ours.sum(), q)
    for i, j in ((0, 0), (3, 7), (5, 10)):  # finite differences of the formula itself
        row, step = q[i].tolist(), 1e-6
        up, down = [*row], [*row]
        up[j] += step
        down[j] -= step
        slope = (
            reference(up, p[i].tolist(), beta, temperature) - reference(down, p[i].tolist(), beta, temperature)
        ) / (2 * step)
        assert float(gradient[i, j]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_properties_of_the_divergence() -> None:
    import torch

    torch.manual_seed(2)
    a, b = torch.randn(50, 7, dtype=torch.float64), torch.randn(50, 7, dtype=torch.float64)
    for beta in (0.0, 0.3, 0.5, 1.0):
        assert torch.all(divergence(a, b, beta) > 0)
        assert torch.allclose(divergence(a, a + 4.0, beta), torch.zeros(50, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(divergence(a, b, 0.5), divergence(b, a, 0.5))
    assert torch.all(divergence(a, b, 0.5) < math.log(2))
    assert torch.allclose(divergence(a, b, 1e-5) / 1e-5, divergence(a, b, 0.0), rtol=1e-3)
    assert torch.isfinite(divergence(torch.tensor([[0.0, -2e4]]), torch.tensor([[-2e4, 0.0]]), 0.5)).all()


def by_hand(student: Path, teacher: Path, rows: Any, beta: float, temperature: float) -> float:
    """Mean divergence over the tokens of given id rows with a prompt length, each forwarded alone, in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    s, t = (AutoModelForCausalLM.from_pretrained(m).double().eval() for m in (student, teacher))
    values = []
    with torch.no_grad():
        for ids, first in rows:
            x = torch.tensor([ids])
            q, p = (m(x).logits[0, first - 1 : -1].tolist() for m in (s, t))
            values += [reference(a, b, beta, temperature) for a, b in zip(q, p, strict=True)]
    return sum(values) / len(values)


def id_rows(batch: Any) -> list[tuple[list[int], int]]:
    """Ids without padding and the number of the first trained token, of each row of a batch."""
    found = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        kept = ids[mask.bool()].tolist()
        found.append((kept, len(kept) - int((labels != -100).sum())))
    return found


def spied(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run a trainer; the batches of each step as they reached the loss."""
    seen: list[Any] = []
    build = trainer._build

    def built(*args: Any) -> Any:
        hf = build(*args)
        real = hf.compute_loss

        def loss(model: Any, inputs: Any, *a: Any, **k: Any) -> Any:
            seen.append({name: value.clone() for name, value in inputs.items() if hasattr(value, "clone")})
            return real(model, inputs, *a, **k)

        hf.compute_loss = loss
        return hf

    monkeypatch.setattr(trainer, "_build", built)
    trainer.train()
    return seen


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.5, 2.0)])
def test_offline_the_loss_is_the_mean_over_the_datas_tokens(
    tiny_model: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beta: float, temperature: float
) -> None:
    algo = {"lmbda": 0.0, "beta": beta, "temperature": temperature}
    trainer = start(
        tiny_model, tmp_path, teacher, algo, train__max_steps=1, train__gradient_accumulation_steps=2,
        train__per_device_batch_size=3,
    )  # fmt: skip
    seen = spied(trainer, monkeypatch)
    rows = [row for batch in seen for row in id_rows(batch)]
    assert len(rows) == 6
    texts = [trainer.tokenizer.decode(ids[first:]) for ids, first in rows]
    assert set(texts) <= {f"{r['completion']}<|im_end|>\n" for r in runs.SFT_ROWS}
    assert runs.logged(tmp_path / "out")[0] == pytest.approx(
        by_hand(tiny_model, teacher, rows, beta, temperature), abs=1e-5
    )
    assert runs.logged(tmp_path / "out", "on_policy") == [0]
    assert runs.logged(tmp_path / "out", "num_tokens") == [sum(len(ids) for ids, _ in rows)]


@pytest.mark.parametrize(("algo", "who"), [({"lmbda": 1.0}, "student"), ({"lmbda": 0.0, "seq_kd": True}, "teacher")])
def test_sampled_answers_take_the_place_of_the_datas(
    tiny_model: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: Any, who: str
) -> None:
    """With top_k 1 the samples are known: the greedy answers of the one that gives them."""
    from transformers import AutoModelForCausalLM

    from aligntune.eval.generation import generate_texts

    trainer = start(
        tiny_model, tmp_path, teacher, algo, train__max_steps=1,
        generation={"max_completion_length": 6, "top_k": 1},
    )  # fmt: skip
    seen = spied(trainer, monkeypatch)
    rows = id_rows(seen[0])
    tokenizer = trainer.tokenizer
    model = AutoModelForCausalLM.from_pretrained(tiny_model if who == "student" else teacher)
    prompts = [tokenizer.decode(ids[:first]) for ids, first in rows]
    assert all(p.startswith("<|im_start|>user\nSay ") and p.endswith("assistant\n") for p in prompts)
    asked = [[{"role": "user", "content": p.split("user\n")[1].split("<|im_end|>")[0]}] for p in prompts]
    greedy = [t[0] for t in generate_texts(model, tokenizer, asked, max_new_tokens=6)]
    assert [tokenizer.decode(ids[first:], skip_special_tokens=True) for ids, first in rows] == greedy
    loss = by_hand(tiny_model, teacher, rows, 0.5, 1.0)
    assert runs.logged(tmp_path / "out")[0] == pytest.approx(loss, abs=1e-5)
    assert runs.logged(tmp_path / "out", "on_policy") == [float(who == "student")]
    lengths = [len(ids) - first for ids, first in rows]
    assert runs.logged(tmp_path / "out", "completions/mean_length") == pytest.approx([sum(lengths) / len(lengths)])


def test_the_share_of_batches_is_lmbda(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """Whole batches come from the student or from the data."""
    start(tiny_model, tmp_path, teacher, {"lmbda": 0.5}, train__max_steps=12, train__per_device_batch_size=1).train()
    shares = runs.logged(tmp_path / "out", "on_policy")
    assert set(shares) == {0.0, 1.0}


def test_one_batch_equals_its_parts(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    import torch

    for name, size, parts in (("whole", 8, 1), ("parts", 2, 4)):
        start(
            tiny_model, tmp_path / name, teacher, {"lmbda": 0.0}, train__max_steps=1, train__per_device_batch_size=size,
            train__gradient_accumulation_steps=parts, train__optimizer="sgd", train__learning_rate=0.1,
        ).train()  # fmt: skip
    whole, split = (runs.weights(tmp_path / n / "out") for n in ("whole", "parts"))
    assert all(torch.allclose(whole[k], split[k], atol=1e-6) for k in whole)
    assert runs.logged(tmp_path / "whole/out")[0] == pytest.approx(runs.logged(tmp_path / "parts/out")[0], abs=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_model: Path, tmp_path: Path) -> None:
    start(tiny_model, tmp_path, tiny_model, train__max_steps=2).train()
    assert runs.logged(tmp_path / "out") == pytest.approx([0, 0], abs=1e-6)


def test_it_evaluates_the_divergence(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    trainer = start(tiny_model, tmp_path, teacher, {"beta": 0.0, "lmbda": 0.0}, train__max_steps=6)
    before = trainer.evaluate(tmp_path / "gkd.jsonl")
    trainer.train()
    after = trainer.evaluate(tmp_path / "gkd.jsonl")
    assert after["eval_divergence"] < before["eval_divergence"]
    assert {"eval_nll", "eval_tokens", "eval_rows"} <= set(after)
    tokenizer, rows = trainer.tokenizer, []
    for row in runs.SFT_ROWS:
        head = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        first = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        rows.append((tokenizer(f"{head}{row['completion']}<|im_end|>\n", add_special_tokens=False)["input_ids"], first))
    assert before["eval_divergence"] == pytest.approx(by_hand(tiny_model, teacher, rows, 0.0, 1.0), abs=1e-5)


def test_a_resumed_run_is_the_run_that_never_stopped(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """The draw of where a batch comes from and the sampling go on where they were."""
    start(tiny_model, tmp_path / "whole", teacher, train__max_steps=6).train()
    first = start(tiny_model, tmp_path / "cut", teacher, train__max_steps=6, train__save_steps=2)
    real = first.record

    def stop(step: int, logs: dict[str, Any]) -> None:
        real(step, logs)
        if step == 5:
            raise KeyboardInterrupt

    first.record = stop
    with pytest.raises(KeyboardInterrupt):
        first.train()
    start(tiny_model, tmp_path / "cut", teacher, train__max_steps=6, train__save_steps=2).train(resume="latest")
    assert len(set(runs.logged(tmp_path / "whole/out", "on_policy"))) == 2
    assert runs.logged(tmp_path / "whole/out") == runs.logged(tmp_path / "cut/out")
    assert runs.same_weights(tmp_path / "whole/out", tmp_path / "cut/out")
    assert runs.logged(tmp_path / "whole/out", "num_tokens") == runs.logged(tmp_path / "cut/out", "num_tokens")


def test_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    other = helpers.save_tiny_model(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(other)
    trainer = start(tiny_model, tmp_path / "a", other)
    with pytest.raises(ValidationError) as caught:
        trainer.train()
    assert "does not share the student's vocabulary: token '<extra>' is" in caught.value.message
    assert "not there in the student" in caught.value.message
    assert not (tmp_path / "a/out").exists()


def test_padded_outputs_beyond_the_vocabulary_do_not_count(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    """A teacher with more rows in its embedding than tokens, as families of models have them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    model.resize_token_embeddings(len(tokenizer) + 13)
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    for name, path in (("narrow", teacher), ("wide", tmp_path / "wide")):
        start(tiny_model, tmp_path / name, path, {"lmbda": 0.0}, train__max_steps=1).train()
    assert runs.logged(tmp_path / "wide/out")[0] == pytest.approx(runs.logged(tmp_path / "narrow/out")[0], abs=1e-5)


def test_what_cannot_be_a_teacher_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"algo\.teacher: there is no folder './gone'"):
        start(tiny_model, tmp_path / "a", "./gone").train()  # type: ignore[arg-type]
    pickled = helpers.save_tiny_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="has no safetensors weights"):
        start(tiny_model, tmp_path / "b", pickled).train()


def test_the_teachers_section_keeps_the_students_settings(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    raw = runs.plain(
        "gkd", tiny_model, tmp_path, algo__teacher=str(teacher), algo__teacher_revision="v2", model__peft={"r": 4},
        model__precision="bf16",
    )  # fmt: skip
    config = build_config(raw)
    section = config.algo.teacher_config(config)
    assert (section.name_or_path, section.revision, section.precision) == (str(teacher), "v2", "bf16")
    assert section.peft is None
    assert section.quantization is None


def test_adapters_are_trained_and_the_teacher_is_not(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    trainer = start(tiny_model, tmp_path, teacher, model__peft={"r": 4}, train__max_steps=2)
    before = {k: v.clone() for k, v in runs.weights(teacher).items()}
    trainer.train()
    assert (tmp_path / "out/adapter_model.safetensors").exists()
    assert not any(p.requires_grad for p in trainer._hf.teacher.parameters())
    kept = dict(trainer._hf.teacher.named_parameters())
    assert all(bool((kept[k] == v).all()) for k, v in before.items() if k in kept)


def test_a_library_that_ignores_the_loss_is_an_error() -> None:
    class Library:
        def training_step(self) -> float:
            return 0.0

    with pytest.raises(TrainingError, match="never called compute_loss"):
        distill.distilling(Library)().training_step()
    made = distill.distilling(Library)()
    made.model = SimpleNamespace(training=False)


@pytest.mark.parametrize(
    ("algo", "changes", "said"),
    [
        ({}, {}, "algo.teacher: is missing"),
        ({"teacher": "t", "lmbda": 1.0, "seq_kd": True}, {}, "algo.seq_kd: has no effect"),
        ({"teacher": "t", "lmbda": 0.0}, {"generation__temperature": 0.5}, "generation.temperature: has no effect"),
        ({"teacher": "t", "lmbda": 1.5}, {}, "algo.lmbda"),
        ({"teacher": "t", "loss_type": "dft"}, {}, "loss_type"),
        ({"teacher": "t"}, {"generation__use_vllm": True}, "generation.use_vllm: has no effect"),
    ],
)
def test_contradictions_are_refused(tiny_model: Path, tmp_path: Path, algo: Any, changes: Any, said: str) -> None:
    raw = runs.plain("gkd", tiny_model, tmp_path, **{"algo": {"name": "gkd", **algo}, **changes})
    with pytest.raises(ConfigurationError) as caught:
        build_config(raw)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_the_offline_name(tiny_model: Path, tmp_path: Path) -> None:
    config = build_config(runs.plain("gkd", tiny_model, tmp_path, algo={"name": "distillation", "teacher": "t"}))
    assert (config.algorithm.key, config.algo.lmbda) == ("gkd", 0.0)
