"""The bare library's side of a probe: its own class, tokenisation, mask and loss, and nothing of AlignTune's.

    hf = bare_trainer(trainer)          # TRL's or Transformers' class with the run's arguments and rows

| algorithm | class | its rows |
|---|---|---|
| sft, dpo, kto, grpo and its kin | the class that the algorithm stands on | the run's, before tokenisation |
| simpo, cpo | `trl.experimental.cpo.CPOTrainer` | their texts, which end as the template ends |
| orpo | `trl.experimental.orpo.ORPOTrainer` | the same |
| gkd | `trl.experimental.gkd.GKDTrainer` | tokens and mask of TRL's `SFTTrainer` |
| classifiers | `transformers.Trainer` | tokens of the tokenizer, labels by character |

The likelihood term of CPO and ORPO is a mean over each answer's tokens, then over pairs, as in the papers; TRL takes it
over all tokens of a batch, in ORPO the prompt's too. There the bare side takes its own log-probabilities of the answers
for that term, and the probe says so.

Source: TRL 1.14.2, Transformers 5.17. It compares nothing; `probe_verdict` does.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from aligntune.core.config.root import RunConfig
from aligntune.registry import import_attribute

if TYPE_CHECKING:
    from aligntune.algorithms.plugin import Plugin

HOOKS = ("rollout", "advantages", "token_weights", "micro_batch", "token_loss", "batch_loss")
"""Methods of a plugin that change a loss; a bare trainer has none of them."""
EXPERIMENTAL = {"simpo": "cpo", "cpo": "cpo", "orpo": "orpo", "gkd": "gkd"}
"""Algorithm to the folder of `trl.experimental` that has its trainer."""
LIKELIHOOD = ("cpo", "orpo")
"""Algorithms whose likelihood term TRL averages over all tokens of a batch."""


def bare_refusal(config: RunConfig) -> str | None:
    """Why the bare library has no loss to compare this run's with; None where it has."""
    params: Any = config.algorithm
    if params.driver:
        return f"{params.key} is not an algorithm of the bare library"
    if params.head != "causal_lm":
        if params.class_weights != "none" or getattr(params, "balanced_sampling", False):
            return "the weights of the classes are AlignTune's own"
        return None
    if params.uses_rewards:
        plugin: Plugin = params.plugin(config)
        return f"the loss of {params.key} is AlignTune's own" if _changes(plugin) else None
    if params.key in EXPERIMENTAL:
        if params.key == "gkd" and params.temperature != 1.0:
            return "the bare library does not read the temperature of distillation"
        name = f"trl.experimental.{EXPERIMENTAL[params.key]}"
        return None if _there(name) else f"this release of TRL has no {name}"
    if any(name in vars(cls) for cls in type(params).__mro__ for name in ("objective", "divergence")):
        return f"the loss of {params.key} is AlignTune's own"
    if getattr(params, "reference", None) or getattr(params, "reference_free", False):
        return f"the reference of {params.key} is set by AlignTune"
    return None


def bare_notes(config: RunConfig) -> list[str]:
    """What a reader must know of the bare side."""
    if config.algorithm.key in LIKELIHOOD:
        return [
            "bare TRL's likelihood term is taken over each answer's tokens here, as the paper has it; TRL averages it "
            "over all tokens of a batch" + (", the prompt's too" if config.algorithm.key == "orpo" else "")
        ]
    return []


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _changes(plugin: Plugin) -> bool:
    from aligntune.algorithms.plugin import Plugin

    return plugin.loss_beta is not None or any(getattr(type(plugin), h) is not getattr(Plugin, h) for h in HOOKS)


def bare_trainer(trainer: Any) -> Any:
    """The library's trainer with the run's arguments, on the run's rows.

    Args:
        trainer: a run's, with its rows read; its model is loaded here.
    """
    params = trainer.config.algorithm
    if params.head != "causal_lm":
        return _classifier(trainer)
    if params.key == "gkd":
        return _distiller(trainer)
    if params.key in EXPERIMENTAL:
        return _pairwise(trainer)
    args = trainer.backend.args_class(params)(**trainer.arguments())
    for key, value in params.late_arguments(trainer.config).items():
        setattr(args, key, value)
    rewards = {"reward_funcs": [lambda completions, **_: [0.0] * len(completions)]} if params.uses_rewards else {}
    if params.uses_rewards:
        args.reward_weights = None
    return trainer.backend.trainer_class(params)(
        model=trainer._load().model,
        args=args,
        train_dataset=trainer._train_rows().dataset,
        processing_class=trainer.tokenizer,
        **rewards,
    )


def _shared(trainer: Any, cls: type, **own: Any) -> Any:
    """A configuration class with those of the run's values that it has, and the algorithm's own."""
    import dataclasses

    names = {f.name for f in dataclasses.fields(cls) if f.init}
    return cls(**{k: v for k, v in {**trainer.arguments(), **own}.items() if k in names})


# ---- pairs ---------------------------------------------------------------------------------------------------


