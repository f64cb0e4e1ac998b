"""The outer loop of `meta_es`: train the members in processes of their own, and then the policy with the best map.

    out/population.jsonl             one row per finished member
    out/meta_es/settings.json        what the search was begun with
    out/meta_es/i003-m07.safetensors the map of member 7 of iteration 3
    out/meta_es/i003-m07.json        its result, written whole or not at all
    out/meta_es/i003-m07.log         what it printed, while it trains or where it failed
    out/meta_es/best.safetensors     the map of the fittest member

Nothing else is remembered: the noise follows from the seed and the maps from the results, so a search that was stopped
is repeated from its beginning with every finished member read instead of trained.

The mathematics is in `aligntune.algorithms.meta_es`. This does not spread members over machines.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.meta_es import BEST, FOLDER, MetaES, draw_noise, update
from aligntune.algorithms.mirror_map import SIZE, MirrorMap
from aligntune.core.callbacks import Progress
from aligntune.core.config.base import walk
from aligntune.core.config.io import build_config, effective
from aligntune.core.process import ProcessTrainer
from aligntune.core.saving import Checkpoint
from aligntune.core.state import TrainResult
from aligntune.errors import AlignTuneError, ConfigurationError, TrainingError
from aligntune.utils.files import rewrite_lines, write_atomic, write_json
from aligntune.utils.logging import get_logger
from aligntune.utils.signals import terminable

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

log = get_logger(__name__)
TABLE = "population.jsonl"
SETTINGS = "settings.json"
FITNESS = "eval_reward"
SEARCH_ONLY = ("iterations", "population", "steps", "sigma", "sigma_decay", "search_rate", "workers")
"""Parameters that a member, which is a run of neural_mirror, does not have."""
FINAL_ONLY = (
    "train.num_epochs",
    "train.save_steps",
    "train.save_total_limit",
    "train.early_stopping_patience",
    "train.time_limit",
    "train.stop_grace",
    "train.best_metric",
    "train.best_mode",
    "train.keep_best",
    "evaluation.tasks",
    "evaluation.every",
    "evaluation.at_start",
    "health.held_out",
    "logging.samples_at",
    "logging.sample_prompts",
    "logging.run_name",
)
"""Keys that belong to the final training."""


def train(trainer: Trainer, checkpoint: Checkpoint | None) -> TrainResult:
    """Search, then train with the best map: the driver of `meta_es`.

    Raises:
        ConfigurationError: the folder holds a search that was begun with other settings, or several processes run it.
        TrainingError: a member failed.
        KeyboardInterrupt: it was stopped; what is finished stays.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            "meta_es trains its members in processes of their own and cannot be spread over several itself",
            hint="start it without torchrun, and set algo.workers",
        )
    trainer._loaded = None  # the members need the memory; the final training loads the model again
    if trainer._run.resumed and checkpoint is None:
        trainer._run.rewind(0)  # of a final training that left no checkpoint
    search = Search(trainer.config, trainer._run.path)
    best = search.run()
    trainer._tell([f"meta_es: the fittest of {len(search.results)} members is {best.name}, reward {best.fitness:.4f}"])
    trainer._run.update_manifest({"meta_es": {"best": best.name, "fitness": best.fitness}})
    trainer.state.metrics["meta_es/best_fitness"] = best.fitness
    return trainer._fit(checkpoint)


@dataclass(frozen=True)
class Member:
    """One policy of the population: which, and from which seed."""

    iteration: int
    index: int
    seed: int
    sigma: float

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"i{self.iteration:03d}-m{self.index:02d}"


@dataclass(frozen=True)
class Best:
    """The fittest member."""

    name: str
    fitness: float


