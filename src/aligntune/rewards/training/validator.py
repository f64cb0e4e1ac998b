"""`RewardModelValidator`: what a reward model is worth on prompts that it was not trained on, with 95% intervals.

    report = RewardModelValidator("runs/reward-model").validate("test_pairs.jsonl")
    report.passed, report.verdict

| measure | what it is |
|---|---|
| `pair_accuracy` | share of pairs whose chosen answer scores higher; a tie counts one half |
| `pair_accuracy_matched` | the same on pairs whose lengths differ by at most 10% of the longer one |
| `pair_accuracy_by_margin` | the same in quarters of the pairs, by the data's margin, or else by the model's own |
| `length_baseline` | the accuracy of "the longer is better" or "the shorter is better", the better on these pairs |
| `over_length` | the paired difference to it |
| `calibration` | Brier score, expected calibration error and reliability of sigmoid(score difference) |
| `calibration/temperature` | what half of the prompts ask for, and the error of the other half with it |
| `correlation` | Pearson, Spearman and Kendall with each teacher component, their total, and people's scores |
| `length` | correlation of score with length differences; slope, in standard deviations for 100 characters more |
| `perturbations` | how often an answer beats itself with fluff, repeated, empty, cut in half, and another one |
| `best_of_n` | what choosing by the model gains in an independent scorer's value, beside what is to be gained |
| `spread` | standard deviation of scores within a prompt, over that of all scores; share of prompts without any |

Sources: Lambert et al. 2024, arXiv:2403.13787, and Malik et al. 2025, arXiv:2506.01937 (pairs, best-of-n); Singhal et
al. 2023, arXiv:2310.03716 (length). Length is in characters of the answer. It does not show what happens to the model
under optimisation: a policy finds answers that no data set has.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntune.core.config.sections import DatasetConfig
from aligntune.errors import ValidationError
from aligntune.eval.stats import Interval, mean_interval, paired_difference
from aligntune.rewards.base import RewardFunction
from aligntune.rewards.training import measures, parts
from aligntune.rewards.training.dataset import Pair, RewardModelDataset, ScoredText, prompt_key
from aligntune.rewards.training.loader import TRLCompatibleRewardModel, read_record
from aligntune.rewards.training.reading import read_pairs
from aligntune.rewards.training.report import Check, Thresholds, ValidationReport, check
from aligntune.utils.logging import quiet_libraries

MATCHED = 0.1
"""Pairs whose lengths differ by at most this share of the longer one have matched length."""
FLUFF = " I hope this helps! Please let me know if there is anything else that I can do for you."
PERTURBED = 200
"""Most answers that are disturbed."""
DRAWS = (2, 4, 8, 16)
"""The n of best-of-n."""


class RewardModelValidator:
    """Measure one reward model.

    Args:
        model: a folder, a hub id, or any reward that needs the prompt alone.
        independent: names of the data's components that had no part in the model's training, for best-of-n.
        thresholds: of the verdict.
        batch_size: answers per forward pass.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of the bootstrap.

    Raises:
        ConfigurationError: the model's settings are wrong.
    """

    def __init__(
        self,
        model: str | Path | RewardFunction,
        *,
        independent: Sequence[str] = (),
        thresholds: Thresholds | None = None,
        batch_size: int = 8,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.record: dict[str, Any] = {}
        if isinstance(model, RewardFunction):
            self.path, self.reward = str(getattr(model, "path", None) or model.name), model
        else:
            self.path, self.record = str(model), read_record(model)
            self.reward = TRLCompatibleRewardModel(self.path, batch_size=batch_size)
            self.reward.place(device)
        self.independent = list(independent)
        self.thresholds = thresholds or Thresholds()
        self.seed = seed
        self._known: dict[tuple[str, str], float] = {}

    def validate(
        self, data: RewardModelDataset | DatasetConfig | str | Path, *, seen: set[str] | None = None
    ) -> ValidationReport:
        """Measure, and judge.

        Args:
            data: pairs, scored answers or both; a path or hub id of preference pairs.
            seen: `prompt_key`s to leave out; None takes the prompts that the model says it was trained on.

        Raises:
            ValidationError: no pair is left to measure.
        """
        from aligntune.rewards.training.trainer import seen_prompts

        if not isinstance(data, RewardModelDataset):
            source = data if isinstance(data, DatasetConfig) else DatasetConfig(name=str(data))
            data = read_pairs([source], seed=self.seed)
        seen = seen_prompts(self.path) if seen is None else seen
        kept = data.without(seen)
        notes = [note for note in data.notes if "not compared" in note]
        if lost := len(data.keys) - len(kept.keys):
            notes.append(f"{lost} of {len(data.keys)} prompts were trained on, and are left out.")
        if not kept.keys:
            where = data.source or "the given data"
            raise ValidationError(f"every prompt of {where} was trained on", hint="give prompts that were held out")
        if not seen:
            notes.append("the model does not say what it was trained on, so these prompts may be among it.")
        pairs, people = _pairs(kept, self.seed)
        if not people:
            notes.append("the pairs are labelled by reward functions, so nothing here says what people prefer.")
        texts = kept.texts or [_text(p, side) for p in pairs for side in ("chosen", "rejected")]
        self._score(
            [(p.prompt, t) for p in pairs for t in (p.chosen, p.rejected)] + [(t.prompt, t.text) for t in texts]
        )
        keys = [prompt_key(p.prompt) for p in pairs]
        gaps = [self._of(p.prompt, p.chosen) - self._of(p.prompt, p.rejected) for p in pairs]
        values: dict[str, Any] = {
            **_accuracies(pairs, gaps, keys),
            "calibration": _calibration(gaps, keys, self.seed),
            "correlation": self._correlations(kept.texts),
            "length": self._length(pairs, gaps, keys, texts),
            "perturbations": self._perturbations(pairs),
            "best_of_n": self._best_of_n(kept.texts),
            "spread": self._spread(texts),
            "pairs": len(pairs),
            "prompts": len(set(keys)),
        }
        checks = self._checks(values, notes, people)
        return ValidationReport(values, checks, notes, self.path, data.source or "the given data")

    # ---- scores ----------------------------------------------------------------------------------------------

    def _score(self, items: Sequence[tuple[Any, str]]) -> list[float]:
        """Scores of (prompt, answer), each computed once."""
        named = [(prompt_key(prompt), text) for prompt, text in items]
        new = {name: item for name, item in zip(named, items, strict=True) if name not in self._known}
        if new:
            rows = list(new.values())
            importlib.import_module("transformers")  # it sets its loggers up when it is imported
            with quiet_libraries():
                if isinstance(self.reward, TRLCompatibleRewardModel):
                    found: Sequence[Any] = parts.score_answers(self.reward, rows)
                else:
                    found = self.reward.batch([text for _, text in rows], {"prompt": [prompt for prompt, _ in rows]})
            if (bad := next((i for i, s in enumerate(found) if s is None or not math.isfinite(s)), None)) is not None:
                raise ValidationError(
                    f"the model's score of an answer is {found[bad]}", hint="validate a model that scores every answer"
                )
            self._known |= dict(zip(new, found, strict=True))
        return [self._known[name] for name in named]

    def _of(self, prompt: Any, text: str) -> float:
        return self._known[prompt_key(prompt), text]

    # ---- measures --------------------------------------------------------------------------------------------

    def _correlations(self, texts: Sequence[ScoredText]) -> dict[str, Any]:
        """Rank correlations with everything that scores the same answers."""
        columns: dict[str, list[float | None]] = {}
        names = dict.fromkeys(name for t in texts for name in t.components)
        if names:
            if set(names) - set(self.independent):
                columns["total"] = [t.score for t in texts]
            for name in names:
                columns[name] = [t.components.get(name) for t in texts]
        if any(t.human is not None for t in texts):
            columns["people"] = [t.human for t in texts]
        found: dict[str, Any] = {}
        for name, values in columns.items():
            rows = [
                (self._of(t.prompt, t.text), v, prompt_key(t.prompt))
                for t, v in zip(texts, values, strict=True)
                if v is not None
            ]
            if len(rows) > 2:
                xs, ys, keys = ([row[i] for row in rows] for i in range(3))
                found[name] = {
                    kind: measures.correlation_interval(xs, ys, keys, kind=kind, seed=self.seed)  # type: ignore[arg-type]
                    for kind in ("pearson", "spearman", "kendall")
                }
        return found

    def _length(
        self, pairs: Sequence[Pair], gaps: Sequence[float], keys: Sequence[str], texts: Sequence[ScoredText]
    ) -> dict[str, Any]:
        # A pair and its mirror image say the same, so each pair stands in both orders: the mean is then 0.
        longer = [float(len(p.chosen) - len(p.rejected)) for p in pairs]
        both, turned = [*longer, *(-x for x in longer)], [*gaps, *(-g for g in gaps)]
        twice = [*keys, *keys]
        scores = [self._of(t.prompt, t.text) for t in texts]
        sd = math.sqrt(math.fsum((s - sum(scores) / len(scores)) ** 2 for s in scores) / len(scores))
        slope = None
        if sd > 0:
            slope = measures.slope_interval([x / 100 for x in both], [g / sd for g in turned], twice, seed=self.seed)
        own = [prompt_key(t.prompt) for t in texts]
        lengths = [float(len(t.text)) for t in texts]
        return {
            "difference_correlation": measures.correlation_interval(both, turned, twice, seed=self.seed),
            "difference_slope": slope,
            "correlation": measures.correlation_interval(lengths, scores, own, seed=self.seed),
        }

    def _perturbations(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """How often the clean answer scores above each disturbed form of itself."""
        clean = list({(prompt_key(p.prompt), p.chosen): (p.prompt, p.chosen) for p in pairs}.values())[:PERTURBED]
        others = [*(text for _, text in clean[1:]), clean[0][1]]
        forms = {
            "fluff": [text + FLUFF for _, text in clean],
            "repeated": [f"{text} {text}" for _, text in clean],
            "empty": ["" for _ in clean],
            "truncated": [text[: len(text) // 2] for _, text in clean],
            "another_answer": others,
        }
        found: dict[str, Any] = {}
        for name, texts in forms.items():
            rows = [(item, text) for item, text in zip(clean, texts, strict=True) if text != item[1]]
            if not rows:
                continue
            before = self._score([item for item, _ in rows])
            after = self._score([(item[0], text) for item, text in rows])
            found[name] = measures.proportion(_wins(before, after), [prompt_key(item[0]) for item, _ in rows])
        return found

    def _best_of_n(self, texts: Sequence[ScoredText]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.independent:
            groups: dict[str, list[tuple[float, float]]] = {}
            for t in texts:
                if (value := t.components.get(name)) is not None:
                    groups.setdefault(prompt_key(t.prompt), []).append((self._of(t.prompt, t.text), value))
            for n in DRAWS:
                rows = [([s for s, _ in g], [v for _, v in g]) for g in groups.values() if len(g) >= n]
                if len(rows) < 2:
                    continue
                means = [math.fsum(values) / len(values) for _, values in rows]
                gain = [measures.best_of(s, v, n) - m for (s, v), m in zip(rows, means, strict=True)]
                most = [measures.best_of(v, v, n) - m for (_, v), m in zip(rows, means, strict=True)]
                found[f"{name}/{n}"] = {"gain": mean_interval(gain), "possible": mean_interval(most)}
        return found

    def _spread(self, texts: Sequence[ScoredText]) -> dict[str, Any]:
        groups: dict[str, dict[str, float]] = {}
        for t in texts:
            groups.setdefault(prompt_key(t.prompt), {})[t.text] = self._of(t.prompt, t.text)
        scores = [s for group in groups.values() for s in group.values()]
        whole = _deviation(scores)
        several = {key: list(group.values()) for key, group in groups.items() if len(group) > 1}
        if not several:
            return {}
        inner = [_deviation(group) for group in several.values()]
        flat = [float(s <= 0.01 * whole) for s in inner]
        ratio = mean_interval([s / whole for s in inner]) if whole > 0 else Interval(0.0, 0.0, 0.0, len(inner), "t")
        return {"within_prompt": ratio, "flat_prompts": measures.proportion(flat, list(several))}

    # ---- verdict ---------------------------------------------------------------------------------------------

    def _checks(self, values: Mapping[str, Any], notes: list[str], people: bool) -> list[Check]:
        t = self.thresholds
        found = [
            check("pair accuracy", values["pair_accuracy"], "above", t.accuracy, "ranks pairs better than a coin"),
            check("gain over length", values["over_length"], "above", t.over_length, "ranks better than length alone"),
        ]
        matched = values["pair_accuracy_matched"]
        if matched is None or matched.n < t.matched_prompts:
            have = 0 if matched is None else matched.n
            notes.append(
                f"prompts with a pair of matched length: {have}, too few (of {t.matched_prompts}) to say anything."
            )
        else:
            meaning = "ranks answers of equal length better than a coin"
            found.append(check("accuracy at matched length", matched, "above", t.matched, meaning))
        bias = values["length"]["difference_correlation"]
        if bias is None:
            notes.append("the lengths, or the scores, of each pair are equal, so length bias cannot be seen.")
        else:
            name = "|correlation of score and length differences|"
            found.append(check(name, _size(bias), "below", t.length_correlation, "does not score length"))
        for kind, rate in values["perturbations"].items():
            meaning = f"prefers an answer to its form '{kind}'"
            name = f"win rate against {kind}"
            found.append(check(name, rate, "above", t.perturbation, meaning, required=False, advisory=not people))
        if values["spread"]:
            flat = values["spread"]["flat_prompts"]
            found.append(check("share of flat prompts", flat, "below", t.flat, "tells the answers to a prompt apart"))
        error = values["calibration"]["ece"]
        found.append(
            check(
                "calibration error",
                error,
                "below",
                t.calibration,
                "sigmoid(difference) is a probability",
                advisory=True,
            )
        )
        return found


def _pairs(data: RewardModelDataset, seed: int) -> tuple[list[Pair], bool]:
    """The pairs to measure on, and whether they come from the data or from people's scores, not from rewards."""
    if data.pairs and data.pairs[0].margin is None:
        return data.pairs, True
    people = [dataclasses.replace(t, score=t.human) for t in data.texts if t.human is not None]
    if people:
        return RewardModelDataset(people).make_pairs(seed=seed).pairs, True
    made = data.pairs or data.make_pairs(seed=seed).pairs
    return made, False


