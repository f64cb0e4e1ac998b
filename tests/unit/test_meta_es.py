"""Meta-ES: its update against a reference of a few lines and on a quadratic, and its outer loop with pretended members."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from aligntune.algorithms.base import get_algorithm
from aligntune.algorithms.meta_es import centred_ranks, draw_noise, update
from aligntune.algorithms.mirror_map import SIZE, MirrorMap
from aligntune.core.config import build_config
from aligntune.core.rl import meta_es
from aligntune.core.rl.meta_es import Search
from aligntune.core.state import TrainResult
from aligntune.errors import ConfigurationError, TrainingError


def config(folder: Path, **changes: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    held = runs.write_rows(folder / "held.jsonl", runs.SFT_ROWS[:3])
    small = {"algo__iterations": 2, "algo__population": 4, "algo__steps": 3, "algo__num_generations": 4}
    given = {"algo__name": "meta_es", **small, "evaluation__dataset": {"name": str(held)}, **changes}
    return build_config(runs.plain("grpo", Path("model"), folder, **given))


# ---- the update ----------------------------------------------------------------------------------------------------


def test_ranks_are_centred_and_ties_share_theirs() -> None:
    assert centred_ranks([3.0, 1.0, 2.0]) == [0.5, -0.5, 0.0]
    assert centred_ranks([0.2, 0.9, 0.2, 0.4]) == pytest.approx([-1 / 3, 0.5, -1 / 3, 1 / 6])
    assert centred_ranks([7.0, 7.0, 7.0, 7.0]) == [0.0] * 4
    generator = torch.Generator().manual_seed(0)
    for size in (2, 5, 10):
        values = torch.randint(0, 6, (size,), generator=generator).tolist()
        assert sum(centred_ranks(values)) == pytest.approx(0)
        assert centred_ranks([math.exp(v) for v in values]) == pytest.approx(centred_ranks(values))


@pytest.mark.parametrize("seed", range(3))
def test_the_update_equals_an_independent_reference(seed: int) -> None:
    """theta + rate / (n sigma) sum over members of utility times the noise that made them, in plain Python."""
    noise = draw_noise(seed, 3, 4, 6)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(6, generator=generator, dtype=torch.float64)
    fitness = torch.randn(8, generator=generator, dtype=torch.float64).tolist()
    order = sorted(range(8), key=lambda i: fitness[i])
    expected = theta.tolist()
    for rank, member in enumerate(order):
        sign = 1 if member % 2 == 0 else -1
        for k in range(6):
            expected[k] += 0.05 / (8 * 0.02) * (rank / 7 - 0.5) * sign * float(noise[member // 2, k])
    found = update(theta, noise, fitness, sigma=0.02, rate=0.05)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.dtype == torch.float64


def test_equally_fit_members_leave_the_parameters_alone() -> None:
    theta = torch.ones(5, dtype=torch.float64)
    assert torch.equal(update(theta, draw_noise(0, 0, 3, 5), [1.0] * 6, sigma=0.1, rate=1.0), theta)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_top_of_a_quadratic(seed: int) -> None:
    target = torch.linspace(-1, 1, 10, dtype=torch.float64)
    theta, sigma = torch.zeros(10, dtype=torch.float64), 0.1
    start = float((theta - target).norm())
    for iteration in range(300):
        noise = draw_noise(seed, iteration, 5, 10)
        members = [theta + sign * sigma * e for e in noise for sign in (1, -1)]
        theta = update(theta, noise, [-float((m - target).norm()) for m in members], sigma=sigma, rate=5 * sigma**2)
        sigma *= 0.99
    assert float((theta - target).norm()) < 0.05 * start


def test_noise_follows_from_seed_and_iteration() -> None:
    assert torch.equal(draw_noise(1, 2, 3, 4), draw_noise(1, 2, 3, 4))
    assert not torch.equal(draw_noise(1, 2, 3, 4), draw_noise(1, 3, 3, 4))
    assert not torch.equal(draw_noise(1, 2, 3, 4), draw_noise(2, 2, 3, 4))
    many = draw_noise(0, 0, 50, 400)
    assert float(many.mean()) == pytest.approx(0, abs=0.02)
    assert float(many.std()) == pytest.approx(1, abs=0.02)


# ---- the population ---------------------------------------------------------------------------------------------------


def test_members_are_antithetic_pairs_with_a_seed_and_a_map_each(tmp_path: Path) -> None:
    c = config(tmp_path, algo__divergence_weight=0.5, train__warmup_steps=1, evaluation__every=1, train__save_steps=2)
    search = Search(c, tmp_path / "out")
    members = search.members(1)
    assert [m.name for m in members] == ["i001-m00", "i001-m01", "i001-m02", "i001-m03"]
    assert [m.seed for m in members] == [6, 6, 7, 7]  # the run's seed is 3; two pairs came before
    assert {m.sigma for m in members} == {0.01 * 0.99}
    path = MirrorMap.random(0).save(tmp_path / "map.safetensors")
    made = search.member_config(members[2], path)
    assert made.algo.key == "neural_mirror"
    assert made.algo.divergence_weight == 0.5
    assert made.algo.mirror_path == str(path)
    assert (made.train.max_steps, made.train.seed, made.train.warmup_steps) == (3, 7, 1)
    assert (made.train.save_steps, made.evaluation.every, made.logging.rollouts) == (None, None, False)
    assert made.output_dir.endswith("meta_es/i001-m02")
    assert made.train.learning_rate == c.train.learning_rate


class Pretended:
    """Stands for `ProcessTrainer`: the fitness is high where the map's first parameter is."""

    trained: list[str] = []
    fail: str = ""
    slow: str = ""
    alive = 0
    most = 0
    lock = threading.Lock()

    def __init__(self, config: Any, *, log: Path | None = None) -> None:
        self.config, self.name, self.log = config, Path(config.output_dir).name, log
        self.killed = threading.Event()

    def train(self) -> TrainResult:
        cls = type(self)
        with cls.lock:
            cls.alive += 1
            cls.most = max(cls.most, cls.alive)
        try:
            Path(self.config.output_dir).mkdir(parents=True)
            self.log.write_text("printed")  # type: ignore[union-attr]
            if self.killed.wait(30 if self.name == cls.slow else 0.05):
                raise TrainingError("killed")
            if self.name == cls.fail:
                raise TrainingError("it broke", hint="mend it")
            cls.trained.append(self.name)
            fitness = float(MirrorMap.load(self.config.algo.mirror_path).flat()[0])
            return TrainResult(0.5, 3, 0.1, "x", 0, {"eval_reward": fitness, "reward": 0.25})
        finally:
            with cls.lock:
                cls.alive -= 1

    def close(self) -> None:
        pass

    def kill(self) -> None:
        self.killed.set()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[Pretended]:
    made = type("Made", (Pretended,), {"trained": [], "lock": threading.Lock()})
    monkeypatch.setattr(meta_es, "ProcessTrainer", made)
    return made


