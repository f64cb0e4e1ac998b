"""The checks in their order: all of them for `aligntune check`, the cheap ones at the start of `train`.

>>> report = check(config, file="run.yaml", overrides=["train.max_steps=20"], rows=3)
>>> [v.name for v in report.with_status("fail")]
['warm-up']

The quick form reads no more than training reads anyway: configuration, versions, chat template, and the rows as text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.backend import BACKENDS, get_backend
from aligntune.core.backend_choice import settle_backend
from aligntune.core.checks import check_packages
from aligntune.core.config.root import RunConfig
from aligntune.errors import AlignTuneError, ValidationError, first_line
from aligntune.preflight import arithmetic, memory, rewards, rows, settings, templates, tokens
from aligntune.preflight.subject import LABELLED, STREAM_ROWS, Sample, Subject
from aligntune.preflight.trained import Batch, TrainedRow, can_collate, collate, labelled, prompts
from aligntune.preflight.verdict import Report, Verdict

FIRST, LONGEST = 32, 8
"""Rows that the library's own collator is asked about: the first of the sample, and the longest."""


def check(
    config: RunConfig,
    *,
    file: str | None = None,
    overrides: Sequence[str] = (),
    show: int = 2,
    stream_rows: int = STREAM_ROWS,
) -> Report:
    """Check a configuration, its rows and its rewards.

    Args:
        config: a resolved configuration.
        file, overrides: where it comes from, for the source of each value.
        show: how many rows to show as trained, beside the longest one.
        stream_rows: how many rows of a stream to look at.
    """
    config, _ = settle_backend(dataclasses.replace(config, isolation="auto", python=None))
    subject, report = (
        Subject(config, stream_rows=stream_rows),
        Report(settings=settings.sources(file, overrides, config)),
    )
    count = len(subject.train.dataset) if subject.train is not None and not subject.streamed else None
    shape, why = memory.shape(config)
    report.add([_settings(report.settings), *_environment(config), settings.versions(config), memory.hardware(config)])
    report.add([settings.disk(config, *_bytes(config, shape)), settings.learning_rate(config)])
    report.add([settings.warm_up(config, arithmetic.counts(config, count).total_steps)])
    found, shown, mean, longest = _tokens(subject, show)
    if subject.streamed and subject.train is not None:
        report.add([_stream(subject)])
    report.add([arithmetic.batch(config, count, mean), memory.memory(config, shape, why, longest)])
    if subject.tokenizer is not None:
        report.add(templates.checks(subject))
    report.add([*found, *rows.checks(subject), *rewards.checks(subject)])
    report.verdicts[:0] = subject.faults
    report.rows = shown
    if subject.tokenizer is not None:
        report.special = subject.tokenizer.convert_ids_to_tokens(sorted(templates.special_ids(subject.tokenizer)))
    return report


def _settings(listed: Sequence[dict[str, Any]]) -> Verdict:
    """How many values were given and how many are defaults."""
    given: dict[str, int] = {}
    for row in listed:
        source = "defaults" if row["source"].startswith("default") else row["source"]
        given[source] = given.get(source, 0) + 1
    told = ", ".join(f"{n} from {s}" if s not in ("defaults", "override") else f"{n} {s}" for s, n in given.items())
    return Verdict("settings", "config", "pass", f"{told} (-v lists every value with its source)", data=given)


def _stream(subject: Subject) -> Verdict:
    """How much of a stream the other checks have looked at."""
    read = len(subject.train.dataset) + len(subject.train.skipped)
    if read < subject.stream_rows:
        return Verdict("stream", "data", "pass", f"the stream has {read} rows, and all were looked at")
    told = f"the first {subject.stream_rows} rows of the stream were looked at; shares and row numbers are of these"
    fix = "aligntune check --stream-rows N looks at more"
    return Verdict("stream", "data", "pass", told, [fix], data={"rows": read, "stream_rows": subject.stream_rows})


def _environment(config: RunConfig) -> list[Verdict]:
    """Packages, the backend, and the output folder."""
    from aligntune.utils.run_folder import RunFolder

    found = []
    try:
        check_packages(config)
        get_backend(config.backend).check(config)
        found.append(Verdict("backend", "config", "pass", f"{config.backend} is installed, with what this run needs"))
    except AlignTuneError as error:
        fix = error.hint or BACKENDS[config.backend].install
        found.append(Verdict("backend", "config", "fail", error.message, fix=fix))
    try:
        RunFolder.check(config.output_dir)
        found.append(Verdict("output-dir", "config", "pass", f"{config.output_dir} can be written"))
    except AlignTuneError as error:
        found.append(Verdict("output-dir", "config", "warn", error.message, fix=error.hint or ""))
    return found


def _bytes(config: RunConfig, shape: Any) -> tuple[int | None, int | None]:
    """Bytes of the saved model (or adapter), and how many parameters are trained."""
    if shape is None:
        return None, None
    trained = shape.adapters(config.model.peft) if config.model.peft else shape.parameters
    return 4 * trained, trained


