"""The kinds of stages: what each checks, which commands it runs, and what it makes.

| kind | command | results |
|---|---|---|
| split | `aligntune data split` | train, test, folder |
| train | `aligntune train` | model, folder; rewards where it has some |
| pairs | `aligntune data pairs` | data, folder |
| reward_model | `aligntune rewards train` | model, rewards, folder |
| evaluate | `aligntune eval`, once per model | folder |
| compare | `aligntune compare` | folder |
| report | none: a page over the stages before it | folder |

A kind is one configuration in one folder:

>>> stage = KINDS["split"]({"dataset": "rows.csv", "test": 0.2}, Path("out/01-split"))
>>> stage.check(set())
>>> stage.commands()[0][:3]
('data', 'split', 'rows.csv')

`commands` leaves out what is done already and goes on with what was cut, so that it serves a resumed stage too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from aligntune.compare.plan import Plan, make_plan, written
from aligntune.core.config.base import to_plain
from aligntune.core.config.io import effective, load_config, parse_section
from aligntune.core.config.reading import copy_plain
from aligntune.errors import ConfigurationError
from aligntune.registry import nearest
from aligntune.stages.config import KEYS, CompareConfig, ReportConfig, SeveralModels, SplitConfig
from aligntune.utils.files import write_atomic
from aligntune.utils.run_folder import read_manifest

RECORD = "stage.json"
CONFIG = "stage.yaml"
LOG = "stage.log"
OWN = (RECORD, CONFIG, LOG)
"""Files of a stage's own in its folder, beside those of the command."""
Command = tuple[str, ...]


class StageKind:
    """A stage's configuration in its folder.

    Args:
        config: with all references resolved; results that do not exist yet are the paths that they will have.
        folder: of the stage.
    """

    output: ClassVar[str | None] = "output_dir"
    """The key of the command's configuration that the stage sets."""
    outcome: ClassVar[tuple[str, ...]] = ()
    """Glob patterns of the files that identify what was made."""
    may_change: ClassVar[tuple[str, ...]] = ()
    """Keys that may change while the stage is unfinished without making it begin again."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.config: dict[str, Any] = copy_plain(config)
        self.folder = folder

    def results(self) -> dict[str, Any]:
        """What later stages may name, to its value."""
        return {"folder": str(self.folder)}

    def check(self, future: set[str]) -> None:
        """Check everything that can be known before the stage runs.

        Args:
            future: paths that stages will make.

        Raises:
            AlignTuneError: with every fault.
        """
        raise NotImplementedError

    def commands(self) -> list[Command]:
        """Write what the commands read; the arguments of those that are still to be run, in order."""
        raise NotImplementedError

    def numbers(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What a command's JSON says that is worth keeping."""
        return {}

    def finish(self) -> dict[str, Any]:
        """What remains to be done in this process when the commands are done; numbers to keep."""
        return {}

    def judges(self) -> list[Any]:
        """Plain sections of judges that the stage asks."""
        return [self.config["judge"]] if self.config.get("judge") else []

    # ---- shared ----------------------------------------------------------------------------------------------

    def _free(self) -> dict[str, Any]:
        """The configuration without the output, which is the stage's."""
        if self.output in self.config:
            raise ConfigurationError(
                f"{self.output}: is the stage's own folder", hint="remove it; output_dir of the stages file says where"
            )
        return dict(self.config)

    def _write(self, config: Mapping[str, Any], name: str = CONFIG) -> str:
        import yaml

        path = self.folder / name
        text = yaml.safe_dump(to_plain(dict(config)), sort_keys=False, allow_unicode=True)
        write_atomic(path, text.encode())
        return str(path)

    def _resumed(self) -> list[Command] | str | None:
        """For a run with checkpoints: [] where it is done, else the value of --resume, or None to begin (again)."""
        status = (read_manifest(self.folder) or {}).get("status")
        if status == "finished":
            return []
        if any(self.folder.glob("checkpoint-*")):
            return "latest"
        clear(self.folder)
        return None


