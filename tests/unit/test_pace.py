"""PACE: the tracker, the curriculum, advantages, the checkpoint, and several processes."""

from __future__ import annotations

import json
import math
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import plugs
import runs
from aligntune.algorithms.pace import draw, offline_priors, reward_range
from aligntune.algorithms.tracker import Tracker, canonical, curriculum_weight, drift, normalised, prompt_key
from aligntune.core.config import build_config
from aligntune.core.config.io import notices
from aligntune.errors import ConfigurationError, TrainingError, ValidationError
from aligntune.rewards.composition import Composition, Rules


def tracker(**changes: Any) -> Tracker:
    return Tracker(**{"rho_min": 0.875, "rho_max": 0.96, "d_half": 0.06, **changes})


# ---- the tracker --------------------------------------------------------------------------------------------------


def test_the_example_by_hand() -> None:
    t, key = tracker(), b"k"
    assert (t.strength, t.value(key)) == (8.0, 0.5)
    t.update(key, 1.0, None, [5], [-0.5])  # first visit: 0.96
    assert (t.beliefs[key].a, t.beliefs[key].b) == pytest.approx((4.84, 3.84))
    assert t.value(key) == pytest.approx(4.84 / 8.68)
    t.update(key, 0.25, 0.06, [6], [-0.7])  # 2^-1 is below 0.875
    assert (t.beliefs[key].a, t.beliefs[key].b) == pytest.approx((0.875 * 4.84 + 0.25, 0.875 * 3.84 + 0.75))
    t.update(key, 0.0, 0.006, [], [])  # 2^-0.1 = 0.93303
    assert t.beliefs[key].a == pytest.approx(0.9330329915 * (0.875 * 4.84 + 0.25))
    assert t.rho(0.0) == 0.96
    assert t.rho(math.inf) == 0.875
    assert tracker(priors={key: 0.75}).value(key) == 0.75
    primed = tracker(priors={key: 0.75})
    primed.update(key, 1.0, None, [], [])
    assert (primed.beliefs[key].a, primed.beliefs[key].b) == pytest.approx((0.96 * 6 + 1, 0.96 * 2))
    with pytest.raises(ValueError, match=r"1.5 is outside \[0, 1\]"):
        t.update(key, 1.5, None, [], [])


def test_the_tracker_equals_the_formula() -> None:
    """Against tensors in float64: a and b as vectors over prompts, D from the log-probabilities."""
    import torch

    g = torch.Generator().manual_seed(0)
    n, t = 5, tracker(d_half=0.1, rho_min=0.8)
    a, b = torch.full((n,), 2.5, dtype=torch.float64), torch.full((n,), 2.5, dtype=torch.float64)
    then = torch.rand(n, 7, generator=g, dtype=torch.float64)
    for visit in range(20):
        rewards = torch.rand(n, generator=g, dtype=torch.float64)
        now = then + 0.1 * torch.randn(n, 7, generator=g, dtype=torch.float64)
        rho = (2 ** (-(now - then).abs().mean(1) / 0.1)).clamp(0.8, 0.96)
        rho = torch.full_like(rho, 0.96) if visit == 0 else rho
        a, b = rho * a + rewards, rho * b + 1 - rewards
        for i in range(n):
            moved = None if visit == 0 else drift(now[i].tolist(), then[i].tolist())
            t.update(bytes([i]), float(rewards[i]), moved, [1], [0.0])
        assert [t.value(bytes([i])) for i in range(n)] == pytest.approx((a / (a + b)).tolist(), rel=1e-12)
        then = now


def test_the_tracker_stays_a_probability_and_finds_a_steady_reward() -> None:
    rng = random.Random(3)
    for _ in range(50):
        t, wanted = tracker(), rng.random()
        for _ in range(300):
            t.update(b"k", wanted, rng.choice([None, rng.uniform(0, 0.2)]), [], [])
            assert 0 < t.value(b"k") < 1
            assert 1 <= t.beliefs[b"k"].a + t.beliefs[b"k"].b <= 25 + 1e-9  # 1 / (1 - 0.96)
        assert t.value(b"k") == pytest.approx(wanted, abs=1e-6)


def test_keys_are_stable() -> None:
    assert prompt_key("Say 1").hex() == "abf4bc70c7a852426c51c08d33fb0f573aa9748ab7a0b4aa35bf5524a884368a"
    user = [{"role": "user", "content": "Say 1"}]
    assert prompt_key(user) == prompt_key("Say 1")
    both = [{"content": "Be brief.", "role": "system"}, *user]
    assert canonical(both) == '[{"content":"Be brief.","role":"system"},{"content":"Say 1","role":"user"}]'
    assert prompt_key(both) == prompt_key([dict(reversed(m.items())) for m in both]) != prompt_key(user)
    assert prompt_key("\ud800") != prompt_key("x")  # half a character is still a key