def table(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "population.jsonl").read_text().splitlines()]


def start_of(c: Any) -> Any:
    return MirrorMap.random(c.train.seed).flat()


def test_the_search_trains_all_members_and_keeps_the_best_map(tmp_path: Path, pretended: type[Pretended]) -> None:
    c, out = config(tmp_path), tmp_path / "out"
    search = Search(c, out)
    best = search.run()
    assert pretended.trained == [f"i{i:03d}-m{m:02d}" for i in range(2) for m in range(4)]
    rows = table(out)
    assert [r["name"] for r in rows] == pretended.trained
    assert [r["sign"] for r in rows] == [1, -1] * 4
    assert [r["pair"] for r in rows] == [0, 0, 1, 1] * 2
    assert {(r["steps"], r["train_reward"]) for r in rows} == {(3, 0.25)}
    assert best.fitness == max(r["fitness"] for r in rows)
    kept = MirrorMap.load(out / "meta_es" / "best.safetensors").flat()
    assert float(kept[0]) == best.fitness
    # the arithmetic of the two iterations, once more
    theta = start_of(c)
    for iteration in range(2):
        noise, sigma = draw_noise(3, iteration, 2, SIZE), 0.01 * 0.99**iteration
        shifted = [theta + sign * sigma * e for e in noise for sign in (1, -1)]
        assert [r["fitness"] for r in rows[4 * iteration :][:4]] == pytest.approx([float(s[0]) for s in shifted])
        theta = update(theta, noise, [float(s[0]) for s in shifted], sigma=sigma, rate=1e-3 * 0.99 ** (2 * iteration))
    assert torch.allclose(search.theta, theta)
    assert not [p for p in (out / "meta_es").iterdir() if p.is_dir() or p.suffix == ".log"]


def test_a_search_starts_from_a_given_map(tmp_path: Path, pretended: type[Pretended]) -> None:
    path = MirrorMap.random(77).save(tmp_path / "given.safetensors")
    c = config(tmp_path, algo__mirror_path=str(path), algo__iterations=1)
    Search(c, tmp_path / "out").run()
    maps = [MirrorMap.load(tmp_path / "out" / "meta_es" / f"i000-m0{m}.safetensors").flat() for m in range(4)]
    for pair in (0, 1):
        assert torch.allclose((maps[2 * pair] + maps[2 * pair + 1]) / 2, MirrorMap.random(77).flat())