def clear(folder: Path) -> None:
    """Remove everything in a stage's folder that is not its own record."""
    for path in folder.iterdir():
        if path.name not in OWN:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _names_future(value: Any, future: set[str]) -> bool:
    if isinstance(value, Mapping):
        return any(_names_future(item, future) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_names_future(item, future) for item in value)
    return isinstance(value, str) and any(value == path or value.startswith(f"{path}/") for path in future)


class Split(StageKind):
    """Training and test rows."""

    output = None
    outcome = ("train.jsonl", "test.jsonl")

    def results(self) -> dict[str, Any]:
        """train and test: JSON lines."""
        return {
            "train": str(self.folder / "train.jsonl"),
            "test": str(self.folder / "test.jsonl"),
            **super().results(),
        }

    def _typed(self) -> SplitConfig:
        return parse_section(SplitConfig, self.config, hint=KEYS)

    def check(self, future: set[str]) -> None:
        """Keys, and the column that classes need."""
        config = self._typed()
        if config.by is None and (config.stratify or config.balance):
            key = "stratify" if config.stratify else "balance"
            raise ConfigurationError(f"{key}: needs the column of the classes", hint="add by: COLUMN")
        if config.group is not None and (config.stratify or config.balance):
            raise ConfigurationError("group: rows cannot be held out by group and by class", hint="leave one out")

    def commands(self) -> list[Command]:
        """A split that was cut begins again; it takes seconds."""
        config, given = self._typed(), self.config["dataset"]
        clear(self.folder)
        self._write(self.config)
        source = {"name": given} if isinstance(given, str) else dict(given)
        name = str(source.pop("name"))
        settings = [f"{key}={written(value)}" for key, value in source.items()]
        flags = ["--out", str(self.folder), "--test", f"{config.test:g}", "--seed", str(config.seed), "--json"]
        for flag in ("by", "group"):
            flags += [f"--{flag}", getattr(config, flag)] if getattr(config, flag) is not None else []
        flags += [f"--{key}" for key in ("stratify", "balance") if getattr(config, key)]
        return [("data", "split", name, *settings, *flags)]

    def numbers(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Rows of each part."""
        return {f"{part} rows": about["rows"] for part, about in said.get("parts", {}).items()}


class Train(StageKind):
    """Supervised fine-tuning, preference or policy optimisation."""

    outcome = ("*.safetensors", "config.json", "adapter_config.json", "tokenizer.json")

    def results(self) -> dict[str, Any]:
        """model, and the rewards of a run that has some."""
        rewards = {"rewards": self.config["rewards"]} if self.config.get("rewards") else {}
        return {"model": str(self.folder), **rewards, **super().results()}

    def typed(self) -> Any:
        """The resolved configuration."""
        return load_config({**self._free(), "output_dir": str(self.folder)})

    def check(self, future: set[str]) -> None:
        """What `aligntune train --dry-run` checks."""
        from aligntune.core.backend import BACKENDS, get_backend
        from aligntune.core.backend_choice import settle_backend
        from aligntune.core.checks import check_packages
        from aligntune.data.presets import get_preset

        config = self.typed()
        check_packages(config)
        settled, _ = settle_backend(config)
        if BACKENDS[settled.backend].available:
            get_backend(settled.backend).check(settled)
        for source in (*config.sources, config.evaluation.dataset):
            if source is not None and source.preset is not None:
                get_preset(source.preset)
        if config.algorithm.uses_rewards and not _names_future(self.config.get("rewards"), future):
            from aligntune.rewards import build_rewards

            build_rewards(config.rewards, composition=config.composition, judge=config.judge).check_judge(config.judge)

    def commands(self) -> list[Command]:
        """From the newest checkpoint where there is one."""
        resume = self._resumed()
        if isinstance(resume, list):
            return resume
        file = self._write(effective(self.typed()))
        return [("train", file, "--json", *([f"--resume={resume}"] if resume else []))]

    def numbers(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Steps and loss."""
        return {name: said[name] for name in ("total_steps", "final_loss", "training_time") if name in said}


class RewardModel(Train):
    """A reward model."""

    def results(self) -> dict[str, Any]:
        """model, and rewards: the list that makes it the reward of a run."""
        rewards = [{"type": "reward_model", "params": {"path": str(self.folder)}}]
        return {"model": str(self.folder), "rewards": rewards, "folder": str(self.folder)}

    def typed(self) -> Any:
        """The resolved configuration."""
        from aligntune.rewards.training.config import load_reward_config

        return load_reward_config({**self._free(), "output_dir": str(self.folder)})

    def check(self, future: set[str]) -> None:
        """What `aligntune rewards train --dry-run` checks."""
        from aligntune.core.checks import check_packages

        config = self.typed()
        check_packages(config)
        if config.rewards and not _names_future(self.config.get("rewards"), future):
            from aligntune.rewards import build_rewards

            build_rewards(config.rewards, composition=config.composition, judge=config.judge)

    def commands(self) -> list[Command]:
        """As of a run."""
        return [("rewards", *command) for command in super().commands()]


class Pairs(StageKind):
    """Preference pairs from a model."""

    output = "output"
    outcome = ("pairs.jsonl",)
    may_change = ("select",)  # the journal keeps answers and scores, which do not depend on it

    @property
    def file(self) -> Path:
        """Where the pairs go."""
        return self.folder / "pairs.jsonl"

    def results(self) -> dict[str, Any]:
        """data: the pairs."""
        return {"data": str(self.file), **super().results()}

    def check(self, future: set[str]) -> None:
        """Keys, and what ranks; a judge that is missing is told with the other ways to rank."""
        from aligntune.data.pairs.config import build_pairs_config

        build_pairs_config({**self._free(), "output": str(self.file)})

    def commands(self) -> list[Command]:
        """From the journal where there is one."""
        journal = self.file.with_name(f".{self.file.name}.journal")
        if self.file.exists() and not journal.exists():
            return []
        self.file.unlink(missing_ok=True)
        file = self._write({**self._free(), "output": str(self.file)})
        return [("data", "pairs", file, "--json", *(["--resume"] if journal.exists() else []))]

    def numbers(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Pairs, prompts, and what ranked."""
        return {name: said[name] for name in ("pairs", "prompts", "ranker") if name in said}


class Evaluate(StageKind):
    """One or several models on the same tasks."""

    outcome = ("items/*.jsonl", "*/items/*.jsonl")
    may_change = ("against", "by", "margin")  # of the tables alone

    def _parts(self) -> tuple[SeveralModels, dict[str, Any]]:
        """What is this kind's own, and the evaluation's configuration."""
        raw = self._free()
        own = {key: raw.pop(key) for key in ("models", "margin", "by", "against") if key in raw}
        several = parse_section(SeveralModels, own, hint=KEYS)
        if several.models and "name_or_path" in (raw.get("model") or {}):
            raise ConfigurationError(
                "model.name_or_path: has no effect beside models", hint="remove it, or name it under models"
            )
        if several.margin is not None and len(several.models) < 2:
            raise ConfigurationError("margin: belongs to a comparison", hint="name two models under models")
        return several, raw

    def configs(self) -> dict[str, dict[str, Any]]:
        """Name of each model to its evaluation, with the output folder."""
        several, raw = self._parts()
        if not several.models:
            path = Path(str((raw.get("model") or {}).get("name_or_path", "model")))
            name = path.name if path.is_absolute() else str(path)  # a hub id keeps its owner
            return {name: {**raw, "output_dir": str(self.folder)}}
        return {
            name: {
                **raw,
                "model": {**(raw.get("model") or {}), "name_or_path": path},
                "output_dir": str(self.folder / f"{i}-{name}"),
            }
            for i, (name, path) in enumerate(several.models.items())
        }

    def check(self, future: set[str]) -> None:
        """Keys, kinds of tasks, the judge."""
        from aligntune.eval.config import build_eval_config
        from aligntune.stages.config import NAME

        several, _ = self._parts()
        for name in several.models:
            if not NAME.fullmatch(name):
                raise ConfigurationError(
                    f"models.{name}: cannot name a folder", hint="a letter, then letters, digits, '_' and '-'"
                )
        tasks: dict[str, Any] = {}
        for config in self.configs().values():
            tasks = {task.name: task for task in build_eval_config(config).tasks}
        for pair in several.against.items():
            for name in pair:
                if name not in tasks:
                    raise ConfigurationError(f"against: there is no task {name}", hint=nearest(name, tasks))
            if len({tasks[name].kind for name in pair}) > 1:
                raise ConfigurationError(
                    f"against: {pair[0]} and {pair[1]} are of different kinds", hint="compare tasks of one kind"
                )

    def commands(self) -> list[Command]:
        """One for each model that is not measured yet."""
        found: list[Command] = []
        for config in self.configs().values():
            folder = Path(config["output_dir"])
            if (read_manifest(folder) or {}).get("status") == "finished":
                continue
            several = folder != self.folder
            file = self._write(config, f"{folder.name}.yaml" if several else CONFIG)
            found.append(("eval", file, "--resume", "--json"))
        return found

    def finish(self) -> dict[str, Any]:
        """The tables over the models."""
        from aligntune.stages.tables import measure

        several, _ = self._parts()
        return measure(self.configs(), self.folder, margin=several.margin, by=several.by, against=several.against)


class Compare(StageKind):
    """Arms over seeds."""

    outcome = ("comparison.json",)

    def _typed(self) -> CompareConfig:
        return parse_section(CompareConfig, self._free(), hint=KEYS)

    def runs(self) -> Plan:
        """The arms and seeds."""
        config = self._typed()
        return make_plan(config.run, axes=config.axes, seeds=config.seeds, output_dir=self.folder)

    def check(self, future: set[str]) -> None:
        """Every arm."""
        self.runs()

    def judges(self) -> list[Any]:
        """That of the run."""
        return [self.config["run"]["judge"]] if self.config["run"].get("judge") else []

    def commands(self) -> list[Command]:
        """Goes on with the runs that are not finished."""
        config = self._typed()
        file = self._write(config.run, "run.yaml")
        axes = [f"{key}={written(values)}" for key, values in config.axes.items()]
        seeds = str(config.seeds) if isinstance(config.seeds, int) else "".join(f"{s}," for s in config.seeds)
        margins: Sequence[str] = ()
        if config.margin is not None:
            stated = config.margin if isinstance(config.margin, dict) else {"": config.margin}
            margins = [part for k, v in stated.items() for part in ("--margin", f"{k}={v:g}" if k else f"{v:g}")]
        resume = ["--resume"] if (self.folder / "plan.json").exists() else []
        flags = ["--seeds", seeds, *margins, "--ratio-margin", f"{config.ratio_margin:g}", *resume, "--json"]
        return [("compare", file, *axes, *flags, "--output-dir", str(self.folder))]


class Report(StageKind):
    """A page over the stages before it."""

    output = None

    def check(self, future: set[str]) -> None:
        """Keys."""
        self.typed()

    def typed(self) -> ReportConfig:
        """What the page says beside the numbers."""
        return parse_section(ReportConfig, self.config, hint=KEYS)

    def commands(self) -> list[Command]:
        """None: `aligntune.stages.execution` draws it."""
        return []


KINDS: dict[str, type[StageKind]] = {
    "split": Split,
    "train": Train,
    "pairs": Pairs,
    "reward_model": RewardModel,
    "evaluate": Evaluate,
    "compare": Compare,
    "report": Report,
}


def said_json(text: str) -> dict[str, Any]:
    """The one JSON document that a command printed; empty where there is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
