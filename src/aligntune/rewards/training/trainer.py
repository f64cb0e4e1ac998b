"""`RewardModelTrainer`: a reward model from preference pairs or from reward functions, with the life of every run.

    trainer = RewardModelTrainer("reward_model.yaml")
    trainer.train()                      # run folder, checkpoints, resume, Ctrl-C, manifest, metrics: `core.trainer`
    trainer.score(["4"], ["2+2?"])       # logits

What a run writes beyond the others: `reward_model.json` (objective, mean and standard deviation of the model's scores
on the training answers, of the teacher's scores, sources, hashes), `training_prompts.txt` (a hash of each prompt
trained on, so that a validation can tell what was seen), `labels.parquet` (every answer or pair, and its origin).
The model is in the Hugging Face layout, so `type: reward_model, params: {path: ...}` and TRL load it.

It does not tune the base model's text abilities, and does not choose the rewards: `aligntune rewards validate` judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aligntune.core.trainer import Trainer
from aligntune.data.manager import Prepared
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.rewards.training import parts
from aligntune.rewards.training.config import RewardModelConfig, load_reward_config
from aligntune.rewards.training.dataset import RewardModelDataset, prompt_key
from aligntune.rewards.training.reading import read_answers, read_pairs
from aligntune.utils.classifier_loader import stored_labels
from aligntune.utils.logging import quiet_libraries

RECORD = "reward_model.json"
PROMPTS = "training_prompts.txt"
LABELS = "labels.parquet"
SCORED = 2000
"""Training answers, drawn with the seed, that the mean and spread of the trained model's scores are taken from."""


