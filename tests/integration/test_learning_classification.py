"""What the classification tasks reach on real data, beside a linear model on the same rows; run with `-m slow`.

The models are small encoders made here and trained from scratch on the rows alone, with a tokenizer trained on them
too, because no pretrained encoder comes with the project: the numbers say that the tasks learn, not what a pretrained
model would reach. The linear model is multinomial logistic regression: on banking77 over words and word pairs, on
WNUT17 over each word, its neighbours, its shape and its affixes. The results are written to
`benchmarks/results/learning_classification.json`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "learning_classification.json"
CLASSES = 30
"""So many of banking77's 77 classes, the first of its list of categories."""


# ---- models made here --------------------------------------------------------------------------------------------


def save_encoder(folder: Path, texts: Sequence[str], *, seed: int) -> Path:
    """An untrained ModernBERT, 2 layers of width 64, with a byte-level BPE tokenizer that is trained on `texts`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=3000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=256, local_attention=8, classifier_pooling="mean",
        initializer_range=0.05, embedding_dropout=0.3, mlp_dropout=0.3, classifier_dropout=0.3,
        pad_token_id=0, cls_token_id=1, bos_token_id=1, sep_token_id=2, eos_token_id=2,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def linear(
    train: Sequence[Iterable[str]], gold: Sequence[int], test: Sequence[Iterable[str]], classes: int, l2: float
) -> list[int]:
    """Logistic regression over sets of features, by full-batch L-BFGS; features seen twice in training count."""
    import torch

    counts: dict[str, int] = {}
    for row in train:
        for feature in set(row):
            counts[feature] = counts.get(feature, 0) + 1
    index = {feature: i for i, feature in enumerate(f for f, n in counts.items() if n > 1)}

    def table(rows: Sequence[Iterable[str]]) -> Any:
        pairs = [(i, index[f]) for i, row in enumerate(rows) for f in set(row) if f in index]
        at = torch.tensor(pairs).T
        return torch.sparse_coo_tensor(at, torch.ones(at.shape[1]), (len(rows), len(index))).coalesce()

    rows, labels = table(train), torch.tensor(gold)
    weights = torch.zeros(len(index), classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    search = torch.optim.LBFGS([weights, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Any:
        search.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(torch.sparse.mm(rows, weights) + bias, labels)
            + l2 * weights.square().sum()
        )
        loss.backward()
        return loss

    search.step(closure)
    with torch.no_grad():
        return (torch.sparse.mm(table(test), weights) + bias).argmax(-1).tolist()  # type: ignore[no-any-return]


def run(raw: dict[str, Any]) -> tuple[Any, Any]:
    from aligntune.core.backend_factory import create_trainer

    trainer = create_trainer(raw)
    return trainer, trainer.train()


def record(name: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Put the rows of one experiment into the result file."""
    sys.path.insert(0, str(RESULTS.parents[1]))
    import machine

    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known["machine"] = machine.describe()
    known[name] = {**about, "seeds": rows}
    RESULTS.write_text(json.dumps(known, indent=2) + "\n")


# ---- banking77 ---------------------------------------------------------------------------------------------------