def _pairwise(trainer: Any) -> Any:
    params = trainer.config.algorithm
    folder = f"trl.experimental.{EXPERIMENTAL[params.key]}"
    name = EXPERIMENTAL[params.key].upper()
    own: dict[str, Any] = {"max_length": trainer.config.model.max_seq_length, "disable_dropout": True}
    own |= {"beta": params.beta, "remove_unused_columns": False, "loss_type": "sigmoid"}
    if params.key == "simpo":
        own |= {"loss_type": "simpo", "simpo_gamma": params.gamma, "cpo_alpha": 0.0}
    if params.key == "cpo":
        own["cpo_alpha"] = params.nll_weight
    cls: Any = import_attribute(f"{folder}:{name}Trainer")
    if params.key in LIKELIHOOD:
        cls = _by_answer(cls, averaged=params.key == "orpo")
    rows = _texts(trainer)
    return cls(
        model=trainer._load().model,
        args=_shared(trainer, import_attribute(f"{folder}:{name}Config"), **own),
        train_dataset=rows,
        processing_class=_ending(trainer.tokenizer, rows),
    )


def _by_answer(base: Any, *, averaged: bool) -> Any:
    """`base` with the likelihood of each chosen answer by its own tokens, out of the log-probabilities of `base`.

    Args:
        base: TRL's CPOTrainer or ORPOTrainer.
        averaged: whether its log-probabilities are means already.
    """

    class ByAnswer(base):  # type: ignore[misc]
        def concatenated_forward(self, model: Any, batch: Any) -> Any:
            chosen, *rest = super().concatenated_forward(model, batch)
            tokens = 1 if averaged else (batch["chosen_labels"] != -100).sum(1)
            rest[3] = -(chosen / tokens).mean()
            return (chosen, *rest)

    return ByAnswer


def _texts(trainer: Any) -> Any:
    """The run's pairs as texts: the prompt up to the answer, and both answers to the end of the template."""
    import datasets

    from aligntune.data.tokens import Tokens

    rows, tokens = trainer._train_rows().dataset, Tokens(trainer.tokenizer)
    made = []
    for row in rows:
        if tokens.plain:
            made.append({k: row[k] for k in ("prompt", "chosen", "rejected")})
            continue
        prompt = trainer.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        pair = {}
        for side in ("chosen", "rejected"):
            whole = trainer.tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            pair[side] = whole[len(prompt) :]
        made.append({"prompt": prompt, **pair})
    return datasets.Dataset.from_list(made)


def _ending(tokenizer: Any, rows: Any) -> Any:
    """A copy of the tokenizer whose end token is the last one of an answer, so that no second one is put behind it.

    A template may write more after the end token, such as a line break; there the library would add another.
    """
    import copy

    last = tokenizer(rows[0]["chosen"], add_special_tokens=False)["input_ids"][-1]
    if not tokenizer.chat_template or last == tokenizer.eos_token_id:
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(last)
    return other


# ---- distillation and classifiers ------------------------------------------------------------------------------


def _distiller(trainer: Any) -> Any:
    """TRL's GKDTrainer over the tokens and the mask that TRL's SFTTrainer makes of the rows."""
    from aligntune.core.rl.distill import load_teacher

    params = trainer.config.algorithm
    model = trainer._load().model
    common = {"train_dataset": trainer._train_rows().dataset, "processing_class": trainer.tokenizer}
    sft = trainer.backend.trainer_class(params)(
        model=model, args=trainer.backend.args_class(params)(**trainer.arguments()), **common
    )
    own = {"beta": params.beta, "lmbda": 0.0, "seq_kd": False, "temperature": 1.0, "disable_dropout": True}
    return import_attribute("trl.experimental.gkd:GKDTrainer")(
        model=model,
        teacher_model=load_teacher(trainer),
        args=_shared(trainer, import_attribute("trl.experimental.gkd:GKDConfig"), **own),
        train_dataset=sft.train_dataset,
        data_collator=sft.data_collator,
        processing_class=trainer.tokenizer,
    )


def _classifier(trainer: Any) -> Any:
    """Transformers' Trainer with the model's own loss."""
    import datasets
    import transformers

    tokenizer, limit = trainer.tokenizer, trainer._limit
    rows, names = trainer._train_rows().dataset, trainer.labels.names
    words = trainer.config.algorithm.head == "token_classification"
    made = []
    for row in rows:
        text = " ".join(row["tokens"]) if words else row["text"]
        encoded = tokenizer(text, truncation=True, max_length=limit)
        one = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        made.append({**one, "labels": _tags(row, encoded, names) if words else names.index(row["label"])})
    kinds = {True: transformers.DataCollatorForTokenClassification, False: transformers.DataCollatorWithPadding}
    return transformers.Trainer(
        model=trainer._load().model,
        args=transformers.TrainingArguments(**trainer.arguments()),
        train_dataset=datasets.Dataset.from_list(made),
        data_collator=kinds[words](tokenizer),
        processing_class=tokenizer,
    )


def _tags(row: dict[str, Any], encoded: Any, names: list[str]) -> list[int]:
    """One label for each token: a word's tag at the token of its first character, -100 elsewhere."""
    labels, start = [-100] * len(encoded["input_ids"]), 0
    for word, tag in zip(row["tokens"], row["tags"], strict=True):
        at = encoded.char_to_token(start)
        if at is not None:
            labels[at] = names.index(tag)
        start += len(word) + 1
    return labels
