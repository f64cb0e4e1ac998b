"""The layer over GRPOTrainer: what a plugin adds reaches the loss, its state the checkpoint, and a deaf base is noticed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import policy
import runs
from aligntune.algorithms.grpo import GRPO
from aligntune.algorithms.plugin import Plugin

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "vespo"]
BETA = 0.7


class OwnKL(Plugin):
    """TRL's KL term once more, as a loss of our own."""

    loss_beta = 0.0

    def token_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        delta = inputs["ref_per_token_logps"] - logps
        return BETA * (delta.exp() - delta - 1)


@pytest.fixture(scope="module")
def trainers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def trainer(loss: str, algorithm: str = "grpo") -> Any:
        if loss not in made:
            own = {} if algorithm != "grpo" else {"algo__loss_type": loss}
            if loss == "luspo":
                own["algo__importance_sampling_level"] = "sequence"
            made[loss] = policy.library_trainer(
                algorithm,
                tiny_model,
                tmp_path_factory.mktemp("layer"),
                algo__beta=BETA,
                train__per_device_batch_size=4,
                train__gradient_accumulation_steps=2,
                **own,
            )
        return made[loss]

    return trainer


def attached(hf: Any, plugin: Plugin) -> Any:
    hf.attach(plugin, hf.plugin.config, hf.plugin.backend)
    return hf


