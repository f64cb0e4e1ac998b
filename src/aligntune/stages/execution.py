"""Run a plan: skip what is finished, go on with what was cut, refuse what changed, make the rest, and report.

    result = run_stages("assistant.yaml", ["values.data=support.csv"])
    result["sft"].results["model"]

| the stage's record | its identity | what happens |
|---|---|---|
| finished | the same | skipped |
| finished | changed | refused, unless `start` names it or a stage that it depends on |
| unfinished | the same | goes on: from a checkpoint, a journal, the finished models |
| unfinished | changed | set aside under `replaced/`, made from the beginning |
| none | | made |

`start` sets the named stage and every stage that depends on it aside, and makes them again. Nothing is ever deleted or
overwritten. A stage that fails ends the run; later ones are not started. Stages are made one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aligntune import errors
from aligntune.core.live import Mode
from aligntune.core.live_folder import FolderView
from aligntune.errors import AlignTuneError, ConfigurationError, TrainingError
from aligntune.stages.config import REPLACED, StagesConfig
from aligntune.stages.kinds import LOG, RECORD, said_json
from aligntune.stages.plan import Plan, Planned, make_plan
from aligntune.stages.process import Ended, Runner, run_process
from aligntune.stages.record import changes, identity, outcome, read_record
from aligntune.utils.files import disk_errors, write_json
from aligntune.utils.lock import alone
from aligntune.utils.logging import get_logger

log = get_logger(__name__)
RUN = "stages.json"


@dataclass(frozen=True)
class StageOutcome:
    """What came of a stage.

    Attributes:
        name, kind, folder: of the stage.
        status: finished, skipped (it was finished before) or waiting.
        results: what later stages may name.
        numbers: steps, loss, rows, headline values: what the kind keeps.
        seconds: of all its attempts.
        memory: most resident memory of its processes in bytes.
    """

    name: str
    kind: str
    folder: str
    status: str
    results: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    memory: int | None = None


@dataclass(frozen=True)
class StagesResult:
    """All stages; `result["sft"]` is one of them.

    Attributes:
        output_dir: of all stages.
        stages: name to outcome, in order.
        report: the page over all stages.
    """

    output_dir: str
    stages: dict[str, StageOutcome]
    report: str | None = None

    def __getitem__(self, name: str) -> StageOutcome:
        return self.stages[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "output_dir": self.output_dir,
            "stages": [asdict(stage) for stage in self.stages.values()],
            "report": self.report,
        }


def run_stages(
    source: str | Path | Mapping[str, Any] | StagesConfig,
    overrides: Iterable[str] = (),
    *,
    start: str | None = None,
    only: Sequence[str] = (),
    runner: Runner | None = None,
    display: Mode = "auto",
) -> StagesResult:
    """Make every stage that is not finished.

    Args:
        source: a stages file, plain values, or a `StagesConfig`.
        overrides: `key=value`; `stages.NAME.KEY=...` changes a stage, `values.NAME=...` a value.
        start: make this stage again, and every stage that depends on it; what was there is set aside.
        only: make these stages alone; what they need must be finished.
        runner: runs a command, in place of `run_process`.
        display: how a stage that trains is shown, as `logging.display`.

    Raises:
        ConfigurationError: the file is wrong, or a finished stage has changed.
        AlignTuneError: a stage failed; the class is that of the failure, the hint says how to go on.
        KeyboardInterrupt: the run was stopped; the message says how to go on.
    """
    plan = make_plan(source, overrides)
    return Execution(plan, start=start, only=only, runner=runner, display=display).run()


class Execution:
    """One run over a plan.

    Args:
        plan, start, only, runner, display: see `run_stages`.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        start: str | None = None,
        only: Sequence[str] = (),
        runner: Runner | None = None,
        display: Mode = "auto",
    ) -> None:
        if start is not None and only:
            raise ConfigurationError("--from and --only contradict each other", hint="give one of the two")
        self.plan, self.only = plan, [plan[name].name for name in only]
        self.again = plan.dependents(start) if start is not None else set()
        self.runner, self.display = runner, display
        self.outcomes: dict[str, str] = {}

    def run(self) -> StagesResult:
        """See `run_stages`."""
        from aligntune.utils.run_folder import _process

        self._ask_judges(self.check())
        self._refuse_use()
        with alone(self.plan.output_dir):
            self._note("running", process=_process())
            return self._all()

    def _all(self) -> StagesResult:
        """Every stage in turn, and the page over them."""
        found: dict[str, StageOutcome] = {}
        for number, stage in enumerate(self.plan.stages, start=1):
            if self.only and stage.name not in self.only:
                record = read_record(stage.folder) or {}
                finished = record.get("status") == "finished"
                if finished:
                    self.outcomes[stage.name] = record["outcome"]
                found[stage.name] = _told(stage, record, "skipped" if finished else "waiting")
                continue
            count = len(self.plan.stages)
            log.info("%d of %d: %s (%s), words in %s", number, count, stage.name, stage.kind_name, stage.folder / LOG)
            found[stage.name] = self._stage(stage)
        report = self._report(found)
        return StagesResult(str(self.plan.output_dir), found, report)

    # ---- before anything starts ------------------------------------------------------------------------------

    def check(self) -> list[Planned]:
        """The stages that will be made or gone on with.

        Raises:
            ConfigurationError: a finished stage has changed, `only` names a stage whose needs are not finished, or the
                folder of a new stage holds other files.
        """
        outcomes: dict[str, str] = {}
        todo: list[Planned] = []
        for stage in self.plan.stages:
            record = read_record(stage.folder) or {}
            finished = record.get("status") == "finished"
            wanted = not self.only or stage.name in self.only
            if wanted and self.only:
                self._check_needs(stage, outcomes)
            if finished and stage.name not in self.again:
                if wanted:
                    known = all(name in outcomes for name in stage.needs)
                    self._refuse_change(stage, record, identity(stage, outcomes), inputs=known)
                outcomes[stage.name] = record["outcome"]
            elif wanted:
                self._check_folder(stage, record)
                todo.append(stage)
        return todo

    @staticmethod
    def _check_folder(stage: Planned, record: Mapping[str, Any]) -> None:
        """Refuse a folder with files that no stage has made; a stage that begins clears its own."""
        if not record and stage.folder.is_dir() and any(stage.folder.iterdir()):
            raise ConfigurationError(
                f"stage {stage.name}: {stage.folder} is there and holds other files",
                hint="give the stage another name or the file another output_dir",
                context={"stage": stage.name},
            )

    def _check_needs(self, stage: Planned, outcomes: Mapping[str, str]) -> None:
        lacking = [n for n in stage.needs if n not in outcomes and n not in self.only]
        if lacking and stage.kind_name != "report":
            raise ConfigurationError(
                f"--only {stage.name}: it needs {lacking[0]}, which is not finished",
                hint=f"make it first: --only {lacking[0]}, or leave --only out",
            )

    def _refuse_change(
        self, stage: Planned, record: Mapping[str, Any], now: Mapping[str, Any], *, inputs: bool
    ) -> None:
        if stage.kind_name == "report":
            return  # drawn in a second; always drawn again
        changed = changes(record["identity"], now, inputs=inputs)
        if changed:
            told = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
            raise ConfigurationError(
                f"stage {stage.name} is finished, and has changed since: {told}",
                hint=f"make it again with every stage that depends on it (--from {stage.name}; what is there is kept "
                f"under {REPLACED}/), set another output_dir, or put it back",
                context={"stage": stage.name, "changes": changed},
            )

    def _ask_judges(self, todo: Sequence[Planned]) -> None:
        """Ask each endpoint once, so that one that is absent is found before the hours of the stages before it."""
        from aligntune.core.config.io import parse_section
        from aligntune.core.config.sections import JudgeConfig

        for stage in todo:
            for section in stage.kind.judges():
                config = parse_section(JudgeConfig, section, f"stage {stage.name}: judge")
                if config.kind != "openai":
                    continue
                from aligntune.data.pairs.config import JUDGES
                from aligntune.rewards.judges import make_judge

                try:
                    make_judge(config).check()
                except AlignTuneError as e:
                    raise type(e)(
                        f"stage {stage.name}: {e.message}", hint=f"{e.hint}. Otherwise: {JUDGES}", context=e.context
                    ) from e

    def _refuse_use(self) -> None:
        """Refuse a folder that cannot be written to, or in which another process is at work.

        Raises:
            ConfigurationError: it is so.
        """
        from aligntune.utils.run_folder import RunFolder, _alive

        out = self.plan.output_dir
        RunFolder.check(out)
        try:
            before = said_json((out / RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            before = {}
        if before.get("status") == "running" and _alive(before.get("process", {})):
            raise ConfigurationError(
                f"{out} is in use by the running process {before['process']['pid']}", hint="wait for it, or stop it"
            )

    def _note(self, status: str, **entries: Any) -> None:
        write_json(
            self.plan.output_dir / RUN,
            {"status": status, "command": self.plan.command, "stages": self.plan.names, "at": _now(), **entries},
        )

    # ---- one stage -------------------------------------------------------------------------------------------

    def _stage(self, stage: Planned) -> StageOutcome:
        record = read_record(stage.folder) or {}
        now = identity(stage, self.outcomes)
        finished = record.get("status") == "finished" and stage.kind_name != "report"
        if stage.name in self.again and record:
            self._set_aside(stage)
            record, finished = {}, False
        if finished:
            self._refuse_change(stage, record, now, inputs=True)
            self.outcomes[stage.name] = record["outcome"]
            return _told(stage, record, "skipped")
        if record and stage.kind_name != "report" and self._starts_over(stage, record, now):
            self._set_aside(stage)
            record = {}
        return self._make(stage, record, now)

    @staticmethod
    def _starts_over(stage: Planned, record: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        changed = changes(record["identity"], now)
        kept = tuple(f"{key}{end}" for key in stage.kind.may_change for end in (".", ":"))
        if all(change.startswith(kept) for change in changed):
            return False
        log.info("%s has changed since it was begun (%s): it begins again", stage.name, ", ".join(changed[:3]))
        return True

    def _set_aside(self, stage: Planned) -> None:
        """Move the stage's folder to `replaced/<number>/`."""
        root = self.plan.output_dir / REPLACED
        number = 1 + max((int(p.name) for p in root.glob("*") if p.name.isdigit()), default=0)
        newest = root / str(number - 1)
        folder = newest if number > 1 and not (newest / stage.folder.name).exists() else root / str(number)
        with disk_errors(root):
            folder.mkdir(parents=True, exist_ok=True)
            stage.folder.rename(folder / stage.folder.name)

    def _make(self, stage: Planned, before: Mapping[str, Any], now: Mapping[str, Any]) -> StageOutcome:
        with disk_errors(stage.folder):
            stage.folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "name": stage.name,
            "kind": stage.kind_name,
            "status": "running",
            "identity": now,
            "commands": [*before.get("commands", [])],
            "attempts": int(before.get("attempts", 0)) + 1,
            "started_at": before.get("started_at", _now()),
            "seconds": float(before.get("seconds", 0.0)),
            "memory": before.get("memory"),
            "numbers": dict(before.get("numbers", {})),
        }
        write_json(stage.folder / RECORD, record)
        start, earlier = time.monotonic(), record["seconds"]
        try:
            for command in stage.kind.commands():
                record["commands"].append(["aligntune", *command])
                self._command(stage, command, record)
            record["numbers"] |= stage.kind.finish()
        except KeyboardInterrupt:
            self._close(stage, record, "interrupted", earlier + time.monotonic() - start)
            self._note("interrupted")
            raise KeyboardInterrupt(f"stage {stage.name} was stopped; go on with: {self.plan.command}") from None
        except AlignTuneError as e:
            self._close(stage, record, "failed", earlier + time.monotonic() - start, error=e.message)
            self._note("failed", stage=stage.name)
            raise self._advised(stage, e) from e
        except BaseException as e:  # recorded, and raised again
            self._close(stage, record, "failed", earlier + time.monotonic() - start, error=f"{type(e).__name__}: {e}")
            raise
        record["outcome"] = self.outcomes[stage.name] = outcome(stage)
        record["results"] = stage.kind.results()
        self._close(stage, record, "finished", earlier + time.monotonic() - start)
        return _told(stage, record, "finished")

    @staticmethod
    def _close(stage: Planned, record: dict[str, Any], status: str, seconds: float, **entries: Any) -> None:
        from aligntune.utils.manifest import packages

        record |= {
            "status": status,
            "seconds": round(seconds, 3),
            "ended_at": _now(),
            "packages": packages(),
            **entries,
        }
        write_json(stage.folder / RECORD, record)

    def _command(self, stage: Planned, command: Sequence[str], record: dict[str, Any]) -> None:
        """Run one command.

        Raises:
            AlignTuneError: it failed; of the class that its exit code tells.
        """
        printed = stage.folder / LOG
        if self.runner is not None:
            ended = self.runner(command, printed)
        else:
            title = f"stage {stage.name} ({stage.kind_name})"
            with FolderView(stage.folder, title, self.display) as view:
                ended = run_process(command, printed, view.poll)
        record["memory"] = max(ended.memory or 0, record["memory"] or 0) or None
        said = said_json(ended.out)
        if ended.code == 0:
            record["numbers"] |= stage.kind.numbers(said)
            return
        raise _failure(ended, said, printed)

    def _advised(self, stage: Planned, error: AlignTuneError) -> AlignTuneError:
        """The failure of a stage, with what to do next."""
        after = [s.name for s in self.plan.stages[self.plan.stages.index(stage) + 1 :]]
        if self.only:
            after = [name for name in after if name in self.only]
        waiting = f" Not started: {', '.join(after)}." if after else ""
        hint = (
            f"{error.hint + '; then ' if error.hint else ''}go on with: {self.plan.command} (finished stages are kept)."
            f"{waiting} Its words: {stage.folder / LOG}"
        )
        kind = type(error)
        return kind(
            f"stage {stage.name} ({stage.kind_name}) failed: {error.message}",
            hint=hint,
            context={**error.context, "stage": stage.name, "not_started": after},
        )

    # ---- the report ------------------------------------------------------------------------------------------

    def _report(self, found: Mapping[str, StageOutcome]) -> str | None:
        from aligntune.stages.story import draw

        pages = [stage for stage in self.plan.stages if stage.kind_name == "report"]
        path: Path | None = None
        for stage in pages:
            if found[stage.name].status != "waiting":
                path = draw(self.plan, found, stage.folder / "report.html", stage)
        if not pages:
            path = draw(self.plan, found, self.plan.output_dir / "report.html")
        waiting = [name for name, told in found.items() if told.status == "waiting"]
        self._note("unfinished" if waiting else "finished", waiting=waiting, report=str(path) if path else None)
        return str(path) if path else None


def _failure(ended: Ended, said: Mapping[str, Any], printed: Path) -> AlignTuneError:
    error = said.get("error")
    if not isinstance(error, Mapping):
        killed = " (killed; it often means that memory ran out)" if ended.code == -9 else ""
        return TrainingError(f"its process ended with code {ended.code}{killed}", hint=f"read {printed}")
    kind = getattr(errors, str(error.get("type")), None)
    if not (isinstance(kind, type) and issubclass(kind, AlignTuneError)):
        by_code: dict[int, type[AlignTuneError]] = {2: ConfigurationError, 3: errors.EnvironmentError}
        kind = by_code.get(ended.code, TrainingError)
    return kind(str(error.get("message")), hint=str(error.get("hint") or ""))


def _told(stage: Planned, record: Mapping[str, Any], status: str) -> StageOutcome:
    made = stage.kind.results() if status != "waiting" else {}
    return StageOutcome(
        stage.name,
        stage.kind_name,
        str(stage.folder),
        status,
        results=made,
        numbers=dict(record.get("numbers", {})),
        seconds=float(record.get("seconds", 0.0)),
        memory=record.get("memory"),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