def _tokens(subject: Subject, show: int) -> tuple[list[Verdict], list[TrainedRow], float | None, int | None]:
    """Checks of the rows as tokens, the rows to show, mean tokens of a row, and tokens of the longest."""
    if subject.tokenizer is None or subject.train is None:
        return [], [], None, None
    if subject.schema in LABELLED:
        return _labelled(subject, show)
    if subject.fitted is None:
        return [], [], None, None
    sizes = tokens.lengths(subject)
    longest = sorted(range(len(sizes)), key=lambda i: -sizes[i].whole)
    looked = list(dict.fromkeys([*range(min(FIRST, len(sizes))), *longest[:LONGEST]]))
    showing = {subject.sample.rows[i] for i in [*looked[:show], *longest[:1]]} if show else set()
    found, sequences = _as_trained(subject, looked, sizes)
    found += [*tokens.truncation(subject, sizes), *tokens.boundary(subject, sizes)]
    shown = sorted((r for r in sequences if r.row in showing), key=lambda r: (r.row, r.part))
    return found, shown, tokens.mean_tokens(subject, sizes), max(s.whole for s in sizes)


def _as_trained(
    subject: Subject, looked: Sequence[int], sizes: Sequence[tokens.Lengths]
) -> tuple[list[Verdict], list[TrainedRow]]:
    if subject.schema is Schema.PROMPT:
        asked = prompts(subject, looked)
        return [tokens.double_bos(asked, subject)], asked
    if not can_collate(subject.config):
        told = f"{subject.config.algorithm.key} makes its batches while it trains, so they cannot be shown before"
        return [Verdict("terminator", "rows", "skip", told), tokens.masked_rows(None, subject, sizes)], []
    try:
        batch: Batch = collate(subject, looked)
    except AlignTuneError as error:
        return [Verdict("masked-rows", "rows", "fail", error.message, fix=error.hint or "")], []
    except (ValueError, RuntimeError) as error:
        told = f"the training library refuses the rows: {first_line(error)}"
        return [Verdict("masked-rows", "rows", "fail", told, fix="see `aligntune data` and the chat template")], []
    verdicts = [tokens.masked_rows(batch, subject, sizes)]
    if batch.rows:
        verdicts += [tokens.terminator(batch, subject), *tokens.padding(batch, subject)]
        verdicts.append(tokens.double_bos(batch.rows, subject))
        if "input_ids" not in subject.fitted.dataset.column_names:
            verdicts.append(tokens.same_tokens(batch, subject))
    return verdicts, batch.rows


def _labelled(subject: Subject, show: int) -> tuple[list[Verdict], list[TrainedRow], float | None, int | None]:
    count = len(subject.sample.rows)
    made = labelled(subject, range(min(count, 512)))
    cut = [r for r in made if len(r.ids) >= subject.limit]
    lengths = [len(r.ids) for r in made]
    verdicts = [tokens.double_bos(made, subject)]
    told = f"longest of {len(made)} rows {max(lengths)} tokens, {subject.limit_key} = {subject.limit}"
    status = "warn" if len(cut) > tokens.FEW * len(made) else "pass"
    verdicts.append(Verdict("answer-truncated", "rows", status, f"{len(cut)} rows reach the limit; {told}"))  # type: ignore[arg-type]
    return verdicts, made[:show], sum(lengths) / len(lengths), max(lengths)


def quick(trainer: Any, config: RunConfig, *, resuming: bool = False) -> Report:
    """The cheap checks of a run that is about to train: warnings become its notes, a failure stops it.

    Args:
        trainer: the run (`aligntune.core.trainer.Trainer`, or the one that stands for it in another process).
        config: its configuration.
        resuming: the run goes on from a checkpoint.

    Raises:
        ConfigurationError: the output folder cannot be used.
        EnvironmentError: a package is missing.
        ValidationError: a check fails; `--no-check` leaves it out.
    """
    from aligntune.utils.run_folder import RunFolder

    check_packages(config)
    RunFolder.check(config.output_dir, resume=resuming)
    report, count = Report(), None
    report.add([settings.versions(config), settings.learning_rate(config)])
    # A trainer in another process keeps its rows there, and a stream has rows only while it is trained on.
    if hasattr(trainer, "_train_rows") and not any(source.streaming for source in config.sources):
        train, held = trainer._train_rows(), trainer._eval_rows()
        count = len(train.dataset)
        subject = Subject(config, tokenizer=trainer.tokenizer, train=train, evaluation=held)
        subject.fitted, subject.sample = train, Sample(list(range(count)), count, True)
        if subject.schema not in (*LABELLED, Schema.TEXT) and trainer.tokenizer.chat_template:
            report.add([templates.append_only(subject), templates.stop_token(subject)])
        report.add(rows.checks(subject, quick=True))
    report.add([settings.warm_up(config, arithmetic.counts(config, count).total_steps)])
    _act(report, trainer)
    return report


def _act(report: Report, trainer: Any) -> None:
    failed = report.with_status("fail")
    if failed:
        first = failed[0]
        more = "".join(f"\n  {v.name}: {v.reason}" for v in failed[1:])
        evidence = "".join(f"\n  {line}" for line in first.evidence[:3])
        raise ValidationError(
            f"{first.name}: {first.reason}{evidence}{more}",
            hint=f"{first.fix}; `aligntune check` shows everything, and --no-check trains all the same",
            context={"failed": [v.to_dict() for v in failed]},
        )
    told = [f"check: {v.name}: {v.reason}" for v in report.with_status("warn") if v.name != "rows-left-out"]
    if hasattr(trainer, "_tell"):
        trainer._tell(told)
    elif told:
        trainer.notes += told