def test_normalised_advantages() -> None:
    import torch

    values = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = (values - values.mean()) / (values.std() + 1e-4)
    assert normalised(values.tolist()) == pytest.approx(expected.tolist(), rel=1e-12)
    assert normalised([1.0, math.nan, 3.0]) == pytest.approx([-(0.5**0.5), 0, 0.5**0.5], rel=1e-3)
    assert normalised([0.3, 0.3]) == [0.0, 0.0]
    assert normalised([0.3]) == normalised([math.nan]) == [0.0]


# ---- the curriculum -----------------------------------------------------------------------------------------------


def test_weights_are_largest_at_even_odds() -> None:
    assert curriculum_weight(0.5, 0.05) == 0.55
    assert curriculum_weight(1.0, 0.05) == curriculum_weight(0.0, 0.05) == 0.05
    assert curriculum_weight(0.2, 0.05) == pytest.approx(0.4 + 0.05)


def test_draws_follow_the_weights() -> None:
    weights = [0.55, 0.05, 0.2, 0.2]
    first = [draw(weights, 1, f"7:{i}")[0] for i in range(4000)]
    for i, weight in enumerate(weights):
        assert first.count(i) / 4000 == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / 4000))


def test_draws_repeat_nothing_until_all_are_drawn() -> None:
    weights = [1.0 + i for i in range(10)]
    assert sorted(draw(weights, 10, "a")) == list(range(10))
    assert len(set(draw(weights, 6, "a"))) == 6
    many = draw(weights, 24, "a")
    assert sorted(many[:10]) == sorted(many[10:20]) == list(range(10))
    assert many == draw(weights, 24, "a") != draw(weights, 24, "b")


# ---- rewards and estimates ----------------------------------------------------------------------------------------


def composite(*parts: tuple[float, float, float]) -> Any:
    components = [
        SimpleNamespace(name=f"r{i}", weight=w, bounds=(a, b), threshold=None) for i, (w, a, b) in enumerate(parts)
    ]
    return SimpleNamespace(components=components, bounds=Composition(components, Rules()).bounds)


def test_the_range_of_several_rewards() -> None:
    assert reward_range(composite((1, 0, 1), (0.5, -1, 1))) == (-0.5, 1.5)
    assert reward_range(composite((-2, 0, 1), (0, -math.inf, math.inf))) == (-2, 0)
    with pytest.raises(ConfigurationError, match="reward 'r1' declares no finite range") as caught:
        reward_range(composite((1, 0, 1), (1, 0, math.inf)))
    assert "range=(low, high)" in caught.value.hint


