"""What must not change a run: how a batch is cut, how many processes share it, how rows are padded, the seed's use.

Weights are compared after Adam steps, which divide by the size of the gradient and so enlarge rounding in weights with
almost none: 2e-5 is allowed there at a learning rate of 1e-3, and 1e-5 relative in losses.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core.callbacks import Progress, StopRequest

WEIGHTS = 2e-5
LOSS = 1e-5
UNEVEN_SFT = [{"prompt": f"Say {i}", "completion": "word " * (1 + 5 * i % 9)} for i in range(24)]
UNEVEN_DPO = [
    {"prompt": f"Say {i}", "chosen": "yes " * (1 + 5 * i % 7), "rejected": "no " * (1 + 3 * i % 8)} for i in range(24)
]
ROWS = {"sft": UNEVEN_SFT, "dpo": UNEVEN_DPO}
KINDS = list(ROWS)


def trainer_of(kind: str, model: Path, folder: Path, **changes: Any) -> Any:
    """A run on rows of uneven lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"name": str(runs.write_rows(folder / "uneven.jsonl", ROWS[kind]))}
    where = {"dataset": data} if kind == "sft" else {"datasets": [data]}
    return runs.trainer(kind, model, folder, **where, **changes)


def built(kind: str, model: Path, folder: Path, **changes: Any) -> Any:
    """The library's trainer of such a run, before its first step."""
    trainer = trainer_of(kind, model, folder, **changes)
    trainer._hf = trainer._build(StopRequest(), Progress("x"))
    return trainer._hf


def apart(a: Path | str, b: Path | str) -> float:
    """The largest distance between the weights of two saved models."""
    left, right = runs.weights(a), runs.weights(b)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def batch_of(hf: Any, start: int, stop: int) -> Any:
    return hf.data_collator([hf.train_dataset[i] for i in range(start, stop)])


def loss_of(hf: Any, batch: Any) -> Any:
    return hf.compute_loss(hf.model, dict(batch))


# ---- how a batch is cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peft", [None, {"r": 4, "alpha": 8}])
def test_a_batch_of_eight_equals_four_accumulated_twos(kind: str, peft: Any, tiny_model: Path, tmp_path: Path) -> None:
    ends = {}
    for batch, accumulated in ((8, 1), (2, 4)):
        changes = {"train__per_device_batch_size": batch, "train__gradient_accumulation_steps": accumulated}
        trainer = trainer_of(kind, tiny_model, tmp_path / str(batch), model__peft=peft, train__max_steps=3, **changes)
        trainer.train()
        ends[batch] = trainer.config.output_dir
    for key in ("loss", "grad_norm", "num_tokens"):
        assert runs.logged(ends[8], key) == pytest.approx(runs.logged(ends[2], key), rel=10 * LOSS), key
    assert apart(ends[8], ends[2]) < WEIGHTS


DEPENDS_ON_THE_BATCH = {"aot", "aot_unpaired", "sft"}
"""The losses of DPO that sort the batch, or average over its tokens."""


def test_which_losses_of_dpo_are_means_over_pairs(tiny_model: Path, tmp_path: Path) -> None:
    """The loss of eight pairs against the mean of four times two, for every loss type, from one trainer."""
    import torch

    from aligntune.algorithms.base import get_algorithm

    hf = built("dpo", tiny_model, tmp_path)
    with torch.no_grad():
        for name, weight in hf.model.named_parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.3)
    hf.label_smoothing, hf.beta = 0.1, 1.0  # far from the origin, where every loss is linear
    hf.args.discopop_tau = 0.05
    batches = [batch_of(hf, 0, 8), *(batch_of(hf, i, i + 2) for i in range(0, 8, 2))]
    depends = set()
    names = [*_loss_types(get_algorithm("dpo"))]
    assert len(names) == 15
    for name in names:
        hf.loss_types = [name]
        with torch.no_grad():
            whole, *parts = [float(loss_of(hf, batch)) for batch in batches]
        if abs(whole - sum(parts) / 4) > 1e-5 * abs(whole):
            depends.add(name)
    assert depends == DEPENDS_ON_THE_BATCH


