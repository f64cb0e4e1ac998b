"""How well the soft rewards agree with people: as detectors of offensive text, and as rankers of preference pairs.

    python benchmarks/reward_quality.py [--data ../shared/data] [--out benchmarks/results/reward_quality.json]

Detectors: AUC against the labels of the hate speech set (Davidson et al. 2017, class 2 against 0 and 1), on held-out
tweets; of `toxicity` by a small classifier that is trained here from random weights with our own text_classification
task on other tweets of the set, F1 too. Rankers: the share of pairs in which the preferred answer scores higher (a tie
counts a half) on HH-RLHF's harmless test pairs and on PandaLM's human-labelled pairs, over all pairs and over those of
nearly equal length (within 10%). A coin gives 0.5 in both.

Intervals are 95%: of shares by Student's t on the pairs (Wilson where there are no ties), of AUC and F1 by 1,000
bootstrap resamples of the rows. About one processor minute.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).parent
TRAIN, TEST = 3_000, 2_012
LABELS = ("neither", "offensive", "hate")
PAIR_REWARDS: dict[str, dict[str, Any]] = {
    "sentiment": {"backend": "lexical"},
    "readability": {"formula": "ari"},
    "readability (Coleman-Liau)": {"formula": "coleman_liau"},
    "readability (LIX)": {"formula": "lix"},
    "repetition": {},
    "compression_ratio": {},
    "length": {},
    "brevity": {},
}


# ---- data ----------------------------------------------------------------------------------------------------------


def tweets(data: Path) -> list[tuple[str, str]]:
    """(text, label) of the hate speech set, shuffled with a fixed seed; duplicates of a text left out."""
    with (data / "hate_speech" / "labeled_data.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["tweet"]: LABELS[2 - int(row["class"])] for row in csv.DictReader(file)}
    found = list(rows.items())
    random.Random(0).shuffle(found)
    return found


def hh_pairs(data: Path) -> list[tuple[str, str]]:
    """(preferred, other) last answers of HH-RLHF."""
    lines = (data / "hh_rlhf" / "harmless-base-test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [tuple(row[k].rpartition("\n\nAssistant:")[2].strip() for k in ("chosen", "rejected")) for row in rows]  # type: ignore[misc]


def panda_pairs(data: Path) -> list[tuple[str, str]]:
    """(preferred, other) answers of PandaLM by the majority of three annotators; ties left out."""
    found = []
    for row in json.loads((data / "pandalm" / "testset-v1.json").read_text(encoding="utf-8")):
        votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
        best = max((1, 2), key=votes.count)
        if votes.count(best) >= 2:
            found.append((row[f"response{best}"], row[f"response{3 - best}"]))
    return found


# ---- statistics ----------------------------------------------------------------------------------------------------


def auc(scores: Any, positive: Any) -> float:
    """Area under the ROC curve by ranks, ties counted a half (Mann and Whitney 1947)."""
    import numpy as np

    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def f1(scores: Any, positive: Any) -> float:
    """F1 of the positive class at a score of 0.5 or more."""
    told = scores >= 0.5
    right = int((told & positive).sum())
    return 2 * right / max(1, int(told.sum()) + int(positive.sum()))


def bootstrapped(
    measure: Callable[[Any, Any], float], scores: Sequence[float], positive: Sequence[bool]
) -> dict[str, Any]:
    """A measure with its percentile interval."""
    import numpy as np

    x, y, rng = np.array(scores), np.array(positive), np.random.default_rng(0)
    drawn = [measure(x[i], y[i]) for i in (rng.integers(0, len(x), len(x)) for _ in range(1_000))]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": round(measure(x, y), 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": len(x)}


def ranked(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Share of pairs whose first score is higher, a tie a half; pairs without a score left out."""
    from aligntune.eval.stats import proportion_or_mean

    wins = [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in pairs if a is not None and b is not None]
    found = proportion_or_mean(wins)
    ties = sum(w == 0.5 for w in wins)
    return {
        "value": round(found.estimate, 4),
        "low": None if found.low is None else round(found.low, 4),
        "high": None if found.high is None else round(found.high, 4),
        "n": len(wins),
        "ties": ties,
    }


# ---- the classifier ------------------------------------------------------------------------------------------------


def save_encoder(folder: Path, texts: Sequence[str]) -> Path:
    """An untrained ModernBERT, 2 layers of width 64, with a byte-level BPE tokenizer that is trained on `texts`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=512, local_attention=16, classifier_pooling="mean",
        initializer_range=0.05, embedding_dropout=0.3, mlp_dropout=0.3, classifier_dropout=0.3,
        pad_token_id=0, cls_token_id=1, bos_token_id=1, sep_token_id=2, eos_token_id=2,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def train_classifier(rows: Sequence[tuple[str, str]], folder: Path) -> tuple[Path, float]:
    """Train on (text, label); the model's folder and the processor seconds."""
    from aligntune.core.backend_factory import create_trainer

    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows), encoding="utf-8")
    started = time.process_time()
    trainer = create_trainer(
        {
            "task": {"name": "text_classification", "class_weights": "balanced"},
            "model": {"name_or_path": str(save_encoder(folder / "start", [t for t, _ in rows])), "max_seq_length": 96},
            "dataset": str(data),
            "train": {
                "num_epochs": 8, "per_device_batch_size": 64, "learning_rate": 3e-3, "warmup_ratio": 0.1,
                "weight_decay": 0.1, "seed": 0,
            },
            "logging": {"steps": 50},
            "output_dir": str(folder / "classifier"),
        }
    )  # fmt: skip
    trainer.train()
    return Path(trainer.config.output_dir), round(time.process_time() - started, 1)


