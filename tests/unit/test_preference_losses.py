"""Preference losses: what is trained equals the formula in float64, in value and gradient, on one fixed batch.

The policy is moved away from the reference by noise, so that no ratio is zero. TRL's losses are captured from its
trainer as our configuration builds it; the references below are written from the papers.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

import runs
from aligntune.algorithms.base import get_algorithm
from aligntune.algorithms.dpo import DPO, conservative, f_score
from aligntune.algorithms.kto import balance
from aligntune.algorithms.reference_free import Answers
from aligntune.core.callbacks import Progress, StopRequest
from aligntune.core.config import build_config
from aligntune.core.preference import kto_loss
from aligntune.core.rl import pairs
from aligntune.errors import ConfigurationError, TrainingError, ValidationError
from aligntune.eval.stats import auc_interval

PAIRS = [
    {"prompt": "Say 1", "chosen": "Yes, sir.", "rejected": "no"},
    {"prompt": "Say two", "chosen": "Two.", "rejected": "nothing at all, sorry"},
    {"prompt": "Go on", "chosen": "On and on", "rejected": "stop"},
    {"prompt": "Why?", "chosen": "So.", "rejected": "I do not"},
]


def built(kind: str, model: Path, folder: Path, rows: list[dict[str, Any]] = PAIRS, **changes: Any) -> Any:
    """The library's trainer as our configuration makes it, its policy moved away from the reference."""
    folder.mkdir(parents=True, exist_ok=True)
    data = runs.write_rows(folder / "rows.jsonl", rows)
    trainer = runs.trainer(kind, model, folder, datasets=[{"name": str(data)}], **changes)
    trainer._train_rows()
    hf = trainer._build(StopRequest(), Progress("x"))
    hf.model.train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in hf.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return hf


def batch_of(hf: Any) -> Any:
    return hf._prepare_inputs(hf.data_collator([hf.train_dataset[i] for i in range(len(hf.train_dataset))]))


def logps_of(model: Any, batch: Any, prefix: str = "") -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Per row the log-probabilities of its answer's tokens and log sum_v p_v^2 there, one row at a time, unpadded."""
    tokens, squares = [], []
    for ids, real, mask in zip(
        *(batch[f"{prefix}{k}"] for k in ("input_ids", "attention_mask", "completion_mask")), strict=True
    ):
        length = int(real.sum())
        table = model(input_ids=ids[None, :length]).logits[0, :-1].log_softmax(-1)
        wanted = mask[1:length].bool()
        tokens.append(table.gather(-1, ids[1:length, None])[:, 0][wanted])
        squares.append((2 * table).logsumexp(-1)[wanted].detach())
    return tokens, squares


def twin_of(model: Any) -> Any:
    """A copy in double precision whose forward is its class's: TRL 1.16 binds one to the model that it trains."""
    twin = copy.deepcopy(model).double()
    twin.__dict__.pop("forward", None)
    return twin


def same_gradient(hf: Any, twin: Any) -> None:
    mine, theirs = dict(hf.model.named_parameters()), dict(twin.named_parameters())
    largest = max(p.grad.abs().max().item() for p in theirs.values() if p.grad is not None)
    assert largest > 0
    for name, parameter in mine.items():
        assert torch.allclose(parameter.grad.double(), theirs[name].grad, atol=2e-5 * largest, rtol=1e-3), name


# ---- every loss of TRL's DPOTrainer ---------------------------------------------------------------------------