def _text(pair: Pair, side: str) -> ScoredText:
    return ScoredText(pair.prompt, getattr(pair, side), 0.0)


def _wins(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [0.5 if x == y else float(x > y) for x, y in zip(a, b, strict=True)]


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def _size(found: Interval) -> Interval:
    """The interval of a correlation's absolute value."""
    if found.low is None or found.high is None:
        return dataclasses.replace(found, estimate=abs(found.estimate))
    low = 0.0 if found.low <= 0 <= found.high else min(abs(found.low), abs(found.high))
    return dataclasses.replace(found, estimate=abs(found.estimate), low=low, high=max(abs(found.low), abs(found.high)))


def _accuracies(pairs: Sequence[Pair], gaps: Sequence[float], keys: Sequence[str]) -> dict[str, Any]:
    """Pair accuracy, as a whole, at matched length, by margin, and beside the length baseline."""
    wins = _wins(gaps, [0.0] * len(gaps))
    lengths = [(len(p.chosen), len(p.rejected)) for p in pairs]
    matched = [i for i, (a, b) in enumerate(lengths) if abs(a - b) <= MATCHED * max(a, b)]
    longer = _wins([float(a) for a, _ in lengths], [float(b) for _, b in lengths])
    shorter = [1 - w for w in longer]
    baseline, name = (longer, "longer") if sum(longer) >= sum(shorter) else (shorter, "shorter")
    ours, theirs = (measures.grouped(w, keys) for w in (wins, baseline))
    difference = paired_difference([s / n for n, s in ours.values()], [s / n for n, s in theirs.values()])
    over = Interval(difference.difference, difference.low, difference.high, difference.n, difference.method)
    given = [p.margin for p in pairs]
    margins = [abs(g) for g in gaps] if any(m is None for m in given) else [float(m) for m in given if m is not None]
    return {
        "pair_accuracy": measures.proportion(wins, keys),
        "pair_accuracy_matched": (
            measures.proportion([wins[i] for i in matched], [keys[i] for i in matched]) if matched else None
        ),
        "length_baseline": measures.proportion(baseline, keys),
        "length_baseline_rule": f"the {name} answer",
        "over_length": over,
        "over_length_p": difference.p_value,
        "margins_of": "the model" if any(m is None for m in given) else "the data",
        "pair_accuracy_by_margin": _by_margin(margins, wins, keys),
    }


def _by_margin(margins: Sequence[float], wins: Sequence[float], keys: Sequence[str]) -> list[dict[str, Any]]:
    order = sorted(range(len(margins)), key=lambda i: margins[i])
    found = []
    for q in range(4):
        part = order[q * len(order) // 4 : (q + 1) * len(order) // 4]
        if part:
            accuracy = measures.proportion([wins[i] for i in part], [keys[i] for i in part])
            found.append({"low": margins[part[0]], "high": margins[part[-1]], "accuracy": accuracy})
    return found


def _calibration(gaps: Sequence[float], keys: Sequence[str], seed: int) -> dict[str, Any]:
    ordered = sorted(set(keys))
    first = set(ordered[: len(ordered) // 2])
    fit = [g for g, key in zip(gaps, keys, strict=True) if key in first]
    rest = [(g, key) for g, key in zip(gaps, keys, strict=True) if key not in first]
    scale = measures.temperature(fit)
    after = None
    if scale is not None:
        after = measures.calibration_interval([g / scale for g, _ in rest], [key for _, key in rest], seed=seed)
    return {
        "brier": measures.brier(gaps, keys),
        "ece": measures.calibration_interval(gaps, keys, seed=seed),
        "temperature": scale,
        "ece_at_temperature": after,
        "reliability": measures.reliability(gaps),
    }