class Search:
    """The search of one run.

    Args:
        config: the run's configuration, with `meta_es`.
        run: the run's folder.

    Attributes:
        results: rows of the finished members, by name.
        theta: the map's parameters after the iterations that are done.
    """

    def __init__(self, config: Any, run: Path) -> None:
        self.config, self.run_folder, self.folder = config, run, run / FOLDER
        self.params: MetaES = config.algo
        self.results: dict[str, dict[str, Any]] = {}
        self.theta: Any = None
        self._running: set[ProcessTrainer] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self) -> Best:
        """Train every member that has no result yet; the fittest one's map is in `best.safetensors` then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        self._clear_unfinished()
        p, seed = self.params, self.config.train.seed
        start = MirrorMap.load(p.mirror_path) if p.mirror_path else MirrorMap.random(seed)
        self.theta = start.flat()
        progress = Progress("meta_es: search", mode=self.config.logging.display)
        with terminable():
            try:
                for iteration in range(p.iterations):
                    self._iterate(iteration, draw_noise(seed, iteration, p.population // 2, SIZE), progress)
            finally:
                progress.close()
        best = max(self.rows(), key=lambda row: float(row["fitness"]))  # the first of equals
        write_atomic(self.folder / BEST, (self.folder / f"{best['name']}.safetensors").read_bytes())
        return Best(best["name"], best["fitness"])

    def rows(self) -> list[dict[str, Any]]:
        """Results of the finished members, in the order of the search."""
        return sorted(self.results.values(), key=lambda row: (row["iteration"], row["member"]))

    def _iterate(self, iteration: int, noise: Any, progress: Progress) -> None:
        p = self.params
        members = self.members(iteration)
        for member in members:
            sign = 1 - 2 * (member.index % 2)
            shifted = self.theta + sign * member.sigma * noise[member.index // 2]
            MirrorMap.from_flat(shifted).save(self._map(member))
        self._train_all([m for m in members if not self._read(m)], progress)
        fitness = [self.results[m.name]["fitness"] for m in members]
        self.theta = update(self.theta, noise, fitness, sigma=members[0].sigma, rate=self.rate(iteration))
        log.info(
            "meta_es: iteration %d of %d, reward %.4f on average, %.4f at best",
            iteration + 1,
            p.iterations,
            sum(fitness) / len(fitness),
            max(fitness),
        )

    def members(self, iteration: int) -> list[Member]:
        """The population of one iteration, a pair after the other; the two of a pair share a seed."""
        p = self.params
        pairs = p.population // 2
        sigma = p.sigma * p.sigma_decay**iteration
        first = self.config.train.seed + 1 + iteration * pairs
        return [Member(iteration, i, (first + i // 2) % 2**32, sigma) for i in range(p.population)]

    def rate(self, iteration: int) -> float:
        """Step size of an iteration."""
        return self.params.search_rate * self.params.sigma_decay ** (2 * iteration)

    def member_config(self, member: Member, mirror: Path | None) -> Any:
        """The configuration of a member's run: that of the search, with a map, its seed, its length and its folder."""
        plain = effective(self.config)
        plain["algo"] = {k: v for k, v in plain["algo"].items() if k not in SEARCH_ONLY}
        plain["algo"] |= {"name": "neural_mirror", "mirror_path": mirror and str(mirror)}
        for key in FINAL_ONLY:
            section, _, name = key.partition(".")
            plain[section].pop(name, None)
        plain["train"] |= {"max_steps": self.params.steps, "seed": member.seed}
        plain["logging"] |= {"samples": 0, "rollouts": False, "report_to": []}
        plain |= {"output_dir": str(self.folder / member.name), "isolation": "auto"}
        return build_config(plain, f"member {member.name}")

    def _map(self, member: Member) -> Path:
        return self.folder / f"{member.name}.safetensors"

    # ---- what was done before -----------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Refuse to mix members that were trained with different settings.

        More iterations, another number of workers and what only the final training reads may change.
        """
        first = self.member_config(self.members(0)[0], None)
        now = {k: v for k, v in walk(first) if not k.startswith(("output_dir", "logging."))}
        now |= {f"algo.{k}": getattr(self.params, k) for k in SEARCH_ONLY if k not in ("iterations", "workers")}
        now["algo.mirror_path"] = self.params.mirror_path
        now = json.loads(json.dumps(now, default=str))
        path = self.folder / SETTINGS
        if not any(self.folder.glob("i*-m*.json")):
            write_json(path, now)
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [k for k in sorted({*now, *before}) if now.get(k) != before.get(k)]
        if changed:
            told = ", ".join(f"{k} (was {before.get(k)}, is {now.get(k)})" for k in changed[:4])
            raise ConfigurationError(
                f"the search in {self.folder} was begun with other settings: {told}",
                hint="set them back, or set output_dir to a new folder",
            )

    def _clear_unfinished(self) -> None:
        for left in self.folder.glob("i*-m*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif left.suffix == ".log":
                left.unlink()

    def _read(self, member: Member) -> bool:
        """Take the result of a member that has finished; False if it has not."""
        path = self.folder / f"{member.name}.json"
        if not path.is_file():
            return False
        self.results[member.name] = json.loads(path.read_text(encoding="utf-8"))
        return True

    # ---- training ---------------------------------------------------------------------------------------------------

    def _train_all(self, todo: list[Member], progress: Progress) -> None:
        """Train members, `workers` at a time; whatever ends this ends their processes."""
        total = self.params.iterations * self.params.population
        with ThreadPoolExecutor(self.params.workers, thread_name_prefix="member") as pool:
            waiting: set[Future[dict[str, Any]]] = {pool.submit(self._train, member) for member in todo}
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in done:
                        row = future.result()
                        self.results[row["name"]] = row
                        rewrite_lines(self.run_folder / TABLE, self.rows())
                        progress.show(len(self.results), total, {"fitness": row["fitness"]})
            finally:  # the threads end only when their processes do
                if waiting:
                    self._stop(waiting)
        if not todo:
            rewrite_lines(self.run_folder / TABLE, self.rows())

    def _stop(self, waiting: set[Future[dict[str, Any]]]) -> None:
        with self._lock:
            self._stopped = True
        for future in waiting:
            future.cancel()
        while not all(future.done() for future in waiting):
            with self._lock:
                for running in self._running:
                    running.kill()
            wait(waiting, timeout=0.2)

    def _train(self, member: Member) -> dict[str, Any]:
        """Train one member in a process of its own, write its result, and leave nothing else of it."""
        printed = self.folder / f"{member.name}.log"
        with self._lock:
            if self._stopped:
                raise TrainingError("the search was stopped", hint="go on with --resume; finished members are kept")
            process = ProcessTrainer(self.member_config(member, self._map(member)), log=printed)
            self._running.add(process)
        try:
            result = process.train()
            process.close()
        except AlignTuneError as error:
            hint = f"{error.hint}; it printed to {printed}" if error.hint else f"it printed to {printed}"
            raise type(error)(f"member {member.name} failed: {error.message}", hint=hint) from error
        finally:
            with self._lock:
                self._running.discard(process)
        row = self._result(member, result)
        write_json(self.folder / f"{member.name}.json", row)
        shutil.rmtree(self.folder / member.name, ignore_errors=True)
        printed.unlink(missing_ok=True)
        return row

    @staticmethod
    def _result(member: Member, result: TrainResult) -> dict[str, Any]:
        fitness = result.metrics.get(FITNESS, math.nan)
        if not math.isfinite(fitness):
            raise TrainingError(
                f"member {member.name} has no fitness: its {FITNESS} is {fitness}",
                hint="the rewards must give every held-out answer a number",
            )
        return {
            "name": member.name,
            "iteration": member.iteration,
            "member": member.index,
            "pair": member.index // 2,
            "sign": 1 - 2 * (member.index % 2),
            "seed": member.seed,
            "sigma": member.sigma,
            "fitness": fitness,
            "train_reward": result.metrics.get("reward"),
            "steps": result.total_steps,
            "seconds": round(result.training_time, 3),
        }