def banking(shared: Path, folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the first classes of banking77, written as JSON lines."""
    import csv

    source = shared / "data" / "banking77"
    wanted = set(json.loads((source / "categories.json").read_text())[:CLASSES])
    parts = []
    for name in ("train", "test"):
        with (source / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["category"] in wanted]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts.append(rows)
    return parts[0], parts[1]


def words_and_pairs(text: str) -> list[str]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


def test_banking77(shared: Path, tmp_path: Path) -> None:
    from aligntune.eval.classification import label_scores

    train, test = banking(shared, tmp_path)
    names = sorted({row["category"] for row in train})
    guess = linear(
        [words_and_pairs(row["text"]) for row in train],
        [names.index(row["category"]) for row in train],
        [words_and_pairs(row["text"]) for row in test],
        len(names),
        l2=3e-6,
    )
    baseline = label_scores([row["category"] for row in test], [names[i] for i in guess])
    rows = []
    for seed in range(3):
        model = save_encoder(tmp_path / f"model-{seed}", [r["text"] for r in train], seed=seed)
        started = time.process_time()
        trainer, result = run(
            {
                "task": "text_classification",
                "model": {"name_or_path": str(model), "max_seq_length": 96},
                "dataset": str(tmp_path / "train.jsonl"),
                "evaluation": {"dataset": str(tmp_path / "test.jsonl"), "batch_size": 64},
                "train": {
                    "num_epochs": 16, "per_device_batch_size": 64, "learning_rate": 4e-3, "warmup_ratio": 0.1,
                    "weight_decay": 0.1, "seed": seed,
                },
                "logging": {"steps": 50},
                "output_dir": str(tmp_path / f"out-{seed}"),
            }
        )  # fmt: skip
        rows.append(
            {
                "seed": seed,
                "accuracy": result["eval_accuracy"],
                "f1_macro": result["eval_f1_macro"],
                "processor_seconds": round(time.process_time() - started, 1),
                "parameters": trainer.model.num_parameters(),
            }
        )
    record(
        "banking77",
        rows,
        {
            "classes": len(names), "train_rows": len(train), "test_rows": len(test), "chance": 1 / len(names),
            "linear": {"accuracy": baseline["accuracy"], "f1_macro": baseline["f1_macro"]},
        },
    )  # fmt: skip
    print(baseline["accuracy"], rows)
    assert all(row["accuracy"] > 0.88 for row in rows)
    assert all(row["accuracy"] > baseline["accuracy"] - 0.04 for row in rows)


# ---- WNUT17 ------------------------------------------------------------------------------------------------------


def shape(word: str) -> str:
    return re.sub(r"(.)\1+", r"\1", re.sub(r"[0-9]", "0", re.sub(r"[a-z]", "x", re.sub(r"[A-Z]", "X", word))))


def features(words: Sequence[str], i: int) -> list[str]:
    found = ["bias"]
    for offset in (-1, 0, 1):
        word = words[i + offset] if 0 <= i + offset < len(words) else "<edge>"
        found += [f"{offset} {word.lower()}", f"{offset} shape {shape(word)}"]
    word = words[i].lower()
    return [*found, f"begins {word[:3]}", f"ends {word[-3:]}"]


def test_wnut17(shared: Path, tmp_path: Path) -> None:
    from aligntune.algorithms.base import Schema
    from aligntune.core.config import DatasetConfig
    from aligntune.data import prepare_dataset
    from aligntune.eval.entities import entity_scores

    folder = shared / "data" / "wnut17"
    files = {"train": folder / "wnut17train.conll", "test": folder / "emerging.dev.conll"}
    data = {
        name: prepare_dataset(DatasetConfig(name=str(path)), Schema.TOKENS, seed=0).dataset.to_list()
        for name, path in files.items()
    }
    names = sorted({tag for row in data["train"] for tag in row["tags"]})
    flat = {
        name: [features(row["tokens"], i) for row in rows for i in range(len(row["tokens"]))]
        for name, rows in data.items()
    }
    gold = [names.index(tag) for row in data["train"] for tag in row["tags"]]
    left = iter(linear(flat["train"], gold, flat["test"], len(names), l2=1e-6))
    guess = [[names[next(left)] for _ in row["tokens"]] for row in data["test"]]
    baseline = entity_scores([row["tags"] for row in data["test"]], guess)
    texts = [" ".join(row["tokens"]) for row in data["train"]]
    rows = []
    for seed in range(3):
        model = save_encoder(tmp_path / f"model-{seed}", texts, seed=seed)
        started = time.process_time()
        trainer, result = run(
            {
                "task": {"name": "token_classification"},
                "model": {"name_or_path": str(model), "max_seq_length": 128},
                "dataset": str(files["train"]),
                "evaluation": {"dataset": str(files["test"]), "batch_size": 32},
                "train": {
                    "num_epochs": 6, "per_device_batch_size": 32, "learning_rate": 4e-3, "warmup_ratio": 0.1,
                    "weight_decay": 0.1, "seed": seed,
                },
                "logging": {"steps": 50},
                "output_dir": str(tmp_path / f"out-{seed}"),
            }
        )  # fmt: skip
        rows.append(
            {
                "seed": seed,
                **{k: result[f"eval_{k}"] for k in ("precision", "recall", "f1", "accuracy")},
                "processor_seconds": round(time.process_time() - started, 1),
                "parameters": trainer.model.num_parameters(),
            }
        )
    everything_outside = entity_scores(
        [r["tags"] for r in data["test"]], [["O"] * len(r["tags"]) for r in data["test"]]
    )
    record(
        "wnut17",
        rows,
        {
            "train_rows": len(data["train"]), "test_rows": len(data["test"]), "entities": baseline["entities"],
            "all_outside": {"f1": everything_outside["f1"]},
            "linear": {k: baseline[k] for k in ("precision", "recall", "f1")},
        },
    )  # fmt: skip
    print({k: baseline[k] for k in ("precision", "recall", "f1")}, rows)
    assert all(row["f1"] > 0.12 for row in rows)
    assert all(row["f1"] > baseline["f1"] - 0.08 for row in rows)
