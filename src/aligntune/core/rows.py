"""The rows of a run: prepared for its algorithm, fitted to its tokenizer, tokenised where its trainer takes tokens, and
kept in the data cache.

>>> fitted = fit_rows(trainer, trainer.config.sources, training=True)
>>> fitted.tokens.column_names
['input_ids', 'labels']
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from aligntune.algorithms.base import Schema
from aligntune.core.config.base import to_plain
from aligntune.core.config.sections import DatasetConfig
from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.core.config.root import RunConfig
    from aligntune.core.trainer import Trainer
    from aligntune.data.labels import Labels
    from aligntune.data.manager import Prepared

TAKE_TOKENS = ("trl:SFTTrainer", "trl:DPOTrainer", "trl:KTOTrainer")
"""Trainers that `core.pretokenised` gives a short cut for token rows."""
SKIPPED_FILE = "skipped_rows.jsonl"


def fit_rows(trainer: Trainer, sources: Any, *, training: bool) -> Prepared:
    """The rows of one or more sources in the schema of the run's algorithm, fitted to its tokenizer.

    Args:
        trainer: the run.
        sources: one `DatasetConfig` or a list of them.
        training: they are trained on, and tokenised where the trainer takes tokens.

    Raises:
        ValidationError, ConfigurationError, EnvironmentError: see `prepare_dataset` and `render`.
    """
    from aligntune.data import render
    from aligntune.utils.manifest import tokenizer_entry

    config, tokenizer = trainer.config, trainer.tokenizer
    schema, tokens = config.algorithm.data, _wanted_tokens(config) if training else None
    generation = getattr(config, "generation", None)
    limits: dict[str, Any] = {
        "max_length": config.model.max_seq_length,
        "max_prompt_length": generation.max_prompt_length if generation and schema is Schema.PROMPT else None,
        "loss_on": getattr(config.algorithm, "train_on", None),
        "keep_tokens": tokens,
    }
    if _streamed(sources):
        return _stream(trainer, sources, training=training, **limits)

    def build() -> Prepared:
        return render(_prepare(config, sources, None), schema, tokenizer, **limits)

    # The entry and the special tokens say what the vocabulary's file does not.
    special = [tokenizer.special_tokens_map, getattr(tokenizer, "init_kwargs", {})]
    entry = [tokenizer_entry(tokenizer), {k: v for k, v in special[1].items() if k != "name_or_path"}, special[0]]
    return _kept(config, sources, None, {**limits, "tokenizer": entry}, build)


def prepare_rows(config: RunConfig, sources: Any, labels: Labels | None) -> Prepared:
    """The canonical rows of one or more sources, kept in the data cache; `labels` as for `prepare_dataset`."""
    if _streamed(sources):
        raise ConfigurationError(
            "streaming is not for classification, which counts its labels", hint="remove streaming"
        )
    return _kept(config, sources, labels, {}, lambda: _prepare(config, sources, labels))


def encode_rows(
    config: RunConfig, sources: Any, labels: Labels, tokenizer: Any, build: Callable[[], Prepared], **limits: Any
) -> Prepared:
    """Labelled rows as token ids, which `build` makes, kept in the data cache."""
    from aligntune.utils.manifest import tokenizer_entry

    return _kept(config, sources, labels, {**limits, "tokenizer": tokenizer_entry(tokenizer)}, build)


def _prepare(config: RunConfig, sources: Any, labels: Labels | None) -> Prepared:
    from aligntune.data import prepare_dataset

    return prepare_dataset(
        sources, config.algorithm.data, seed=config.train.seed, cache_dir=config.cache.dir, labels=labels
    )


def _kept(
    config: RunConfig, sources: Any, labels: Labels | None, parts: dict[str, Any], build: Callable[[], Prepared]
) -> Prepared:
    from aligntune.data import DataManager, DatasetCache
    from aligntune.data.presets import preset_values

    cache = DatasetCache.of(config.cache)
    if cache is None:
        return build()
    schema, seed, listed = config.algorithm.data, config.train.seed, _listed(sources)
    manager = DataManager(schema, seed=seed, cache_dir=config.cache.dir)
    key = {
        "content": manager.identity(listed),
        "sources": [to_plain(source) for source in listed],
        "presets": [preset_values(source.preset) for source in listed],
        "schema": str(schema),
        "seed": seed,
        "labels": labels and [labels.names, labels.origin, labels.advice],
        **parts,
    }
    prepared, hit = cache.fetch(key, build)
    if hit:
        note = f"{prepared.source}: {len(prepared.dataset)} prepared rows come from the data cache ({cache.root})."
        return dataclasses.replace(prepared, notes=[*prepared.notes, note])
    return prepared


def _wanted_tokens(config: RunConfig) -> Literal["cut", "whole"] | None:
    algorithm = config.algorithm
    if algorithm.trainer not in TAKE_TOKENS or algorithm.driver:
        return None
    return "whole" if getattr(algorithm, "packing", False) else "cut"


def _listed(sources: Any) -> list[DatasetConfig]:
    return list(sources) if isinstance(sources, (list, tuple)) else [sources]


def _streamed(sources: Any) -> bool:
    return any(source.streaming for source in _listed(sources))


def refuse_stream(config: RunConfig, sources: Any, *, training: bool) -> None:
    """Refuse a stream where this run needs all rows at once.

    Raises:
        ConfigurationError: names the reason.
    """
    tokens = _wanted_tokens(config) if training else None
    reasons = {
        "held-out rows are read whole, because they are measured again and again": not training,
        f"{config.algorithm.key} counts its rows, and a stream does not know how many it has": tokens is None,
        "task.packing sorts rows by length": tokens == "whole",
        "a mixture draws from sources whose length it knows; name one source": len(_listed(sources)) > 1,
        "a stream has no end to count epochs by; set train.max_steps": config.train.max_steps is None,
        "several workers would each read the whole stream; set train.dataloader_workers: 0": bool(
            config.train.dataloader_workers
        ),
        "algo.precompute_ref_log_probs goes through all rows before training": getattr(
            config.algorithm, "precompute_ref_log_probs", False
        ),
    }
    for reason, hit in reasons.items():
        if hit:
            raise ConfigurationError(f"streaming cannot be used here: {reason}", hint="or remove streaming")


def _stream(trainer: Trainer, sources: Any, *, training: bool, **limits: Any) -> Prepared:
    from aligntune.data.streaming import open_stream

    config = trainer.config
    refuse_stream(config, sources, training=training)
    return open_stream(
        _listed(sources)[0],
        config.algorithm.data,
        trainer.tokenizer,
        max_length=limits["max_length"],
        loss_on=limits["loss_on"],
        cache_dir=config.cache.dir,
    )


def write_skipped(trainer: Trainer) -> None:
    """Write the rows that were left out or could not be read into the run's folder, if there are any."""
    from aligntune.utils.files import rewrite_lines

    both = {"training": trainer._train_data, "held-out": trainer._eval_data}
    found = {label: prepared.skipped for label, prepared in both.items() if prepared is not None}
    count = sum(map(len, found.values()))
    if count:
        lines = ({"data": label, **row} for label, rows in found.items() for row in rows)
        rewrite_lines(trainer._run.path / SKIPPED_FILE, lines)
        trainer._tell([f"{count} rows are not trained or measured on; they stand in {SKIPPED_FILE} with the reason"])