def test_a_failed_member_stops_the_search_which_goes_on_where_it_was(
    tmp_path: Path, pretended: type[Pretended]
) -> None:
    Search(config(tmp_path / "whole"), tmp_path / "whole" / "out").run()
    expected = table(tmp_path / "whole" / "out")
    pretended.trained.clear()
    c, out = config(tmp_path), tmp_path / "out"
    pretended.fail = "i001-m01"
    with pytest.raises(TrainingError, match="member i001-m01 failed: it broke") as caught:
        Search(c, out).run()
    assert "mend it; it printed to" in caught.value.hint
    assert (out / "meta_es" / "i001-m01.log").read_text() == "printed"
    done = list(pretended.trained)
    assert len(done) >= 5
    assert (c.algo.progress(c) or "").startswith(f"{len(done)} of 8 members")
    pretended.fail = ""
    Search(c, out).run()
    assert sorted(pretended.trained) == [r["name"] for r in expected]  # each once
    assert table(out) == expected


def test_members_train_side_by_side_up_to_workers(tmp_path: Path, pretended: type[Pretended]) -> None:
    Search(config(tmp_path / "one"), tmp_path / "one" / "out").run()
    assert pretended.most == 1
    Search(config(tmp_path / "three", algo__workers=3), tmp_path / "three" / "out").run()
    assert pretended.most == 3
    assert table(tmp_path / "one" / "out") == table(tmp_path / "three" / "out")


def test_an_interrupt_stops_the_members_and_keeps_what_is_done(
    tmp_path: Path, pretended: type[Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    c, out = config(tmp_path, algo__workers=2), tmp_path / "out"
    pretended.slow = "i000-m01"
    real, polls = meta_es.wait, [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        polls[0] += 1
        if polls[0] == 8:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(meta_es, "wait", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Search(c, out).run()
    assert time.monotonic() - began < 20  # the slow member would take 30 s
    assert pretended.alive == 0
    assert "i000-m01" not in pretended.trained
    assert "i000-m00" in pretended.trained
    pretended.slow = ""
    monkeypatch.setattr(meta_es, "wait", real)
    Search(c, out).run()
    assert sorted(pretended.trained) == [f"i{i:03d}-m{m:02d}" for i in range(2) for m in range(4)]


def test_a_search_with_other_settings_is_refused(tmp_path: Path, pretended: type[Pretended]) -> None:
    out = tmp_path / "out"
    Search(config(tmp_path), out).run()
    for key, value in (("algo__sigma", 0.02), ("train__learning_rate", 0.5), ("algo__population", 2)):
        with pytest.raises(ConfigurationError, match=f"begun with other settings: {key.replace('__', '.')}"):
            Search(config(tmp_path, **{key: value}), out).run()
    more = Search(config(tmp_path, algo__iterations=3, algo__workers=2, train__max_steps=9), out)
    more.run()
    assert len(pretended.trained) == len(more.results) == 12


def test_a_member_without_fitness_is_an_error(
    tmp_path: Path, pretended: type[Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretended, "train", lambda self: TrainResult(0.5, 3, 0.1, "x", 0, {"eval_reward": math.nan}))
    with pytest.raises(TrainingError, match="member i000-m00 has no fitness"):
        Search(config(tmp_path), tmp_path / "out").run()


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="in processes of their own") as caught:
        meta_es.train(None, None)  # type: ignore[arg-type]
    assert "without torchrun" in caught.value.hint


# ---- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation__dataset": None}, "evaluation.dataset: is missing: the fitness of a member is its reward there"),
        ({"algo__population": 5}, "multiple of 2"),
        ({"algo__population": 0}, "greater than or equal to 2"),
        ({"algo__sigma": 0.0}, "greater than 0"),
        ({"algo__sigma_decay": 1.5}, "less than or equal to 1"),
        ({"algo__mirror_path": "/nowhere"}, "there is no file /nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(tmp_path, **changes)
    assert words in f"{caught.value.message}; {caught.value.hint}"


def test_the_defaults_are_the_paper_s(tmp_path: Path) -> None:
    defaults = get_algorithm("metaes")()
    assert get_algorithm("metaes") is get_algorithm("meta_es")
    named = {k: getattr(defaults, k) for k in ("iterations", "population", "steps", "sigma", "sigma_decay")}
    assert named == {"iterations": 15, "population": 10, "steps": 100, "sigma": 0.01, "sigma_decay": 0.99}
    c = config(tmp_path)
    assert c.algo.plugin(c).mirror_path == str(tmp_path / "out" / "meta_es" / "best.safetensors")