def _loss_types(params: Any) -> list[str]:
    """The values of the first Literal in the type of `loss_type`."""
    from typing import get_args, get_type_hints

    def values(hint: Any) -> list[str]:
        found = get_args(hint)
        strings = [f for f in found if isinstance(f, str)]
        return strings or next((v for f in found if (v := values(f))), [])

    return values(get_type_hints(params)["loss_type"])


@pytest.mark.parametrize(
    ("loss_type", "holds"),
    [("grpo", True), ("dr_grpo", True), ("luspo", True), ("dapo", True), ("bnpo", False)],
)
def test_which_averages_of_group_losses_hold_over_micro_batches(loss_type: str, holds: bool) -> None:
    import torch

    from aligntune.core.rl.layer import aggregate

    torch.manual_seed(0)
    values, lengths = torch.randn(8, 6, dtype=torch.float64), torch.tensor([6, 1, 2, 5, 3, 6, 4, 1])
    mask = (torch.arange(6) < lengths[:, None]).double()
    options = {"max_completion_length": 6, "window_tokens": mask.sum()}
    whole = aggregate(values, mask, loss_type, accumulation=1, **options)
    parts = sum(
        aggregate(values[i : i + 2], mask[i : i + 2], loss_type, accumulation=4, **options) for i in range(0, 8, 2)
    )
    assert (abs(float(whole - parts)) < 1e-12) == holds


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_loss_whatever_is_beside_it(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Padding up to a long neighbour changes nothing."""
    import torch

    hf = built(kind, tiny_model, tmp_path)
    with torch.no_grad():
        alone = [float(loss_of(hf, batch_of(hf, i, i + 1))) for i in range(6)]
        weights = [1.0] * 6
        if kind == "sft":  # a mean over tokens
            weights = [float((batch_of(hf, i, i + 1)["labels"][:, 1:] != -100).sum()) for i in range(6)]
        together = float(loss_of(hf, batch_of(hf, 0, 6)))
    mean = sum(a * w for a, w in zip(alone, weights, strict=True)) / sum(weights)
    assert together == pytest.approx(mean, rel=LOSS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_padding_side_of_the_tokenizer_changes_nothing(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    ends = []
    for side in ("left", "right"):
        trainer = trainer_of(kind, tiny_model, tmp_path / side, train__max_steps=2)
        trainer.tokenizer.padding_side = side
        trainer.train()
        ends.append(trainer.config.output_dir)
    assert runs.logged(ends[0]) == runs.logged(ends[1])
    assert runs.same_weights(*ends)


# ---- the reference ---------------------------------------------------------------------------------------------------------


def test_the_adapter_off_equals_a_separate_reference(tiny_model: Path, tmp_path: Path) -> None:
    """The same adapter against itself switched off, and against a model loaded beside it: loss and gradients."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer import utils

    hf = built("dpo", tiny_model, tmp_path, model__peft={"r": 4, "alpha": 8})
    with torch.no_grad():
        for name, weight in hf.model.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.05)
    batch, found = batch_of(hf, 0, 8), []
    assert hf.ref_model is None
    beside = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    if hasattr(utils, "add_fused_lm_head"):  # newer versions give it to a reference of their own
        utils.add_fused_lm_head(beside)
    for reference in (None, beside):
        hf.ref_model = reference
        hf.model.zero_grad()
        loss = loss_of(hf, batch)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in hf.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    (first, left), (second, right) = found
    assert abs(first - 0.693147) > 1e-2
    assert first == pytest.approx(second, rel=1e-6)
    assert left.keys() == right.keys()
    assert all(torch.allclose(left[n], right[n], atol=1e-6) for n in left)


# ---- the seed ----------------------------------------------------------------------------------------------------------------

SEEDED: dict[str, tuple[str, dict[str, Any]]] = {
    "packing": ("sft", {"task__packing": True}),
    "neftune": ("sft", {"task__neftune_noise_alpha": 5.0}),
    "dropout": ("sft", {"model__peft": {"r": 4, "dropout": 0.2}}),
    "dora": ("sft", {"model__peft": {"r": 4, "use_dora": True}}),
    "dpo lora": ("dpo", {"model__peft": {"r": 4}}),
}