@pytest.mark.parametrize("loss_type", [*LOSS_TYPES, "cispo"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_loss_per_token_is_averaged_as_the_library_does(loss_type: str, mode: str, trainers: Any) -> None:
    hf = trainers(loss_type, "cispo" if loss_type == "cispo" else "grpo")
    inputs = policy.part(policy.rollout(hf), slice(0, 4))  # a micro-batch, half of the step's tokens
    getattr(hf.model, mode)()
    theirs = attached(hf, Plugin()).compute_loss(hf.model, inputs)
    ours = attached(hf, OwnKL()).compute_loss(hf.model, inputs)
    hf.model.train()
    assert hf.beta == BETA  # put back
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert policy.close(policy.gradients(hf, ours), policy.gradients(hf, theirs), 1e-5)


def test_an_unknown_average_is_an_error() -> None:
    import torch

    from aligntune.core.rl.layer import aggregate

    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match="unknown loss_type gmpo"):
        aggregate(ones, ones, "gmpo", max_completion_length=3, accumulation=1.0, window_tokens=6)


def test_a_plugin_that_adds_nothing_changes_nothing(trainers: Any) -> None:
    """Equal to the library's own method, and no second forward pass."""
    hf = attached(trainers("grpo"), Plugin())
    inputs = policy.rollout(hf)
    bare = type(hf).__mro__[1].compute_loss(hf, hf.model, inputs)
    passes: list[Any] = []
    handle = hf.model.register_forward_hook(lambda *a: passes.append(1))
    try:
        layered = hf.compute_loss(hf.model, inputs)
    finally:
        handle.remove()
    assert layered.item() == bare.item()
    assert policy.close(policy.gradients(hf, layered), policy.gradients(hf, bare), 0.0)
    assert len(passes) == 1


def test_a_loss_of_our_own_uses_the_pass_that_is_made_anyway(trainers: Any) -> None:
    hf = attached(trainers("grpo"), OwnKL())
    inputs = policy.rollout(hf)
    passes: list[Any] = []
    handle = hf.model.register_forward_hook(lambda *a: passes.append(1))
    try:
        hf.compute_loss(hf.model, inputs)
    finally:
        handle.remove()
    assert len(passes) == 1


def test_where_the_library_shows_no_log_probabilities_the_backend_gives_them(
    trainers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = attached(trainers("grpo"), OwnKL())
    inputs = policy.rollout(hf)
    expected = hf.compute_loss(hf.model, inputs)
    layer = next(c for c in type(hf).__mro__ if "_with_extra" in vars(c))
    base = layer.__mro__[1]
    real = base._get_per_token_logps_and_entropies
    shown: list[Any] = []

    def hidden(self: Any, *a: Any, **k: Any) -> Any:
        result = real(self, *a, **k)
        shown.append(result[0])
        return result

    monkeypatch.setattr(base, "_get_per_token_logps_and_entropies", hidden)
    asked: list[float] = []
    per_token = hf.plugin.backend.per_token_logps
    monkeypatch.setattr(hf.plugin.backend, "per_token_logps", lambda m, i, t: (asked.append(t), per_token(m, i, t))[1])
    monkeypatch.setattr(layer, "_get_per_token_logps_and_entropies", hidden)  # the layer's own is bypassed
    again = hf.compute_loss(hf.model, inputs)
    assert asked == [1.0]
    assert len(shown) == 1
    assert again.item() == pytest.approx(expected.item(), rel=1e-6)
    assert policy.close(policy.gradients(hf, again), policy.gradients(hf, expected), 1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_backends_log_probabilities_are_the_librarys(temperature: float, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    options = {"train__per_device_batch_size": 8, "generation__temperature": temperature}
    hf = attached(policy.library_trainer("grpo", tiny_model, tmp_path, **options), Plugin())
    inputs = policy.rollout(hf)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    theirs = hf._get_per_token_logps_and_entropies(hf.model, ids, mask, inputs["completion_ids"].shape[1])[0]
    ours = hf.plugin.backend.per_token_logps(hf.model, inputs, temperature)
    kept = inputs["completion_mask"].bool()
    assert torch.allclose(ours[kept].double(), theirs[kept].double(), atol=1e-5)


def test_a_scalar_is_shared_among_the_micro_batches(trainers: Any) -> None:
    class Scalar(Plugin):
        def batch_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
            return 3.0 + 0.0 * logps.sum()

    hf = trainers("grpo")
    inputs = policy.rollout(hf)
    plain = attached(hf, Plugin()).compute_loss(hf.model, inputs)
    assert (attached(hf, Scalar()).compute_loss(hf.model, inputs) - plain).item() == pytest.approx(1.5)
    hf.model.eval()
    plain = attached(hf, Plugin()).compute_loss(hf.model, inputs)
    assert (attached(hf, Scalar()).compute_loss(hf.model, inputs) - plain).item() == pytest.approx(3.0)
    hf.model.train()


def test_token_weights_scale_the_policy_term_alone(trainers: Any) -> None:
    """With advantages of (B, T), the KL term is as before."""
    import torch

    hf = attached(trainers("grpo"), Plugin())
    inputs = policy.rollout(hf, advantages=torch.zeros(8, dtype=torch.float64))
    kl = hf.compute_loss(hf.model, inputs)
    inputs["advantages"] = torch.ones(8, dtype=torch.float64)
    once = hf.compute_loss(hf.model, inputs) - kl
    weights = torch.full(inputs["completion_mask"].shape, 3.0, dtype=torch.float64)
    inputs["advantages"] = inputs["advantages"].unsqueeze(1) * weights
    thrice = hf.compute_loss(hf.model, inputs) - kl
    assert thrice.item() == pytest.approx(3 * once.item(), rel=1e-6)


# ---- a base that ignores the layer ---------------------------------------------------------------------------------


class Deaf:
    """Stands for a rewritten trainer that calls none of the methods that the layer overrides."""

    model = SimpleNamespace(training=True, zero_grad=lambda **k: None)
    accelerator = SimpleNamespace(sync_gradients=True, process_index=0)

    def training_step(self, *args: Any, **kwargs: Any) -> str:
        return "output"


HEARD = {
    "rollout": ("rollout", "advantages", "token_weights"),
    "loss": ("token_loss", "batch_loss"),
}


@pytest.mark.parametrize(("method", "used"), [(m, u) for m, uses in HEARD.items() for u in uses])
def test_a_base_that_never_calls_a_hook_stops_the_run(method: str, used: str) -> None:
    from aligntune.core.rl.layer import layered
    from aligntune.errors import TrainingError

    plugin = type("Wants", (Plugin,), {used: lambda self, *a: None})()
    deaf = layered(Deaf)()
    deaf.attach(plugin, None, None)
    with pytest.raises(TrainingError, match=rf"Deaf never called .*{method}.*, which Wants needs"):
        deaf.training_step()


def test_a_plugin_that_wants_nothing_trains_on_any_base() -> None:
    from aligntune.core.rl.layer import layered

    deaf = layered(Deaf)()
    deaf.attach(Plugin(), None, None)
    assert deaf.training_step() == "output"


def test_gradients_are_dropped_where_the_plugin_says_so() -> None:
    import torch

    from aligntune.core.rl.layer import layered

    extra = torch.nn.Parameter(torch.ones(1))

    class Skips(Plugin):
        def parameters(self) -> list[Any]:
            return [extra]

        def skip_update(self) -> bool:
            return True

    model = torch.nn.Linear(1, 1)
    deaf = layered(type("Base", (Deaf,), {"model": model}))()
    deaf.attach(Skips(), None, None)
    for parameter in (*model.parameters(), extra):
        parameter.grad = torch.ones_like(parameter)
    deaf.training_step()
    assert all(p.grad is None for p in (*model.parameters(), extra))


def test_gradients_of_the_plugins_parameters_are_cleared_once_a_step() -> None:
    """They gather over the micro-batches of a step, as the policy's do, and start anew after it."""
    import torch

    from aligntune.core.rl.layer import layered

    extra = torch.nn.Parameter(torch.zeros(1))

    class Owns(Plugin):
        def parameters(self) -> list[Any]:
            return [extra]

    accelerator = SimpleNamespace(sync_gradients=False, process_index=0)

    def training_step(self: Any) -> None:
        (2 * extra).sum().backward()

    deaf = layered(type("Base", (Deaf,), {"accelerator": accelerator, "training_step": training_step}))()
    deaf.attach(Owns(), None, None)
    seen = []
    for sync in (False, True, False, True):
        accelerator.sync_gradients = sync
        deaf.training_step()
        seen.append(extra.grad.item())
    assert seen == [2.0, 4.0, 2.0, 4.0]


def test_the_order_of_an_epoch_is_its_own_and_the_same_again() -> None:
    from aligntune.core.rl.layer import epoch_sampler

    sampler = epoch_sampler()(data_source=range(6), mini_repeat_count=2, batch_size=2, repeat_count=1, seed=5)
    orders = []
    for epoch in (0, 1, 0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1] == orders[3]
    assert all(sorted(o) == sorted([*range(6), *range(6)]) for o in orders)


# ---- a real run ------------------------------------------------------------------------------------------------------


class Remembers(Plugin):
    """Counts generations, and trains a parameter of its own; both belong in the checkpoint."""

    def start(self) -> None:
        import torch

        self.seen, self.scale = 0, torch.nn.Parameter(torch.tensor([1.0]))

    def parameters(self) -> list[Any]:
        return [self.scale]

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        self.seen += 1
        assert rewards.shape == (4, 1)
        return out["advantages"] * (1 + 0.1 * self.seen) + self.scale.detach()

    def batch_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        self.log("scale", self.scale.item())
        return (self.scale - 3).square().sum() + 0.0 * logps.sum()

    def rollout_columns(self, totals: list[float | None]) -> dict[str, list[Any]]:
        return {"generation": [self.seen] * len(totals)}

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen, "scale": self.scale.data}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        self.scale.data.copy_(state["scale"])


def test_the_plugins_state_makes_a_resume_exact(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.utils.rollouts import read_rollouts

    monkeypatch.setattr(GRPO, "plugin", lambda self, config: Remembers())
    straight = runs.trainer("grpo", tiny_model, tmp_path / "straight", train__max_steps=4, train__save_steps=2)
    straight.train()
    scales = runs.logged(tmp_path / "straight" / "out", "scale")
    assert scales[0] == 1.0 < scales[1] < scales[2] < scales[3]
    assert read_rollouts(tmp_path / "straight" / "out").column("generation").to_pylist() == [i // 4 for i in range(16)]
    folder = tmp_path / "again" / "out"
    again = runs.trainer("grpo", tiny_model, tmp_path / "again", train__max_steps=4, train__save_steps=2)
    again.train(resume=str(tmp_path / "straight" / "out" / "checkpoint-2"))
    assert runs.same_weights(folder, tmp_path / "straight" / "out")
    assert runs.logged(folder, "scale") == scales[2:]
    assert again._hf.plugin.seen == 4


def test_a_checkpoint_without_the_state_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.errors import TrainingError

    runs.trainer("grpo", tiny_model, tmp_path / "plain", train__max_steps=2, train__save_steps=2).train()
    monkeypatch.setattr(GRPO, "plugin", lambda self, config: Remembers())
    again = runs.trainer("grpo", tiny_model, tmp_path / "again", train__max_steps=4)
    with pytest.raises(TrainingError, match="holds no state of Remembers"):
        again.train(resume=str(tmp_path / "plain" / "out" / "checkpoint-2"))


def test_numbers_of_a_plugin_are_logged_apart_for_training_and_evaluation() -> None:
    plugin = Plugin()
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    plugin.trainer = SimpleNamespace(model=SimpleNamespace(training=True), _metrics=metrics)
    plugin.log("x", 1)
    plugin.trainer.model.training = False
    plugin.log("x", 2)
    assert (metrics["train"]["x"], metrics["eval"]["x"]) == ([1.0], [2.0])
    assert not plugin.training


def test_totals_and_rows_of_a_process() -> None:
    import torch

    plugin = Plugin()
    accelerator = SimpleNamespace(num_processes=2, process_index=1)
    plugin.trainer = SimpleNamespace(accelerator=accelerator, reward_weights=torch.tensor([1.0, 2.0]))
    nan = float("nan")
    totals = plugin.total(torch.tensor([[1.0, 1.0], [nan, 1.0], [nan, nan], [0.0, nan]]))
    assert totals.tolist()[:2] == [3.0, 2.0]
    assert totals[2].isnan()
    assert plugin.local(torch.arange(4)).tolist() == [2, 3]


def test_a_run_whose_rewards_never_give_a_score_is_stopped() -> None:
    import torch

    from aligntune.core.rl.layer import PATIENCE, layered
    from aligntune.errors import TrainingError

    none, one = torch.full((4, 2), float("nan")), torch.tensor([[float("nan"), 0.0]] * 4)
    base = type("Base", (Deaf,), {"_calculate_rewards": lambda self, rewards: rewards})

    def run(*generations: Any, start: int = 100) -> None:
        deaf = layered(base)()
        deaf.model, deaf.state = SimpleNamespace(training=True), SimpleNamespace(global_step=start)
        deaf.attach(Plugin(), None, None)
        for rewards in generations:
            deaf._calculate_rewards(rewards)
            deaf.state.global_step += 1

    run(*[none] * (PATIENCE - 1))
    run(*[none] * (PATIENCE - 1), one, *[none] * PATIENCE)
    with pytest.raises(TrainingError, match="none of 80 completions in 20 steps had a score") as caught:
        run(*[none] * PATIENCE)
    assert "on_error" in caught.value.hint