def pair_loss(name: str, w: Any, l: Any, n_w: Any, n_l: Any, b: float, e: float, s: Any = None) -> Any:  # noqa: E741
    """The loss of each pair from the papers; w, l are log-ratios, s the scores of an f-divergence in their place."""
    x, y = s if s is not None else (w, l)
    h = b * (x - y)
    if name in ("aot", "aot_unpaired"):
        h = b * (w.sort().values - l.sort().values)
        return -(1 - e) * logsigmoid(h) - e * logsigmoid(-h)
    return {
        "sigmoid": -(1 - e) * logsigmoid(h) - e * logsigmoid(-h),
        "hinge": (1 - h).clamp(min=0),
        "ipo": (x / n_w - y / n_l - 1 / (2 * b)) ** 2,
        "exo_pair": h.sigmoid() * (logsigmoid(h) - math.log(1 - e))
        + (-h).sigmoid() * (logsigmoid(-h) - math.log(abs(e) or 1)),
        "nca_pair": -logsigmoid(b * w) - 0.5 * logsigmoid(-b * w) - 0.5 * logsigmoid(-b * l),
        "robust": (-(1 - e) * logsigmoid(h) + e * logsigmoid(-h)) / (1 - 2 * e),
        "bco_pair": -logsigmoid(b * w) - logsigmoid(-b * l),
        "sppo_hard": (w - 0.5 / b) ** 2 + (l + 0.5 / b) ** 2,
        "apo_zero": 1 - (b * w).sigmoid() + (b * l).sigmoid(),
        "apo_down": (b * w).sigmoid() + 1 - (b * (w - l)).sigmoid(),
        "discopop": softplus(-h) * (1 - (h / 0.05).sigmoid()) + torch.exp(-h) * (h / 0.05).sigmoid(),
        "sigmoid_norm": -logsigmoid(b * (x / n_w - y / n_l)),
    }[name]


def scored(ratio: torch.Tensor, divergence: str, alpha: float) -> torch.Tensor:
    """f'(u), u = exp(ratio), of arXiv:2309.16240 (table 1)."""
    u = ratio.exp()
    return {
        "reverse_kl": ratio,
        "forward_kl": 1 - 1 / u,
        "js_divergence": torch.log(2 * u / (1 + u)),
        "alpha_divergence": (u ** (alpha - 1) - 1) / (alpha - 1),
    }[divergence]


def expected(algo: dict[str, Any], policy: Any, reference: Any, batch: Any) -> torch.Tensor:
    """The whole loss of one batch in float64."""
    names = algo.get("loss_type", "sigmoid")
    names = [names] if isinstance(names, str) else names
    (tokens, squares), (ref_tokens, _) = logps_of(policy, batch), logps_of(reference, batch)
    half = len(tokens) // 2
    lengths = [len(t) for t in tokens]
    n_w, n_l = torch.tensor(lengths[:half]), torch.tensor(lengths[half:])

    def summed(rows: list[torch.Tensor]) -> torch.Tensor:
        a = algo.get("ld_alpha", 1.0)
        shared = [min(lengths[i], lengths[(i + half) % (2 * half)]) for i in range(2 * half)]
        return torch.stack([t[:n].sum() + a * t[n:].sum() for t, n in zip(rows, shared, strict=True)])

    ratios = summed(tokens) - (0 if algo.get("reference_free") else summed(ref_tokens).detach())
    w, l = ratios.chunk(2)  # noqa: E741
    scores = [
        scored(r, algo.get("f_divergence_type", "reverse_kl"), algo.get("f_alpha_divergence_coef", 0.5)) for r in (w, l)
    ]
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in zip(names, algo.get("loss_weights") or [1.0] * len(names), strict=True):
        if name == "sft":
            total = total - weight * torch.cat(tokens[:half]).mean()
            continue
        loss = pair_loss(name, w, l, n_w, n_l, algo.get("beta", 0.1), algo.get("label_smoothing", 0.0), scores)
        if name == "aot":  # sorted log-probabilities, not log-ratios
            p, r = summed(tokens), summed(ref_tokens).detach()
            h = 0.1 * ((p[:half] - p[half:]).sort().values - (r[:half] - r[half:]).sort().values)
            e = algo.get("label_smoothing", 0.0)
            loss = -(1 - e) * logsigmoid(h) - e * logsigmoid(-h)
        if algo.get("use_weighting"):
            weights = torch.stack([(t - s).mean().exp().detach() for t, s in zip(tokens, squares, strict=True)])
            loss = loss * weights[:half] * weights[half:]
        total = total + weight * loss.mean()
    return total