class RewardModelTrainer(Trainer):
    """Train one reward model.

    Args:
        config: a path of a YAML file, plain values, or a `RewardModelConfig`.
        overrides: `key=value` strings; they beat everything else.

    Attributes:
        data: the training part, after the split, with its pairs and noise; read on first use.
        held_out: the part that is measured; None where there is none.

    Raises:
        ConfigurationError: with every fault of the configuration.
    """

    config: Any

    def __init__(
        self, config: str | Path | Mapping[str, Any] | RewardModelConfig, *, overrides: Sequence[str] = ()
    ) -> None:
        super().__init__(load_reward_config(config, overrides=overrides))
        self._parts: tuple[RewardModelDataset, RewardModelDataset | None] | None = None
        self._limit: int | None = None
        self._standard: tuple[float, float] | None = None

    # ---- data ------------------------------------------------------------------------------------------------

    @property
    def rewards(self) -> Any:
        """The `CompositeReward` that labels the answers; None where the data are pairs."""
        if self._rewards is None and self.config.rewards:
            from aligntune.rewards import build_rewards

            self._rewards = build_rewards(
                self.config.rewards, composition=self.config.composition, judge=self.config.judge
            )
            self._rewards.place(self.config.model.device)
        return self._rewards

    @property
    def data(self) -> RewardModelDataset:
        """The training part."""
        return self._split()[0]

    @property
    def held_out(self) -> RewardModelDataset | None:
        """The held-out part, without label noise."""
        return self._split()[1]

    def _read(self, sources: Sequence[Any]) -> RewardModelDataset:
        config = self.config
        where: dict[str, Any] = {"seed": config.train.seed, "cache_dir": config.cache.dir}
        with quiet_libraries():
            if self.rewards is None:
                return read_pairs(sources, **where)
            return read_answers(sources, self.rewards, answers=config.answers, **where)

    def _split(self) -> tuple[RewardModelDataset, RewardModelDataset | None]:
        if self._parts is not None:
            return self._parts
        self._ready()
        config, seed = self.config, self.config.train.seed
        data, held = self._read(config.sources), None
        if config.evaluation.dataset is not None:
            given = self._read([config.evaluation.dataset])
            held = given.without(set(data.keys))
            if lost := len(given.keys) - len(held.keys):
                self._tell([f"held-out data: {lost} of {len(given.keys)} prompts are trained on, and are left out."])
            if not held.keys:
                raise ValidationError("every held-out prompt is trained on", hint="set another evaluation.dataset")
        elif config.held_out:
            data, held = data.split(config.held_out, seed=seed)
        self._parts = self._pairs(data, training=True), held and self._pairs(held, training=False)
        return self._parts

    def _pairs(self, data: RewardModelDataset, *, training: bool) -> RewardModelDataset:
        """The part with the pairs that it trains on, or is measured on."""
        pairs, seed = self.config.pairs, self.config.train.seed
        distils = self.config.objective.key == "distillation"
        if data.texts and not (distils and training):
            several = any(len(group) > 1 for group in data.by_prompt().values())
            if several or training:
                data = data.make_pairs(threshold=pairs.threshold, per_prompt=pairs.per_prompt, seed=seed)
        if training and pairs.label_noise and data.pairs:
            data = data.with_noise(pairs.label_noise, seed=seed)
        return data

    @property
    def standard(self) -> tuple[float, float]:
        """Mean and standard deviation of the training part's scores by the reward functions."""
        if self._standard is None:
            self._standard = self.data.standard
        return self._standard

    @property
    def margin_unit(self) -> float | None:
        """The score difference that counts as a margin of 1; None where the loss has no margin."""
        return self.standard[1] if getattr(self.config.objective, "margin", False) else None

    def _train_rows(self) -> Any:
        if self._train_data is None:
            data = self.data
            encoder = parts.Encoder(self.tokenizer, self.limit)
            if self.config.objective.key == "distillation":
                rows = parts.encode_scores(data, encoder, *self.standard)
            else:
                rows = parts.encode_pairs(data, encoder, margin_unit=self.margin_unit)
            notes = list(data.notes)
            if encoder.cut:
                notes.append(
                    f"{encoder.cut} answers are longer than {self.limit} tokens with their prompt, and are cut there "
                    f"(longest: {encoder.longest})."
                )
            self._tell([f"training data: {note}" for note in notes])
            self._train_data = self._described(data, rows, notes)
        return self._train_data

    def _eval_rows(self) -> Any:
        if self._eval_data is None and self.held_out is not None:
            self._eval_data = self._described(self.held_out, self.held_out, [])
            if not (self.held_out.pairs or self.config.objective.key == "distillation"):
                raise ValidationError(
                    "the held-out part has no pairs to measure", hint="raise held_out, or lower pairs.threshold"
                )
        return self._eval_data

    def _described(self, data: RewardModelDataset, rows: Any, notes: list[str]) -> Any:
        return Prepared(rows, "reward model", notes, data.source, data.content_hash)

    def _probe_rewards(self) -> None:
        """Nothing to probe: the rewards have scored all answers by then."""

    # ---- model -----------------------------------------------------------------------------------------------

    def _load_model(self) -> Any:
        model = self.config.model
        stored = stored_labels(model, "sequence_classification", listed=True, replaced=False)
        outputs = len(stored) if isinstance(stored, list) else stored
        if outputs not in (None, 1):
            raise ConfigurationError(
                f"{model.name_or_path} is a classifier with {outputs} outputs, and a reward model has one",
                hint="start from a base model, or from a reward model",
            )
        loaded = self.backend.load_classifier(self.config, ["reward"])
        loaded.model.config.problem_type = "regression"
        return loaded

    @property
    def limit(self) -> int:
        """Most tokens of prompt and answer: `model.max_seq_length`, or the model's own limit where that is lower."""
        if self._limit is None:
            own = getattr(self._load().model.config.get_text_config(), "max_position_embeddings", None)
            wanted: int = self.config.model.max_seq_length
            self._limit = min(wanted, own) if isinstance(own, int) and own > 0 else wanted
        return self._limit

    def score(self, texts: Sequence[str], prompts: Sequence[Any]) -> list[float]:
        """One logit for each answer, by the model as it is now.

        Args:
            texts: N answers.
            prompts: N prompts, text or messages.
        """
        items = [
            ([{"role": "user", "content": p}] if isinstance(p, str) else p, t)
            for p, t in zip(prompts, texts, strict=True)
        ]
        return self._scores(items)

    def _scores(self, items: Sequence[tuple[Any, str]]) -> list[float]:
        batch = self.config.evaluation.batch_size
        with parts.scoring(self.model, self.tokenizer, limit=self.limit, batch_size=batch) as reward:
            return parts.score_answers(reward, items)

    def generate(self, prompts: Any, **options: Any) -> list[str]:
        """Refused: a reward model writes no text."""
        raise ConfigurationError("a reward model scores answers and writes none", hint="use score(texts, prompts)")

    def evaluate(self, dataset: Any = None) -> dict[str, float]:
        """Measure the model on the held-out part.

        Raises:
            ConfigurationError: there is none, or another data set is given.
        """
        if dataset is not None:
            raise ConfigurationError(
                "a reward model is measured on other data by its validator", hint="use RewardModelValidator(path)"
            )
        return super().evaluate()

    def _samples(self, prepared: Any, count: int) -> list[dict[str, Any]]:
        return []

    # ---- what is written -------------------------------------------------------------------------------------

    def save_model(self, path: str | Path | None = None) -> Path:
        """Write the model in the Hugging Face layout, tokenizer, card, `reward_model.json` and what was trained on."""
        from aligntune.utils.files import disk_errors, write_atomic, write_json

        folder = super().save_model(path)
        with disk_errors(folder):
            keys = "".join(f"{key}\n" for key in sorted(self.data.keys))
            write_atomic(folder / PROMPTS, keys.encode())
            write_json(folder / RECORD, self._record())
            self._write_labels(folder / LABELS)
        return folder

    def _record(self) -> dict[str, Any]:
        """What `reward_model.json` holds."""
        import random

        from aligntune import __version__
        from aligntune.core.config.base import to_plain

        config, data = self.config, self.data
        items = [(t.prompt, t.text) for t in data.texts]
        items = items or [(p.prompt, t) for p in data.pairs for t in (p.chosen, p.rejected)]
        drawn = items if len(items) <= SCORED else random.Random(config.train.seed).sample(items, SCORED)
        with quiet_libraries():
            scores = self._scores(drawn)
        mean = math.fsum(scores) / len(scores)
        std = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))
        teacher = dict(zip(("mean", "std"), self.standard, strict=True)) if data.texts else None
        return {
            "aligntune": __version__,
            "objective": to_plain(config.objective),
            "base_model": config.model.name_or_path,
            "max_length": self.limit,
            "scores": {"mean": mean, "std": std, "answers": len(scores)},
            "teacher": teacher,
            "rewards": to_plain(config.rewards),
            "composition": to_plain(config.composition) if config.rewards else None,
            "judge": to_plain(config.judge),
            "answers": config.answers,
            "source": data.source,
            "content_hash": data.content_hash,
            "counts": {**data.counts, "prompts": len(data.keys), "trained_pairs": len(data.pairs)},
            "held_out_prompts": len(self.held_out.keys) if self.held_out is not None else 0,
            "seed": config.train.seed,
            "steps": self.state.step,
            "measured": {k: v for k, v in self.state.metrics.items() if k.startswith("eval_")},
        }

    def _write_labels(self, path: Path) -> None:
        """Every answer, or every pair, with its score and where it comes from."""
        import json

        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = []
        for part, data in (("train", self.data), ("held_out", self.held_out)):
            for item in (data.pairs or data.texts) if data is not None else ():
                row = {"part": part, **asdict(item)}
                rows.append({k: json.dumps(v) if isinstance(v, (dict, list, tuple)) else v for k, v in row.items()})
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)


def seen_prompts(folder: str | Path) -> set[str]:
    """The `prompt_key`s that a saved reward model was trained on; empty where it does not say."""
    file = Path(folder).expanduser() / PROMPTS
    return set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()


__all__ = ["RewardModelTrainer", "prompt_key", "seen_prompts"]
