"""Plugins without a run: stand-ins for trainer and backend, and what the plugins make of a configuration.

`import plugs` works in every test, because pytest puts this folder on the path with `conftest.py`. `OUTPUTS` maps an
algorithm to a function of its configuration whose value changes with every parameter that only the plugin reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import helpers

REASONING = "We add: 12+34 = 46. So far so good. Now 46+5=51!\nIt follows.\n#### 51"


class Alone:
    """The parts of an Accelerator that plugins use, for one process."""

    num_processes, process_index = 1, 0
    is_main_process = False  # so that nothing is written

    def reduce(self, values: Any, reduction: str) -> Any:
        return values

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cpu")

    def gather(self, values: Any) -> Any:
        return values


class Arithmetic:
    """A backend whose log-probabilities are arithmetic on the tokens so far, plus `shift` for each token.

    Padding changes nothing; a replaced token changes all that follow.
    """

    shift = 0.0

    def per_token_logps(self, model: Any, inputs: dict[str, Any], temperature: float) -> Any:
        import torch

        assert not model.training
        assert not torch.is_grad_enabled()
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        before = (ids * mask).cumsum(1) - ids * mask
        logps = -(1 + (3 * ids + 5 * before) % 17).double() / 10 / temperature + self.shift
        return logps[:, -inputs["completion_ids"].shape[1] :]


def attached(plugin: Any, config: Any, rows: list[dict[str, Any]], *, rewards: Any = None, **trainer: Any) -> Any:
    """The plugin with stand-ins around it, started."""
    import torch
    from datasets import Dataset

    given = {
        "accelerator": Alone(),
        "model": torch.nn.Linear(1, 1).train(),
        "processing_class": helpers.byte_tokenizer(),
        "temperature": 1.0,
        "state": SimpleNamespace(global_step=0),
        "train_dataset": Dataset.from_list(rows),
        "reward_funcs": [SimpleNamespace(composite=rewards)],
        "reward_weights": torch.ones(1),
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
    }
    plugin.trainer = SimpleNamespace(**{**given, **trainer})
    plugin.config, plugin.backend = config, Arithmetic()
    plugin.start()
    return plugin


def batch(texts: list[str], prompts: list[str] | None = None) -> dict[str, Any]:
    """What `rollout` gives for these completions, by the byte tokenizer."""
    import torch

    tokenizer = helpers.byte_tokenizer()
    out: dict[str, Any] = {}
    for name, side, parts in (("prompt", "left", prompts or ["Q:"] * len(texts)), ("completion", "right", texts)):
        ids = [tokenizer.encode(part) for part in parts]
        width = max(map(len, ids))
        fill = [[0] * (width - len(row)) for row in ids]
        rows = [f + r if side == "left" else r + f for r, f in zip(ids, fill, strict=True)]
        mask = [[0] * len(f) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(f)
                for r, f in zip(ids, fill, strict=True)]  # fmt: skip
        out[f"{name}_ids"], out[f"{name}_mask"] = torch.tensor(rows), torch.tensor(mask)
    return out


def _weights(config: Any) -> Any:
    plugin = attached(config.algo.plugin(config), config, [{"prompt": "Q:"}])
    weights = plugin.token_weights(batch([REASONING, "no mark", REASONING.replace("51", "52 is 7")]))
    return None if weights is None else [[round(w, 6) for w in row] for row in weights.tolist()]


def _beliefs(config: Any) -> Any:
    """Draws, advantages and the tracker over four visits, the policy moving in between."""
    import torch

    rows = [{"prompt": f"Say {i}", "other": f"other {i}", "guess": i / 8} for i in range(8)]
    unit = SimpleNamespace(name="r", weight=1.0, bounds=(0.0, 1.0))
    plugin = attached(
        config.algo.plugin(config), config, rows, rewards=SimpleNamespace(components=[unit], bounds=unit.bounds)
    )
    seen: list[Any] = []
    for visit in range(4):
        plugin.trainer.state.global_step = visit * 2
        plugin.backend.shift = 0.005 * visit
        plugin.rollout(lambda given: {"rows": seen.append([r["prompt"] for r in given])}, rows[:4])
        out = batch(["a" * (i + 1) for i in range(4)], [r["prompt"] for r in plugin.rows])
        seen.append(plugin.advantages(torch.tensor([[0.0], [1.0], [0.25], [1.0]]), out).tolist())
    return [seen, [(b.a, b.b) for b in plugin.tracker.beliefs.values()]]


def _divergence(config: Any) -> Any:
    """The loss that is added for four tokens, and the strength of the KL term."""
    import torch

    plugin = attached(config.algo.plugin(config), config, [{"prompt": "Q:"}])
    logps, ref = torch.tensor([[-0.1, -1.0, -3.0, -0.5]]), torch.tensor([[-0.3, -0.2, -3.1, -6.0]])
    inputs = {"ref_per_token_logps": ref, "completion_mask": torch.ones_like(ref)}
    return [plugin.token_loss(logps, inputs).tolist(), plugin.loss_beta]


def _search(config: Any) -> Any:
    """The members of a search, their configuration and how the search steps; not the training at its end."""
    from pathlib import Path

    from aligntune.core.config.base import to_plain
    from aligntune.core.rl.meta_es import Search

    search = Search(config, Path("run"))
    turns = range(search.params.iterations)
    members = [vars(m) for i in turns for m in search.members(i)]
    first = to_plain(search.member_config(search.members(0)[0], None))
    return [members, first, [search.rate(i) for i in turns], search.params.workers, search.params.mirror_path]


def _pairs(config: Any) -> Any:
    """The loss of two pairs, one of which has no order."""
    import torch

    plugin = attached(config.algo.plugin(config), config, [{"prompt": "Q:"}])
    plugin.trainer.accelerator.gather = lambda values: values
    sign = torch.tensor([-1.0, 1.0, 0.0, 0.0])
    inputs = {
        "ref_per_token_logps": torch.zeros(4, 2),
        "completion_mask": torch.ones(4, 2),
        "pair_sign": sign,
        "pair_weight": sign.abs(),
    }
    return float(plugin.batch_loss(torch.tensor([[-1.0, -2.0], [-0.5, -1.2], [-1.0, -1.0], [0.0, -1.0]]), inputs))


def _rounds(config: Any) -> Any:
    """The rounds, and how each samples."""
    from aligntune.core.rl.spin import plan, sampling

    return [[vars(part), sampling(config, part.seed)] for part in plan(config)]


def _distillation(config: Any) -> Any:
    """The divergence of a token, how many of 50 batches the student answers, and where answers come from."""
    import random

    import torch

    from aligntune.core.rl.distill import answer_room, distilling, divergence
    from aligntune.eval.generation import sampling_options

    algo = config.algo
    trainer: Any = distilling(object)()
    trainer.attach(algo, config, "teacher")
    trainer.model, trainer.accelerator = "student", SimpleNamespace(unwrap_model=lambda model: model)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._sampled = lambda batch, model: model
    state = random.getstate()
    random.seed(0)
    givers = [trainer._answered("data") for _ in range(50)]
    random.setstate(state)
    token = divergence(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 0.0, 0.0]]), algo.beta, algo.temperature)
    teacher = vars(algo.teacher_config(config))
    return [token.tolist(), givers, teacher, sampling_options(config.generation), answer_room(config, 40)]


OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "counterfactual_grpo": _weights,
    "gbmpo": _divergence,
    "gkd": _distillation,
    "meta_es": _search,
    "neural_mirror": _divergence,
    "online_dpo": _pairs,
    "pace": _beliefs,
    "spin": _rounds,
}