CASES: list[dict[str, Any]] = [
    *({"loss_type": name} for name in (
        "sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
        "apo_down", "discopop", "sigmoid_norm", "sft",
    )),
    *({"loss_type": name, "label_smoothing": 0.2} for name in ("exo_pair", "robust", "aot", "aot_unpaired", "sigmoid")),
    {"beta": 0.5},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.25]},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "label_smoothing": 0.1},
    *({"f_divergence_type": f, "label_smoothing": 0.1} for f in ("forward_kl", "js_divergence", "alpha_divergence")),
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.5, "loss_type": "hinge"},
    {"ld_alpha": 0.3},
    {"ld_alpha": 0.0, "loss_type": "apo_zero"},
    {"use_weighting": True},
    {"use_weighting": True, "label_smoothing": 0.1},
    {"reference_free": True},
    {"reference_free": True, "loss_type": "ipo"},
    {"reference_free": True, "label_smoothing": 0.3},
    {"precompute_ref_log_probs": True},
]  # fmt: skip


@pytest.mark.parametrize("algo", CASES, ids=lambda c: "-".join(f"{v}" for v in c.values()))
def test_dpo_trains_the_formula(algo: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hf = built("dpo", tiny_model, tmp_path, **{f"algo__{k}": v for k, v in algo.items()})
    batch = batch_of(hf)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    policy = twin_of(hf.model)
    want = expected(algo, policy, reference, batch)
    loss = hf.compute_loss(hf.model, batch)
    assert loss.item() == pytest.approx(want.item(), rel=2e-5, abs=1e-6)
    loss.backward()
    want.backward()
    same_gradient(hf, policy)


def test_every_loss_that_trl_lists_is_covered() -> None:
    from typing import get_args

    from trl import DPOConfig

    from aligntune.algorithms.dpo import LossType

    ours = {
        n for c in CASES for n in ([c["loss_type"]] if isinstance(c.get("loss_type"), str) else c.get("loss_type", []))
    }
    assert ours == set(get_args(LossType))
    told = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    assert all(f"'{name}'" in told for name in ours)
    assert told.count("`'") == len(ours)


def test_conservative_dpo_is_a_robust_loss() -> None:
    h = torch.linspace(-5, 5, 11, dtype=torch.float64, requires_grad=True)
    for e in (0.0, 0.01, 0.2, 0.49):
        own = pair_loss("sigmoid", h, 0 * h, 1, 1, 1.0, e)
        sent = pair_loss("robust", h, 0 * h, 1, 1, 1.0, conservative(e))
        assert torch.allclose(own, sent, rtol=1e-9)
        assert torch.allclose(*(torch.autograd.grad(x.sum(), h, retain_graph=True)[0] for x in (own, sent)), rtol=1e-7)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
def test_scores_of_f_divergences(divergence: str) -> None:
    """Equal to f', rising, and equal to the log-ratio near 0 to first order, up to a constant."""
    for x in (-3.0, -0.5, 0.0, 0.7, 2.0):
        want = scored(torch.tensor(x, dtype=torch.float64), divergence, 0.4).item()
        assert f_score(x, divergence, 0.4) == pytest.approx(want, abs=1e-12)
        assert f_score(x + 1e-3, divergence, 0.4) > f_score(x, divergence, 0.4)
    assert f_score(0.3, "alpha_divergence", 1.0) == 0.3
    assert math.isfinite(f_score(-1e6, "forward_kl", 0.5))


# ---- losses of our own: ORPO, CPO, SimPO ------------------------------------------------------------------------


def simpo(w: Any, l: Any, n: Any, m: Any) -> Any:  # noqa: E741
    return -torch.log(torch.sigmoid(2.0 * w / n - 2.0 * l / m - 1.0))


def cpo(w: Any, l: Any, n: Any, m: Any) -> Any:  # noqa: E741
    return -torch.log(torch.sigmoid(0.1 * w - 0.1 * l)) - w / n


def orpo(w: Any, l: Any, n: Any, m: Any) -> Any:  # noqa: E741
    p, q = torch.exp(w / n), torch.exp(l / m)
    return -w / n - 0.1 * torch.log(torch.sigmoid(torch.log(p / (1 - p)) - torch.log(q / (1 - q))))


OWN = {"simpo": simpo, "cpo": cpo, "orpo": orpo}


@pytest.mark.parametrize("name", OWN)
def test_an_objective_equals_its_formula(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    n, m = torch.randint(1, 9, (2, 64), generator=generator)
    w, l = (-6 * torch.rand(2, 64, generator=generator, dtype=torch.float64) * torch.stack([n, m])).unbind()  # noqa: E741
    w.requires_grad_(), l.requires_grad_()
    params: Any = get_algorithm(name)()
    ours, logged = params.objective(Answers(w, n), Answers(l, m))
    theirs = OWN[name](w, l, n, m)
    assert ours.shape == (64,)
    assert torch.allclose(ours, theirs, rtol=1e-10)
    mine = torch.autograd.grad(ours.mean(), (w, l), retain_graph=True)
    assert all(
        torch.allclose(a, b, rtol=1e-8) for a, b in zip(mine, torch.autograd.grad(theirs.mean(), (w, l)), strict=True)
    )
    assert all(v.shape == (64,) for v in logged.values())
    for i, step in itertools.product((0, 7), (1e-6,)):  # finite differences
        up, down = (params.objective(Answers(w.detach().index_add(0, torch.tensor([i]), torch.tensor([d], dtype=w.dtype)), n),
                                     Answers(l.detach(), m))[0].mean() for d in (step, -step))  # fmt: skip
        assert ((up - down) / (2 * step)).item() == pytest.approx(mine[0][i].item(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", OWN)
def test_an_objective_falls_as_the_chosen_answer_gains(name: str) -> None:
    params: Any = get_algorithm(name)()
    n = torch.tensor([4])
    losses = [
        float(params.objective(Answers(torch.tensor([w]), n), Answers(torch.tensor([-8.0]), n))[0])
        for w in (-9.0, -6.0, -1.0)
    ]
    assert losses == sorted(losses, reverse=True)
    rewards = [params.implicit_reward(w, 4, 123.0) for w in (-9.0, -6.0, -1.0)]
    assert rewards == sorted(rewards)
    held = params.held_out_loss([(-6.0, 4, 0.0)], [(-8.0, 4, 0.0)])
    assert held == pytest.approx(losses[1], rel=1e-6)


def test_a_certain_answer_has_finite_odds_and_gradient() -> None:
    params: Any = get_algorithm("orpo")()
    w = torch.zeros(1, requires_grad=True)
    loss = params.objective(Answers(w, torch.tensor([3])), Answers(torch.tensor([-2.0]), torch.tensor([3])))[0].sum()
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(w.grad).all()


@pytest.mark.parametrize("name", OWN)
def test_the_trainer_trains_the_objective(name: str, tiny_model: Path, tmp_path: Path) -> None:
    hf = built(name, tiny_model, tmp_path)
    assert hf.ref_model is None
    batch = batch_of(hf)
    policy = twin_of(hf.model)
    tokens, _ = logps_of(policy, batch)
    sums, lengths = torch.stack([t.sum() for t in tokens]), torch.tensor([len(t) for t in tokens])
    want = OWN[name](*sums.chunk(2), *lengths.chunk(2)).mean()
    loss = hf.compute_loss(hf.model, batch)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    loss.backward()
    want.backward()
    same_gradient(hf, policy)
    metrics = {k: v[0] for k, v in hf._metrics["train"].items()}
    assert metrics["logps/chosen"] == pytest.approx(sums[:4].mean().item(), rel=1e-5)
    better, worse = (
        hf.params.scores(Answers(s, n)) for s, n in zip(sums.detach().chunk(2), lengths.chunk(2), strict=True)
    )
    assert metrics["rewards/margins"] == pytest.approx((better - worse).mean().item(), rel=1e-4)
    assert metrics["rewards/accuracies"] == (better > worse).double().mean().item()
    assert metrics["num_tokens"] == int(batch["attention_mask"].sum())


def test_a_library_that_goes_round_the_loss_is_an_error() -> None:
    class Library:
        def compute_loss(self, *args: Any) -> float:
            return 1.0

        def training_step(self, *args: Any) -> float:
            return Library.compute_loss(self)

    trainer: Any = pairs.without_reference(Library)()
    trainer.params = get_algorithm("simpo")()
    with pytest.raises(TrainingError, match="never called compute_loss, so it does not train simpo"):
        trainer.training_step()


def test_logps_do_not_depend_on_padding_or_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 6, 9, generator=generator), torch.randint(0, 9, (2, 6), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]])
    got = pairs.answer_logps(logits.double(), ids, mask)
    table = logits.double().log_softmax(-1)
    want = [sum(table[i, t - 1, ids[i, t]] for t in range(1, 6) if mask[i, t]) for i in range(2)]
    assert got.logps.tolist() == pytest.approx([float(x) for x in want])
    assert got.tokens.tolist() == [3, 2]
    assert pairs.answer_logps(logits.bfloat16(), ids, mask).logps.dtype == torch.float32


# ---- KTO ----------------------------------------------------------------------------------------------------------


LABELS = [
    {"prompt": p["prompt"], "completion": p[s], "label": s == "chosen"} for p in PAIRS for s in ("chosen", "rejected")
]


@pytest.mark.parametrize("algo", [{}, {"desirable_weight": 2.0, "beta": 0.5}, {"undesirable_weight": 3.0, "precompute_ref_log_probs": True},
                                  {"loss_type": "apo_zero_unpaired", "desirable_weight": 0.5}], ids=str)  # fmt: skip
def test_kto_trains_the_formula(algo: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hf = built(
        "kto",
        tiny_model,
        tmp_path,
        LABELS[:-1],
        train__per_device_batch_size=7,
        **{f"algo__{k}": v for k, v in algo.items()},
    )
    batch = batch_of(hf)
    policy, reference = twin_of(hf.model), AutoModelForCausalLM.from_pretrained(tiny_model).double()
    with_kl = algo.get("loss_type") is None
    assert ("KL_input_ids" in batch) == with_kl

    def ratios(prefix: str) -> torch.Tensor:
        return torch.stack(
            [
                p.sum() - r.sum().detach()
                for p, r in zip(*(logps_of(m, batch, prefix)[0] for m in (policy, reference)), strict=True)
            ]
        )

    z = ratios("KL_").mean().clamp(min=0).detach() if with_kl else 0.0
    b, good = algo.get("beta", 0.1), batch["label"]
    r = ratios("")
    losses = torch.where(good, algo.get("desirable_weight", 1.0) * (1 - (b * (r - z)).sigmoid()),
                         algo.get("undesirable_weight", 1.0) * (1 - (b * (z - r)).sigmoid()))  # fmt: skip
    loss = hf.compute_loss(hf.model, batch)
    assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    loss.backward()
    losses.mean().backward()
    same_gradient(hf, policy)
    held = kto_loss((b * r)[good].tolist(), (b * r)[~good].tolist(), float(b * z), hf_params(algo))
    assert held / len(r) == pytest.approx(losses.mean().item(), rel=1e-9)


def hf_params(algo: dict[str, Any]) -> Any:
    return get_algorithm("kto")(**algo)


def test_mismatched_answers_are_those_of_the_batch(tiny_model: Path, tmp_path: Path) -> None:
    """Each micro-batch rotates its own answers, in the order in which the sampler reads them."""
    hf = built("kto", tiny_model, tmp_path, LABELS[:-1], train__per_device_batch_size=3)
    assert len(hf.train_dataset) == 6  # the seventh row would be a batch of its own
    order = list(hf._get_train_sampler())
    assert order == sorted(order)
    for start in (0, 3):
        rows = [hf.train_dataset[i] for i in order[start : start + 3]]
        assert [r["KL_completion_ids"] for r in rows] == [rows[i - 1]["completion_ids"] for i in range(3)]


def test_kto_arranges_and_reports(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"prompt": str(i), "completion": "x", "label": i < 6} for i in range(9)]
    config = build_config(runs.plain("kto", Path("model"), tmp_path))
    params = config.algorithm
    made, notes = params.arrange(Dataset.from_list(rows), config)
    assert len(made) == 8
    assert made["prompt"][:] != sorted(made["prompt"])
    assert set(made["prompt"]) < {str(i) for i in range(9)}
    told = " ".join(notes)
    assert "6 of 9 rows (66.7%) are desirable" in told
    assert "set algo.undesirable_weight to between 1.5 and 2" in told
    assert "seed 3" in told
    assert "left out 1 row" in told
    again, _ = params.arrange(Dataset.from_list(rows), config)
    assert again["prompt"][:] == made["prompt"][:]
    free = build_config(runs.plain("kto", Path("model"), tmp_path, algo__loss_type="apo_zero_unpaired"))
    same, notes = free.algorithm.arrange(Dataset.from_list(rows), free)
    assert same["prompt"][:] == [str(i) for i in range(9)]
    assert len(notes) == 1
    with pytest.raises(ValidationError, match="all 6 rows are desirable"):
        params.arrange(Dataset.from_list(rows[:6]), config)


@pytest.mark.parametrize(
    ("good", "bad", "weights"), [(3, 7, (1, 1)), (7, 3, (1, 1)), (50, 50, (1, 1)), (1, 99, (50, 2))]
)
def test_the_advised_weight_is_in_range(good: int, bad: int, weights: tuple[float, float]) -> None:
    ratio, advice = balance(good, bad, *weights)
    assert ratio == pytest.approx(weights[0] * good / (weights[1] * bad))
    assert (advice == "") == (1 <= ratio <= 4 / 3)
    if advice:
        low, high = (float(x) for x in advice.rsplit("between ", 1)[1].split(" and "))
        for value in (low * 1.01, high * 0.99):
            changed = (value, weights[1]) if "algo.desirable" in advice else (weights[0], value)
            assert 1 <= balance(good, bad, *changed)[0] <= 4 / 3


def test_auc_counts_pairs() -> None:
    generator = random.Random(0)
    good, bad = ([generator.randrange(8) / 2 for _ in range(n)] for n in (13, 17))
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    assert auc_interval(good, bad).estimate == pytest.approx(wins / (13 * 17))
    assert auc_interval([1.0], [1.0]).estimate == 0.5


# ---- references -----------------------------------------------------------------------------------------------------


def test_an_untrained_adapter_is_not_copied_and_a_trained_one_is(tiny_model: Path, tmp_path: Path) -> None:
    hf = built("dpo", tiny_model, tmp_path / "a", model__peft={"r": 2})
    assert list(hf.model.peft_config) == ["default"]
    assert hf.ref_model is None
    trained = runs.trainer("dpo", tiny_model, tmp_path / "b", model__peft={"r": 2}, train__max_steps=1)
    trained.train()
    on = built("dpo", Path(trained.config.output_dir), tmp_path / "c", model__peft={"r": 2})
    assert set(on.model.peft_config) == {"default", "ref"}


def test_the_adapter_off_equals_a_separate_reference(tiny_model: Path, tmp_path: Path) -> None:
    """One model in memory; its reference log-probabilities are those of the starting model loaded apart."""
    import gc

    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    gc.collect()
    before = sum(isinstance(o, LlamaForCausalLM) for o in gc.get_objects())
    hf = built("dpo", tiny_model, tmp_path, model__peft={"r": 4})
    assert sum(isinstance(o, LlamaForCausalLM) for o in gc.get_objects()) == before + 1
    with torch.no_grad():  # the noise of `built` stays in the adapter alone
        clean = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
        for name, parameter in hf.model.named_parameters():
            if "lora" not in name:
                plain = name.removeprefix("base_model.model.").replace("base_layer.", "")
                parameter.copy_(clean[plain])
    batch = batch_of(hf)
    got = torch.cat(hf.compute_ref_log_probs(hf.model, batch))
    separate = AutoModelForCausalLM.from_pretrained(tiny_model)
    want, moved = (torch.stack([t.sum() for t in logps_of(m, batch)[0]]) for m in (separate, hf.model))
    assert torch.allclose(got, want, atol=1e-4)
    assert not torch.allclose(moved, want, atol=1e-1)


@pytest.mark.parametrize("kind", ["simpo", "orpo", "cpo", "dpo"])
def test_no_reference_is_loaded_where_there_is_none(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl.trainer.dpo_trainer as library

    monkeypatch.setattr(library, "create_model_from_path", lambda *a, **k: pytest.fail("a reference was loaded"))
    changes: dict[str, Any] = {"algo__reference_free": True} if kind == "dpo" else {}
    assert built(kind, tiny_model, tmp_path, **changes).ref_model is None
    lora = built(kind, tiny_model, tmp_path, model__peft={"r": 2}, **changes)
    assert list(lora.model.peft_config) == ["default"]


def test_a_named_reference_is_used(tiny_model: Path, tmp_path: Path) -> None:
    import helpers

    other = helpers.save_tiny_model(tmp_path / "other", seed=9)
    hf = built("dpo", tiny_model, tmp_path, algo__reference=str(other), model__peft={"r": 2})
    want = runs.weights(other)["model.embed_tokens.weight"]
    assert torch.equal(hf.ref_model.model.embed_tokens.weight, want)
    assert not any(p.requires_grad for p in hf.ref_model.parameters())


def test_a_reference_of_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    import helpers

    other = helpers.save_tiny_model(tmp_path / "other", seed=9)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    trainer = runs.trainer("dpo", tiny_model, tmp_path, algo__reference=str(other))
    with pytest.raises(ValidationError, match="does not share the vocabulary of the model: token 'A'") as caught:
        trainer.train()
    assert "algo.reference" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_reference_that_is_not_there_is_named_by_its_own_key(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("kto", tiny_model, tmp_path, algo__reference="./gone")
    with pytest.raises(ConfigurationError, match=r"algo\.reference: there is no folder './gone'"):
        trainer.train()


# ---- contradictions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "key", "words"),
    [
        ("dpo", {"algo__loss_type": ["sigmoid", "sigmoid"]}, "algo.loss_type", "twice"),
        ("dpo", {"algo__loss_type": []}, "algo.loss_type", "is empty"),
        ("dpo", {"algo__loss_type": "simpo"}, "algo.loss_type", "sigmoid"),
        ("dpo", {"algo__loss_weights": [1.0]}, "algo.loss_weights", "there is one loss"),
        ("dpo", {"algo__loss_type": ["ipo", "sft"], "algo__loss_weights": [1.0]}, "algo.loss_weights", "1 numbers for 2"),
        ("dpo", {"algo__loss_type": ["ipo", "sft"], "algo__loss_weights": [0, 0]}, "algo.loss_weights", "all 0"),
        ("dpo", {"algo__label_smoothing": 0.1, "algo__loss_type": "hinge"}, "algo.label_smoothing", "no effect"),
        ("dpo", {"algo__label_smoothing": 0.1, "algo__loss_type": ["sigmoid", "robust"]}, "algo.label_smoothing", "different"),
        ("dpo", {"algo__loss_type": "exo_pair"}, "algo.label_smoothing", "above 0"),
        ("dpo", {"algo__f_divergence_type": "forward_kl", "algo__loss_type": "bco_pair"}, "algo.f_divergence_type", "bco_pair"),
        ("dpo", {"algo__f_alpha_divergence_coef": 0.7}, "algo.f_alpha_divergence_coef", "only f_divergence_type"),
        ("dpo", {"algo__discopop_tau": 0.05}, "algo.discopop_tau", "only the loss discopop"),
        ("dpo", {"algo__use_weighting": True, "algo__loss_type": "aot"}, "algo.use_weighting", "sorts"),
        ("dpo", {"algo__use_weighting": True, "algo__loss_type": ["sigmoid", "sft"]}, "algo.use_weighting", "sft"),
        ("dpo", {"algo__beta": 0.3, "algo__loss_type": "sft"}, "algo.beta", "no reference"),
        ("dpo", {"algo__ref_model_sync_steps": 3}, "algo.ref_model_sync_steps", "sync_ref_model is false"),
        ("dpo", {"algo__sync_ref_model": True, "model__peft": {"r": 2}}, "algo.sync_ref_model", "model.peft"),
        ("dpo", {"algo__sync_ref_model": True, "algo__precompute_ref_log_probs": True}, "algo.precompute_ref_log_probs", "moves"),
        ("dpo", {"algo__reference_free": True, "algo__loss_type": "nca_pair"}, "algo.reference_free", "nca_pair"),
        ("dpo", {"algo__reference_free": True, "algo__sync_ref_model": True}, "algo.sync_ref_model", "needs a reference"),
        ("dpo", {"algo__reference_free": True, "algo__reference": "x"}, "algo.reference", "needs a reference"),
        ("dpo", {"algo__ld_alpha": 1.5}, "algo.ld_alpha", "less than or equal to 1"),
        ("kto", {"train__per_device_batch_size": 1}, "train.per_device_batch_size", "at least 2"),
        ("kto", {"algo__loss_type": "sigmoid"}, "algo.loss_type", "apo_zero_unpaired"),
        ("simpo", {"algo__reference": "x"}, "algo.reference", ""),
        ("simpo", {"algo__gamma": -1}, "algo.gamma", "greater than or equal to 0"),
        ("orpo", {"rewards": ["length"]}, "rewards", "not from reward functions"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(kind: str, changes: dict[str, Any], key: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_config(runs.plain(kind, Path("model"), tmp_path, **changes))
    said = f"{caught.value.message}; {caught.value.hint}"
    assert key in said
    assert words in said


def test_batches_of_one_are_taken_where_there_is_no_baseline(tmp_path: Path) -> None:
    changes = {"train__per_device_batch_size": 1, "algo__loss_type": "apo_zero_unpaired"}
    assert build_config(runs.plain("kto", Path("model"), tmp_path, **changes))


def test_the_held_out_loss_is_given_where_it_is_the_loss() -> None:
    pair = [(-3.0, 2, -4.0)], [(-6.0, 3, -5.0)]
    m = 0.1 * (1.0 + 1.0)
    assert DPO().held_out_loss(*pair) == pytest.approx(math.log1p(math.exp(-m)))
    e = 0.2
    want = (1 - e) * math.log1p(math.exp(-m)) + e * math.log1p(math.exp(m))
    assert DPO(label_smoothing=e).held_out_loss(*pair) == pytest.approx(want)
    assert DPO(loss_type="ipo").held_out_loss(*pair) is None
    assert DPO(use_weighting=True).held_out_loss(*pair) is None