def offensive(model: Path, texts: Sequence[str]) -> list[float]:
    """1 - P(neither) of each text."""
    from aligntune.rewards.models import TextClassifier

    return [1 - p["neither"] for p in TextClassifier(str(model), batch_size=64).probabilities(texts)]


# ---- the measurement -----------------------------------------------------------------------------------------------


def telling_words(rows: Sequence[tuple[str, str]], count: int = 20) -> list[str]:
    """The words whose presence raises the odds of an offensive tweet most, in at least 10 tweets."""
    from aligntune.grading.text import words

    having = {True: Counter[str](), False: Counter[str]()}
    for text, label in rows:
        having[label != "neither"].update(set(words(text)))
    often = [w for w, n in (having[True] + having[False]).items() if n >= 10 and len(w) > 2]
    return sorted(often, key=lambda w: -(having[True][w] + 0.5) / (having[False][w] + 0.5))[:count]


def detectors(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], model: Path) -> dict[str, Any]:
    """AUC (and F1) of each score as a detector of offensive tweets."""
    from aligntune.rewards import get_reward_function

    texts, positive = [t for t, _ in test], [label != "neither" for _, label in test]
    scores = offensive(model, texts)
    found: dict[str, Any] = {"toxicity (classifier trained here)": bootstrapped(auc, scores, positive)}
    found["toxicity (classifier trained here), F1 at 0.5"] = bootstrapped(f1, scores, positive)
    found["F1 of calling every tweet offensive"] = bootstrapped(f1, [1.0] * len(texts), positive)
    listed = model / "words.txt"
    listed.write_text("\n".join(telling_words(train)), encoding="utf-8")
    lexical = get_reward_function("toxicity", backend="lexical", words=str(listed))
    alarms = [1 - (score or 0.0) for score in lexical.batch(texts)]
    found["toxicity (list of 20 words of the training tweets)"] = bootstrapped(auc, alarms, positive)
    found["toxicity (list of 20 words of the training tweets), F1"] = bootstrapped(f1, alarms, positive)
    found["share of offensive tweets"] = round(sum(positive) / len(positive), 4)
    bad = [(s, label == "hate") for s, (_, label) in zip(scores, test, strict=True) if label != "neither"]
    found["the same, hate against merely offensive"] = bootstrapped(auc, [s for s, _ in bad], [h for _, h in bad])
    for name, params in PAIR_REWARDS.items():
        reward = get_reward_function(name.partition(" ")[0], **params)
        found[f"-{name}"] = bootstrapped(auc, [-(s or 0.0) for s in reward.batch(texts)], positive)
    return found


def rankers(pairs: Sequence[tuple[str, str]], model: Path) -> dict[str, Any]:
    """Pair accuracy of each reward, over all pairs and over those of nearly equal length."""
    from aligntune.rewards import get_reward_function

    flat = [text for pair in pairs for text in pair]
    sizes = [len(t) for t in flat]
    scores: dict[str, list[float | None]] = {
        name: get_reward_function(name.partition(" ")[0], **params).batch(flat) for name, params in PAIR_REWARDS.items()
    }
    scores["-toxicity (classifier trained on tweets)"] = [-p for p in offensive(model, flat)]
    scores["number of characters"] = [float(n) for n in sizes]
    near = [i for i in range(0, len(flat), 2) if abs(sizes[i] - sizes[i + 1]) <= 0.1 * max(sizes[i : i + 2])]
    return {
        name: {
            "all": ranked(list(zip(values[::2], values[1::2], strict=True))),
            "equal_length": ranked([(values[i], values[i + 1]) for i in near]),
        }
        for name, values in scores.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "reward_quality.json")
    options = parser.parse_args()
    started = time.process_time()
    rows = tweets(options.data)
    with tempfile.TemporaryDirectory() as folder:
        model, seconds = train_classifier(rows[:TRAIN], Path(folder))
        result = {
            "machine": machine.describe(),
            "classifier": {"train_rows": TRAIN, "epochs": 8, "processor_seconds": seconds, "labels": LABELS},
            "detectors": detectors(rows[:TRAIN], rows[TRAIN : TRAIN + TEST], model),
            "rankers": {
                "hh_rlhf": rankers(hh_pairs(options.data), model),
                "pandalm": rankers(panda_pairs(options.data), model),
            },
        }
    result["processor_seconds"] = round(time.process_time() - started, 1)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