@pytest.mark.parametrize("case", SEEDED)
def test_the_same_seed_gives_the_same_curve_and_weights(case: str, tiny_model: Path, tmp_path: Path) -> None:
    kind, changes = SEEDED[case]
    ends = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = trainer_of(kind, tiny_model, tmp_path / name, train__max_steps=2, train__seed=seed, **changes)
        trainer.train()
        ends.append(trainer.config.output_dir)
    assert runs.logged(ends[0]) == runs.logged(ends[1])
    assert runs.same_weights(ends[0], ends[1])
    assert not runs.same_weights(ends[0], ends[2])


# ---- processes ---------------------------------------------------------------------------------------------------------------

WORKER = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = [given["tests"], given["here"]]
import test_invariants as t
from aligntune.core.callbacks import Progress, StopRequest

result = {}
for kind in t.KINDS:
    for name, changes in given["cases"].items():
        folder = Path(given["folder"]) / f"{kind}-{name}-{os.environ['RANK']}"
        trainer = t.trainer_of(kind, Path(given["model"]), folder, train__max_steps=3, **changes)
        rows = []
        trainer._run = SimpleNamespace(append_metrics=rows.append, flush=lambda: None)
        hf = trainer._hf = trainer._build(StopRequest(), Progress("x"))
        hf.train()
        assert hf.args.world_size == 2, hf.args.world_size
        if hf.is_world_process_zero():
            hf.accelerator.unwrap_model(hf.model).save_pretrained(folder / "end")
        result[f"{kind}-{name}"] = {"rows": rows, "end": str(folder / "end")}
if os.environ["RANK"] == "0":
    Path(given["out"]).write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_one_process_equals_two(tiny_model: Path, tmp_path: Path) -> None:
    """Batches of 8 in one process; of 4 in each of two; of 2, accumulated twice, in each of two."""
    cases = {
        "halves": {"train__per_device_batch_size": 4},
        "quarters": {"train__per_device_batch_size": 2, "train__gradient_accumulation_steps": 2},
        "lora": {"train__per_device_batch_size": 4, "model__peft": {"r": 4, "alpha": 8}},
    }
    given = {
        "tests": str(Path(__file__).parents[1]), "here": str(Path(__file__).parent), "model": str(tiny_model),
        "folder": str(tmp_path), "out": str(tmp_path / "two.json"), "cases": cases,
    }  # fmt: skip
    script = tmp_path / "worker.py"
    script.write_text(f"given = {given!r}\n{WORKER}")
    with socket.socket() as probe:  # port 0 would let each worker take one of its own
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, text=True, timeout=500, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two.json").read_text())
    for kind in KINDS:
        for name, changes in cases.items():
            alone = {"train__per_device_batch_size": 8, "model__peft": changes.get("model__peft")}
            trainer = trainer_of(kind, tiny_model, tmp_path / f"{kind}-{name}-one", train__max_steps=3, **alone)
            trainer.train()
            run, out = two[f"{kind}-{name}"], trainer.config.output_dir
            for key in ("loss", "num_tokens", "learning_rate"):
                assert [row[key] for row in run["rows"]] == pytest.approx(runs.logged(out, key), rel=10 * LOSS), key
            assert apart(out, run["end"]) < WEIGHTS, (kind, name)


def test_a_copy_of_a_trained_model_is_the_model(tiny_model: Path, tmp_path: Path) -> None:
    """The measure of distance that these tests use tells a change of one weight."""
    import torch

    trainer = trainer_of("sft", tiny_model, tmp_path, train__max_steps=1)
    other = copy.deepcopy(trainer.model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    trainer.model.save_pretrained(tmp_path / "a")
    other.save_pretrained(tmp_path / "b")
    assert apart(tmp_path / "a", tmp_path / "a") == 0.0
    assert apart(tmp_path / "a", tmp_path / "b") == pytest.approx(1e-3, rel=1e-3)