def test_estimates_from_a_column_and_from_a_file(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": f"Say {i}", "guess": i / 4, "text": "x"} for i in range(3)])
    assert offline_priors("guess", rows) == {prompt_key(f"Say {i}"): i / 4 for i in range(3)}
    lines = [
        {"prompt": "Say 0", "value": 1},
        {"prompt": [{"role": "user", "content": "Say 0"}], "value": 0.5},
        {"prompt": "another", "value": 0.1},
    ]
    path = runs.write_rows(tmp_path / "guess.jsonl", lines)
    assert offline_priors(str(path), rows) == {prompt_key("Say 0"): 0.75}
    for line, said in (
        ({"prompt": "Say 0", "value": 2}, "line 1: 2 is no number in"),
        ({"prompt": "Say 0", "value": True}, "line 1: True is no number in"),
        ({"prompt": "Say 0"}, "line 1: not an object with `prompt` and `value`"),
    ):
        with pytest.raises(ValidationError, match=said):
            offline_priors(str(runs.write_rows(tmp_path / "bad.jsonl", [line])), rows)
    with pytest.raises(ConfigurationError, match="names none of the 3 prompts"):
        offline_priors(str(runs.write_rows(tmp_path / "bad.jsonl", lines[2:])), rows)
    with pytest.raises(ConfigurationError, match="cannot read"):
        offline_priors(str(tmp_path / "none.jsonl"), rows)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é", "value": 1}'.encode("latin-1"))
    with pytest.raises(ConfigurationError, match="cannot read"):
        offline_priors(str(tmp_path / "latin.jsonl"), rows)
    (tmp_path / "ends.jsonl").write_text('{"prompt": "a\u2028b\x85c", "value": 0.5}\n', encoding="utf-8")
    assert offline_priors(str(tmp_path / "ends.jsonl"), {"prompt": ["a\u2028b\x85c"]}) == {
        prompt_key("a\u2028b\x85c"): 0.5
    }
    with pytest.raises(ConfigurationError, match="neither a column of the data") as caught:
        offline_priors("gues", rows)
    assert "guess" in caught.value.hint
    with pytest.raises(ValidationError, match="row 0: 'x' is no number"):
        offline_priors("text", rows)


# ---- the plugin ---------------------------------------------------------------------------------------------------


def config(folder: Path, **changes: Any) -> Any:
    folder.mkdir(exist_ok=True)
    raw = runs.plain("grpo", Path("model"), folder, **changes)
    algo = {k: v for k, v in raw["algo"].items() if k not in ("name", "num_generations")}
    wanted = changes.get("algo__num_generations")
    raw["algo"] = {"name": "pace", **algo, **({"num_generations": wanted} if wanted else {})}
    return build_config(raw)


ROWS = [{"prompt": f"Say {i}", "guess": 0.5 if i else 0.25} for i in range(12)]


def plugin(folder: Path, bounds: tuple[float, float] = (0.0, 1.0), **changes: Any) -> Any:
    made = config(folder, **changes)
    return plugs.attached(made.algo.plugin(made), made, ROWS, rewards=composite((1.0, *bounds)))


def visit(made: Any, rewards: list[float], texts: list[str] | None = None) -> tuple[list[str], list[float]]:
    """One generation: the prompts that were drawn, and the advantages."""
    import torch

    count = len(rewards)
    made.rollout(lambda rows: {}, ROWS[:count])
    prompts = [row["prompt"] for row in made.rows]
    out = plugs.batch(texts or ["ab" + str(i) for i in range(count)], prompts)
    return prompts, made.advantages(torch.tensor(rewards).unsqueeze(1), out).tolist()


def test_it_sends_the_group_of_one_after_construction(tmp_path: Path) -> None:
    made = config(tmp_path, train__per_device_batch_size=6)
    assert made.algo.arguments(made)["num_generations"] == 6  # what the constructor takes
    assert made.algo.late_arguments(made) == {"num_generations": 1}
    two = config(tmp_path, train__per_device_batch_size=6, algo__num_generations=2)
    assert two.algo.arguments(two)["num_generations"] == 2
    assert made.algo.arguments(made)["beta"] == 0.0
    raw = runs.plain("grpo", Path("model"), tmp_path)
    raw["algo"] = "bolt"
    assert build_config(raw).algo.key == "pace"
    assert notices(raw) == ["'bolt' is now called 'pace'"]


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    for changes, said in (
        ({"train__per_device_batch_size": 1}, "per_device_batch_size: 1 gives generations of one completion"),
        ({"algo__rho_min": 0.97}, "rho_min: 0.97 is above algo.rho_max 0.96"),
        ({"algo__curriculum": False, "algo__refresh": 3}, "refresh: has no effect here: `algo.curriculum` is false"),
        ({"algo__scale_rewards": "group"}, "scale_rewards: .*pace fixes it"),
        ({"algo__rho_max": 1.0}, "rho_max"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            config(tmp_path, **changes)


def test_what_the_data_and_rewards_show_is_refused_early(tmp_path: Path, tiny_model: Path) -> None:
    """Before the run's folder is written."""
    for changes, said in (
        ({}, "reward 'share_of_a' declares no finite range"),
        ({"rewards.0.threshold": 0.1, "train.per_device_batch_size": 25}, "24 training prompts are fewer than the 25"),
        ({"rewards.0.threshold": 0.1, "algo.offline_estimate": "gues"}, "neither a column of the data"),
    ):
        given = {k.replace(".", "__"): v for k, v in changes.items()}
        raw = runs.plain("grpo", tiny_model, tmp_path, **given)
        raw["algo"] = {**raw["algo"], "name": "pace", "num_generations": 1}
        from aligntune.core.backend_factory import create_trainer

        with pytest.raises((ConfigurationError, ValidationError), match=said):
            create_trainer(raw).train()
        assert not (tmp_path / "out").exists()


def test_advantages_come_from_before_the_visit(tmp_path: Path) -> None:
    made = plugin(tmp_path)
    prompts, advantages = visit(made, [0.0, 1.0, 1.0, 0.5])
    assert len(set(prompts)) == 4
    assert advantages == pytest.approx(normalised([-0.5, 0.5, 0.5, 0.0]), abs=1e-6)
    for prompt, reward in zip(prompts, [0.0, 1.0, 1.0, 0.5], strict=True):
        known = made.tracker.beliefs[prompt_key(prompt)]
        assert (known.a, known.b) == pytest.approx((3.84 + reward, 3.84 + 1 - reward))
        assert len(known.ids) == 3 == len(known.logps)
    metrics = made.trainer._metrics["train"]
    assert metrics["pace/value"] == [0.5]
    assert metrics["pace/rho"] == [0.96]
    assert metrics["pace/revisits"] == [0.0]
    assert metrics["pace/visited"] == [pytest.approx(4 / 12)]


def test_the_past_is_forgotten_as_the_policy_moves(tmp_path: Path) -> None:
    """The second visit scores the stored completion again: each log-probability moved by 0.006."""
    made = plugin(tmp_path, algo__curriculum=False)
    visit(made, [1.0, 0.0])
    before = {k: (b.a, b.b, b.logps) for k, b in made.tracker.beliefs.items()}
    made.backend.shift = -0.006
    visit(made, [1.0, 0.0], ["other", "texts"])
    rho = 2 ** (-0.1)
    for prompt, reward in (("Say 0", 1.0), ("Say 1", 0.0)):
        a, b, logps = before[prompt_key(prompt)]
        known = made.tracker.beliefs[prompt_key(prompt)]
        assert (known.a, known.b) == pytest.approx((rho * a + reward, rho * b + 1 - reward), rel=1e-5)
        assert len(known.ids) == 5
        assert len(logps) == 3
    assert made.trainer._metrics["train"]["pace/drift"] == [pytest.approx(0.006, rel=1e-4)]


def test_a_group_counts_once(tmp_path: Path) -> None:
    """Two completions per prompt: one discount, then their mean; the last one is stored."""
    made = plugin(tmp_path, algo__num_generations=2)
    prompts, advantages = visit(made, [0.0, 1.0, 1.0, 1.0], ["a", "bb", "ccc", "dddd"])
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert advantages == pytest.approx(normalised([-0.5, 0.5, 0.5, 0.5]), abs=1e-6)
    first, second = (made.tracker.beliefs[prompt_key(prompts[i])] for i in (0, 2))
    assert (first.a, first.b) == pytest.approx((3.84 + 0.5, 3.84 + 0.5))
    assert (second.a, second.b) == pytest.approx((3.84 + 1, 3.84))
    assert (len(first.ids), len(second.ids)) == (2, 4)


def test_rewards_are_brought_to_the_unit_interval(tmp_path: Path) -> None:
    made = plugin(tmp_path, bounds=(-1.0, 3.0))
    prompts, _ = visit(made, [-1.0, 3.0, 1.0, 0.0])
    earned = [made.tracker.beliefs[prompt_key(p)].a - 3.84 for p in prompts]
    assert earned == pytest.approx([0.0, 1.0, 0.5, 0.25])
    inside = plugin(tmp_path, bounds=(0.0, 0.5))  # lies in [0, 1] already
    prompts, _ = visit(inside, [0.5, 0.0, 0.0, 0.0])
    assert inside.tracker.beliefs[prompt_key(prompts[0])].a == pytest.approx(3.84 + 0.5)


def test_a_completion_without_a_reward_teaches_nothing(tmp_path: Path) -> None:
    made = plugin(tmp_path)
    prompts, advantages = visit(made, [math.nan, 1.0, 0.0])
    assert advantages == pytest.approx([0.0, *normalised([0.5, -0.5])], abs=1e-6)
    assert prompt_key(prompts[0]) not in made.tracker.beliefs


def test_evaluation_touches_nothing(tmp_path: Path) -> None:
    import torch

    made = plugin(tmp_path)
    visit(made, [1.0, 0.0])
    before = plain(made.state())
    made.trainer.model.eval()
    assert made.rollout(lambda rows: {"rows": rows}, ROWS[:3]) == {"rows": ROWS[:3]}
    assert made.advantages(torch.ones(3, 1), plugs.batch(["a"] * 3)) is None
    assert plain(made.state()) == before


def test_weights_are_taken_anew_after_some_steps(tmp_path: Path) -> None:
    made = plugin(tmp_path, algo__refresh=3)
    assert made.snapshot == [0.55] * 12
    for step in range(3):
        made.trainer.state.global_step = step
        visit(made, [1.0, 1.0])
        assert made.snapshot == [0.55] * 12
    made.trainer.state.global_step = 3
    prompts, _ = visit(made, [1.0, 1.0])
    assert made.snapshot_step == 3
    assert made.snapshot != [0.55] * 12
    assert max(made.snapshot) == 0.55
    assert len(prompts) == 2


def test_estimates_start_the_tracker(tmp_path: Path) -> None:
    made = plugin(tmp_path, algo__offline_estimate="guess", algo__curriculum=False)
    _, advantages = visit(made, [1.0, 1.0])
    assert advantages == pytest.approx(normalised([0.75, 0.5]), abs=1e-6)
    known = made.tracker.beliefs[prompt_key("Say 0")]
    assert (known.a, known.b) == pytest.approx((0.96 * 2 + 1, 0.96 * 6))


# ---- the checkpoint -------------------------------------------------------------------------------------------------


def plain(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in state.items()}


def through_files(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """As the layer writes and reads it."""
    import torch
    from safetensors.torch import load_file, save_file

    save_file({k: v for k, v in state.items() if isinstance(v, torch.Tensor)}, folder / "s.safetensors")
    rest = json.dumps({k: v for k, v in state.items() if not isinstance(v, torch.Tensor)})
    return {**json.loads(rest), **load_file(folder / "s.safetensors")}


@pytest.mark.parametrize("visits", [0, 3])
def test_what_is_saved_goes_on_identically(visits: int, tmp_path: Path) -> None:
    rng = random.Random(5)
    rewards = [[rng.random() for _ in range(4)] for _ in range(8)]
    straight, saved, loaded = (plugin(tmp_path, algo__refresh=2) for _ in range(3))

    def go(made: Any, steps: range) -> list[Any]:
        seen = []
        for step in steps:
            made.trainer.state.global_step = step
            made.backend.shift = 0.003 * step
            seen.append(visit(made, rewards[step]))
        return seen

    expected = go(straight, range(8))
    assert go(saved, range(visits)) == expected[:visits]
    loaded.load_state(through_files(saved.state(), tmp_path))
    assert plain(loaded.state()) == plain(saved.state())
    assert loaded.tracker.beliefs == saved.tracker.beliefs
    assert go(loaded, range(visits, 8)) == expected[visits:]
    assert plain(loaded.state()) == plain(straight.state())


def test_another_run_s_tracker_is_refused(tmp_path: Path) -> None:
    made = plugin(tmp_path)
    other = plugin(tmp_path, algo__offline_estimate="guess")
    with pytest.raises(TrainingError, match="belongs to other prompts"):
        other.load_state(made.state())


# ---- several processes ------------------------------------------------------------------------------------------------


class Meeting:
    """Threads that play processes: `gather` waits for all, and joins what they brought in the order of their ranks."""

    def __init__(self, size: int) -> None:
        self.size, self.brought = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=60)
        self.rank = threading.local()

    def gather(self, value: Any) -> list[Any]:
        self.brought[self.rank.value] = value
        self.barrier.wait()
        joined = list(self.brought)
        self.barrier.wait()
        return joined


def test_two_processes_keep_one_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hold the tracker of the run in one process, draw its prompts, and split its advantages."""
    import accelerate.utils
    import torch

    meeting = Meeting(2)
    rewards = [[0.0, 1.0, 0.5, 1.0], [1.0, 1.0, 0.25, 0.0], [0.5, 0.0, 1.0, 1.0]]
    texts = ["a", "bb", "ccc", "dddd"]
    single = plugin(tmp_path, algo__num_generations=2, algo__refresh=1)
    expected = []
    for step, scores in enumerate(rewards):
        single.trainer.state.global_step, single.backend.shift = step, 0.004 * step
        expected.append(visit(single, scores, texts))

    monkeypatch.setattr(
        accelerate.utils, "gather_object", lambda own: [x for part in meeting.gather(own) for x in part]
    )
    seen: dict[int, Any] = {}

    def process(rank: int) -> None:
        meeting.rank.value = rank
        made = plugin(tmp_path, algo__num_generations=2, algo__refresh=1)
        made.trainer.accelerator.num_processes, made.trainer.accelerator.process_index = 2, rank
        made.trainer.accelerator.gather = lambda own: torch.cat(meeting.gather(own))
        mine, advantages = slice(2 * rank, 2 * rank + 2), []
        for step, scores in enumerate(rewards):
            made.trainer.state.global_step, made.backend.shift = step, 0.004 * step
            made.rollout(lambda rows: {}, ROWS[:2])
            prompts = [row["prompt"] for row in made.rows]
            out = plugs.batch(texts[mine], prompts)
            advantages.append((prompts, made.advantages(torch.tensor(scores).unsqueeze(1), out).tolist()))
        seen[rank] = (plain(made.state()), advantages)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0][0] == seen[1][0] == plain(single.state())
    for step, (prompts, advantages) in enumerate(expected):
        assert [p for rank in (0, 1) for p in seen[rank][1][step][0]] == prompts
        assert [a for rank in (0, 1) for a in seen[rank][1][step][1]] == advantages
