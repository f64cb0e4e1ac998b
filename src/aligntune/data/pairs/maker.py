"""Sample, rank, select and write: `PairMaker`, which `aligntune data pairs` runs.

>>> PairMaker(load_pairs_config("pairs.yaml")).make().report["pairs"]
412

Settings, data, rewards, the judge and the output's name are checked before the model is loaded. Prompts are taken in
chunks of about 16 batches, each with a seed of its own; answers and scores of a chunk go to a journal beside the output
(`.pairs.jsonl.journal`), so that `make(resume=True)` goes on after a kill, and gives what an unbroken run gives. The
selection is not part of the journal: where no pair was kept, a lower `select.margin` needs no new answers.

The output has `prompt`, `chosen` and `rejected` as messages, and behind them where each pair comes from (`COLUMNS`).
Beside it stands `pairs.report.yaml`, with the numbers and the configuration.

It samples with Transformers, in one process, and does not show tools to the model.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.core.config.base import to_plain
from aligntune.data.pairs.config import KEYS, PairsConfig, check_pairs_config
from aligntune.data.pairs.ranking import Ranker, make_ranker
from aligntune.data.pairs.report import notes, summarise
from aligntune.data.pairs.selecting import REASONS, SCORING, Pair, Ranked, choose, ranks, taking_part
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.generation import Answer, context_length, encode_prompts, generate_answers
from aligntune.eval.journal import Journal
from aligntune.utils.files import disk_errors, jsonable, write_atomic
from aligntune.utils.logging import get_logger, quiet_libraries

if TYPE_CHECKING:
    from aligntune.rewards.judges import Judge

log = get_logger(__name__)

BATCHES = 16
"""Batches in a chunk: what a killed run loses at most."""
COLUMNS = {
    "prompt_id": "hash of the source's row",
    "model": "who answered",
    "seed": "of the run",
    "sampling": "the settings of the sampling",
    "ranker": "what ranked",
    "chosen_score": "the chosen answer's score",
    "rejected_score": "the rejected answer's score",
    "margin": "the difference of the two",
    "chosen_rank": "1 is the best of the prompt's answers; equal scores share a rank",
    "rejected_rank": "likewise",
    "answers": "how many different answers were ranked",
    "chosen_tokens": "generated tokens of the chosen answer",
    "rejected_tokens": "of the rejected one",
}
"""Where a pair comes from: the columns behind `prompt`, `chosen` and `rejected`."""
Row = dict[str, Any]


@dataclass(frozen=True)
class PairsResult:
    """What was made.

    Attributes:
        pairs: the rows of the file.
        report: the numbers, as plain values.
        path: the file.
    """

    pairs: list[Row]
    report: dict[str, Any]
    path: Path


class PairMaker:
    """Makes preference pairs.

    Args:
        config: what to make.
        model: a model in memory, in place of loading `config.model`; needs `tokenizer`.
        tokenizer: its tokenizer.
        judge: a judge in memory, in place of the section `judge`.

    Raises:
        ConfigurationError: settings contradict each other.
    """

    def __init__(
        self, config: PairsConfig, model: Any = None, tokenizer: Any = None, judge: Judge | None = None
    ) -> None:
        if (model is None) != (tokenizer is None):
            raise ConfigurationError(
                "a model in memory and its tokenizer belong together", hint="pass both to PairMaker, or neither"
            )
        if judge is not None and config.judge is not None:
            raise ConfigurationError("two judges are given", hint="leave out the section judge, or the argument")
        check_pairs_config(config, judge=judge is not None)
        self.config, self.model, self.tokenizer, self.judge = config, model, tokenizer, judge
        self.path = Path(os.path.abspath(os.path.expanduser(config.output)))
        self.journal_path = self.path.with_name(f".{self.path.name}.journal")
        self.report_path = self.path.with_name(f"{self.path.stem}.report.yaml")

    @property
    def resume_hint(self) -> str:
        """What to tell a person who stopped it."""
        return "the answers so far are kept: go on with --resume" if self.journal_path.exists() else ""

    def make(self, *, resume: bool = False) -> PairsResult:
        """Sample, rank, select, write.

        Args:
            resume: go on with the journal of an unfinished run of the same model, prompts, sampling and ranking.

        Raises:
            ConfigurationError: a setting is wrong, the output exists, or an unfinished run is there and `resume` is
                not set, or it is one of something else.
            ValidationError: there are no prompts, a column is missing, or there is nothing to learn: all scores are
                equal, or no pair is left.
            RewardError: a reward or the judge failed.
            errors.EnvironmentError: the judge or the model cannot be reached.
        """
        from aligntune.data.manager import prepare_dataset
        from aligntune.eval.tasks.base import item_ids

        self._check_output(resume)
        ranker = make_ranker(self.config, self.judge)
        prepared = prepare_dataset(self.config.dataset, Schema.PROMPT, seed=self.config.seed)
        rows = [dict(row) for row in prepared.dataset]
        ranker.check(sorted({name for row in rows for name in row}))
        ranker.prepare(self.config.model.device)
        told = [*prepared.notes, *self._load()]
        fitting = self._fitting(rows)
        journal = self._journal(ranker, prepared.content_hash, resume)
        ranked, counts = self._ranked([rows[i] for i in fitting], item_ids(rows), fitting, ranker, journal)
        return self._finish(rows, fitting, ranked, ranker, journal, told, counts)

    def _check_output(self, resume: bool) -> None:
        for path in (self.path, self.report_path):
            if path.exists():
                raise ConfigurationError(
                    f"{path} exists", hint="set output (--out) to a new file, or remove that one first"
                )
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path.parent, os.W_OK):
            raise ConfigurationError(f"no permission to write in {self.path.parent}", hint="set output elsewhere")
        if not resume and self.journal_path.exists() and self.journal_path.read_bytes().count(b"\n") > 1:
            raise ConfigurationError(
                f"an unfinished run towards {self.path} has left its answers",
                hint=f"go on with --resume, set output to another file, or remove {self.journal_path}",
            )

    def _load(self) -> list[str]:
        """Make sure that there is a model; the notes of loading it."""
        if self.model is not None:
            return []
        import transformers  # noqa: F401 - loaded, so that its progress bars can be held back

        from aligntune.utils.model_loader import ModelLoader

        with quiet_libraries():
            loaded = ModelLoader(self.config.model, training=False, seed=self.config.seed).load()
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        return list(loaded.notes)

    def _fitting(self, rows: Sequence[Row]) -> list[int]:
        """Numbers of the rows whose prompt leaves room for an answer."""
        limit = context_length(self.model)
        if limit is None:
            return list(range(len(rows)))
        room = limit - self.config.sampling.max_new_tokens
        lengths = [len(ids) for ids in encode_prompts(self.tokenizer, [row["prompt"] for row in rows])]
        found = [i for i, n in enumerate(lengths) if n <= room]
        if not found:
            raise ValidationError(
                f"no prompt leaves room for {self.config.sampling.max_new_tokens} new tokens in the model's context "
                f"of {limit}: the shortest of {len(rows)} has {min(lengths)}",
                hint="lower sampling.max_new_tokens, or give shorter prompts",
            )
        return found

    def _journal(self, ranker: Ranker, content_hash: str, resume: bool) -> Journal:
        from aligntune.utils.model_source import weight_files

        model = to_plain(self.config.model)
        model.pop("peft")
        subject = {
            "model": model,
            "weights": weight_files(self.config.model.name_or_path),
            "prompts": content_hash,
            "sampling": to_plain(self.config.sampling),
            "ranking": ranker.identity(),
            "seed": self.config.seed,
        }
        try:
            return Journal.open(self.journal_path, subject, resume=resume)
        except ConfigurationError as e:
            if "changed" not in e.context:
                raise
            raise ConfigurationError(
                f"the unfinished run towards {self.path} has another {', '.join(e.context['changed'])}",
                hint=f"put the setting back, set output to another file, or remove {self.journal_path}",
                context=e.context,
            ) from e

    def _ranked(
        self, rows: Sequence[Row], ids: Sequence[str], fitting: Sequence[int], ranker: Ranker, journal: Journal
    ) -> tuple[list[Ranked], Counter[str]]:
        """The ranked answers of every prompt, from the journal or new; and what was counted on the way."""
        sampling = self.config.sampling
        size = max(1, BATCHES * sampling.batch_size // sampling.num_samples)
        found: list[Ranked] = []
        counts: Counter[str] = Counter()
        for k, start in enumerate(range(0, len(rows), size)):
            part = rows[start : start + size]
            if k not in journal.done:
                journal.append(k, self._chunk(part, [ids[i] for i in fitting[start : start + size]], ranker, k))
                _warn(journal.done[k])
            *items, last = journal.done[k]
            found += [_from_plain(item) for item in items]
            counts.update(last["counts"])
            if len(rows) > size:
                log.info("%d of %d prompts", min(start + size, len(rows)), len(rows))
        return found, counts

    def _chunk(self, rows: Sequence[Row], ids: Sequence[str], ranker: Ranker, number: int) -> list[Row]:
        """The items of a chunk: one for each prompt, and one with the counts."""
        s = self.config.sampling
        sampled = generate_answers(
            self.model,
            self.tokenizer,
            [row["prompt"] for row in rows],
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            repetition_penalty=s.repetition_penalty,
            batch_size=s.batch_size,
            num_samples=s.num_samples,
            stop=s.stop,
            seed=(self.config.seed + number) % 2**32,
        )
        parts = [
            taking_part(i, answers, keep_truncated=s.keep_truncated) for i, answers in zip(ids, sampled, strict=True)
        ]
        texts = [[] if part.reason else [a.text for a in part.answers] for part in parts]
        ranking = ranker.rank(rows, texts, self.tokenizer)
        items: list[Row] = []
        for n, part in enumerate(parts):
            wins = None if ranking.wins is None else [list(pair) for pair in sorted(ranking.wins[n])]
            answers = [[a.text, a.tokens, a.finished] for a in part.answers]
            items.append(
                {
                    "id": part.id,
                    "answers": answers,
                    "scores": ranking.scores[n],
                    "wins": wins,
                    "counts": dict(part.counts),
                    "reason": part.reason,
                }
            )
        return [*items, {"counts": dict(ranking.counts)}]

    def _finish(
        self,
        rows: Sequence[Row],
        fitting: Sequence[int],
        ranked: Sequence[Ranked],
        ranker: Ranker,
        journal: Journal,
        told: Sequence[str],
        counts: Counter[str],
    ) -> PairsResult:
        dropped = Counter(prompt_too_long=len(rows) - len(fitting))
        pairs: list[Row] = []
        for i, one in zip(fitting, ranked, strict=True):
            chosen, reason = choose(one, self.config.select, seed=self.config.seed)
            dropped.update([] if reason is None else [reason])
            pairs += [self._row(rows[i], one, pair, ranker.name) for pair in chosen]
        report = {
            "output": str(self.path),
            "model": self._model_name(),
            "ranker": ranker.name,
            "seed": self.config.seed,
            **summarise(ranked, pairs, dropped),
            "counts": dict(+counts),
            "judge": ranker.usage(),
        }
        report["notes"] = [*told, *notes(report)]
        if not pairs:
            self._nothing(report, journal)
        self._write(pairs, report)
        journal.remove()
        return PairsResult(pairs, report, self.path)

    def _nothing(self, report: Row, journal: Journal) -> None:
        """Say why there is no pair: nothing to learn from these scores, or a selection that is too strict."""
        scores = report["scores"]
        if scores["n"] and math.isclose(scores["min"], scores["max"], rel_tol=SCORING, abs_tol=SCORING):
            journal.remove()
            raise ValidationError(
                f"all {scores['n']} answers have the score {scores['max']:g} under {report['ranker']}: there is "
                "nothing to learn",
                hint="rank by something that tells the answers apart; sample more answers, or at a higher temperature",
                context={"report": report},
            )
        reasons = "; ".join(f"{n} prompts: {REASONS[reason]}" for reason, n in report["dropped"].items())
        first = max(report["dropped"], key=lambda reason: int(report["dropped"][reason]))
        raise ValidationError(
            f"none of {report['prompts']} prompts gives a pair ({reasons})",
            hint=_ADVICE.get(first, "sample more answers (sampling.num_samples), or at a higher temperature"),
            context={"report": report},
        )

    def _model_name(self) -> str:
        model = self.config.model
        return model.name_or_path + (f"@{model.revision}" if model.revision else "")

    def _row(self, row: Row, one: Ranked, pair: Pair, ranker: str) -> Row:
        places = ranks(one.scores)
        chosen, rejected = one.answers[pair.chosen], one.answers[pair.rejected]
        sampling = {k: v for k, v in to_plain(self.config.sampling).items() if v not in (None, [])}
        return {
            "prompt": row["prompt"],
            "chosen": _turn(chosen.text),
            "rejected": _turn(rejected.text),
            "prompt_id": one.id,
            "model": self._model_name(),
            "seed": self.config.seed,
            "sampling": sampling,
            "ranker": ranker,
            "chosen_score": one.scores[pair.chosen],
            "rejected_score": one.scores[pair.rejected],
            "margin": pair.margin,
            "chosen_rank": places[pair.chosen],
            "rejected_rank": places[pair.rejected],
            "answers": len(one.answers),
            "chosen_tokens": chosen.tokens,
            "rejected_tokens": rejected.tokens,
        }

    def _write(self, pairs: Sequence[Row], report: Row) -> None:
        import yaml

        write_atomic(self.path, encoded(pairs, self.path.suffix))
        plain = jsonable({**report, "config": to_plain(self.config)})
        write_atomic(self.report_path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())


_ADVICE = {
    "truncated": "raise sampling.max_new_tokens, or set sampling.keep_truncated: true; then start again",
    "below_margin": "lower select.margin and go on with --resume: the answers are kept",
    "length_ratio": "raise select.max_length_ratio and go on with --resume: the answers are kept",
    "no_score": f"look at the columns that the rewards read, and at the judge; {KEYS}",
    "not_confirmed": "sample more answers, or take a stronger judge",
}
"""What to do about the most frequent reason."""


def encoded(pairs: Sequence[Row], suffix: str) -> bytes:
    """Rows as the bytes of a file: JSON lines, or Parquet where `suffix` says so."""
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(pairs)), sink)
        return bytes(sink.getvalue().to_pybytes())
    text = "".join(json.dumps(jsonable(pair), ensure_ascii=False, allow_nan=False) + "\n" for pair in pairs)
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes the escape that JSON has for it


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _from_plain(item: Row) -> Ranked:
    wins = None if item["wins"] is None else frozenset((i, j) for i, j in item["wins"])
    answers = [Answer(*fields) for fields in item["answers"]]
    return Ranked(item["id"], answers, item["scores"], wins, Counter(item["counts"]), item["reason"])


def _warn(items: Sequence[Row]) -> None:
    """Say early that a chunk has nothing to learn from."""
    scores = {s for item in items[:-1] for s in item["scores"] if s is not None}
    if len(scores) == 1 and len(items) > 4:
        log.warning("all answers to %d prompts have the same score, %g", len(items) - 1, next(iter(scores)))
