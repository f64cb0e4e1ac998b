"""Models that need no download: Llama, Qwen and Phi architectures with random weights, and the quickstart's data.

    build("llama", "1b", settings)      # a folder in the Hugging Face layout, made once

The tokenizer is that of the quickstart's base model (261 tokens). Where speed and memory are measured the embedding has
as many rows as the architecture's own vocabulary, since the logits are much of both; where answers are sampled it has
the tokenizer's, so that every sampled token is one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gpu.child import answer
from gpu.record import Settings, Values

ARCHITECTURES = {"llama": 128_256, "qwen": 151_936, "phi": 32_064}
"""Name to the vocabulary of its published models (Llama 3, Qwen 2.5, Phi 3)."""
SIZES: dict[str, Values] = {
    "tiny": {"hidden": 64, "layers": 2, "inner": 128, "heads": 4, "keys": 2},
    "0.1b": {"hidden": 768, "layers": 12, "inner": 2048, "heads": 12, "keys": 4},
    "0.5b": {"hidden": 1024, "layers": 24, "inner": 4096, "heads": 16, "keys": 4},
    "1b": {"hidden": 2048, "layers": 16, "inner": 8192, "heads": 32, "keys": 8},
    "3b": {"hidden": 3072, "layers": 28, "inner": 8192, "heads": 24, "keys": 8},
}
"""Shapes; 1b and 3b are those of Llama 3.2."""
BUILD = """
import torch, transformers
from aligntune.quickstart import BASE_MODEL
s = given["shape"]
tokenizer = transformers.AutoTokenizer.from_pretrained(str(BASE_MODEL))
name = {"llama": "Llama", "qwen": "Qwen2", "phi": "Phi3"}[given["architecture"]]
config = getattr(transformers, name + "Config")(
    vocab_size=max(len(tokenizer), given["vocabulary"]), hidden_size=s["hidden"], intermediate_size=s["inner"],
    num_hidden_layers=s["layers"], num_attention_heads=s["heads"], num_key_value_heads=s["keys"],
    max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None,
    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if given["half"] else torch.float32
with torch.device(device):
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
if given["labels"]:
    config.num_labels = given["labels"]
model.save_pretrained(given["folder"])
tokenizer.save_pretrained(given["folder"])
head = model.get_output_embeddings()
linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
result = {
    "parameters": sum(p.numel() for p in model.parameters()), "linear": linear + head.weight.numel(),
    "layers": s["layers"], "width": s["heads"] * getattr(config, "head_dim", s["hidden"] // s["heads"]),
    "vocabulary": config.vocab_size,
}
"""


def build(architecture: str, size: str, settings: Settings, *, small_vocabulary: bool = False) -> tuple[Path, Values]:
    """A model's folder, made if it is missing, and its figures.

    Args:
        architecture: a key of `ARCHITECTURES`.
        size: a key of `SIZES`; every size is tiny in the tiny form.
        settings: of the suite; a hub model of this architecture takes the place of a built one.
        small_vocabulary: as many rows as the tokenizer has tokens.
    """
    if architecture in settings.hub:
        return Path(settings.hub[architecture]), {"hub": settings.hub[architecture]}
    size = "tiny" if settings.tiny else size
    small_vocabulary = small_vocabulary or settings.tiny
    name = f"{architecture}-{size}" + ("-small-vocabulary" if small_vocabulary else "")
    folder = settings.work / "models" / name
    figures = folder / "figures.json"
    if not figures.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        found = answer(
            BUILD, 300, settings, architecture=architecture, shape=SIZES[size], folder=folder, labels=0,
            vocabulary=0 if small_vocabulary else ARCHITECTURES[architecture], half=size in ("1b", "3b"),
        )  # fmt: skip
        figures.write_text(json.dumps(found), encoding="utf-8")
    return folder, json.loads(figures.read_text(encoding="utf-8"))


def data(settings: Settings) -> dict[str, Path]:
    """Files of rows by kind, made if they are missing: sft, rl, test, pairs, judged, text, chat, labels, tags, long."""
    folder = settings.work / "data"
    kinds = ("sft", "rl", "test", "pairs", "judged", "text", "chat", "labels", "tags", "long")
    files = {kind: folder / f"{kind}.jsonl" for kind in kinds}
    if files["long"].is_file():
        return files
    from aligntune.quickstart.problems import write_datasets

    small = {"sft": 400, "rl": 200, "test": 100, "pairs_train": 100, "pairs_test": 100}
    made = write_datasets(folder / "quickstart", sizes=small if settings.tiny else None)
    rows = {k: [json.loads(line) for line in made[k].read_text().splitlines()] for k in ("sft", "rl", "test")}
    rows["pairs"] = [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": _wrong(r)} for r in rows["sft"][:4000]
    ]
    rows["judged"] = [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
        for r in rows["pairs"]
        for side in ("chosen", "rejected")
    ]
    texts = [r["prompt"][0]["content"] + " " + r["completion"][0]["content"] for r in rows["sft"]]
    rows["text"] = [{"text": text} for text in texts]
    rows["chat"] = [{"messages": r["prompt"] + r["completion"]} for r in rows["sft"]]
    rows["labels"] = [{"text": t, "label": "long" if len(t) > 24 else "short"} for t in texts]
    rows["tags"] = [
        {"tokens": list(t), "tags": ["digit" if c.isdigit() else "O" for c in t]}
        for t in ("".join(text.split())[:12] for text in texts)
    ]
    repeats = 4 if settings.tiny else 130
    rows["long"] = [{"text": (t + " ") * repeats} for t in texts[: 200 if settings.tiny else 2000]]
    for kind, file in files.items():
        if kind != "long":
            _write(file, rows[kind])
    _write(files["long"], rows["long"])  # the last one, whose presence says that all are there
    return files


def _wrong(row: Values) -> list[Values]:
    """The row's answer with another sum."""
    text = row["completion"][0]["content"]
    head, mark, number = text.rpartition("#### ")
    return [{"role": "assistant", "content": f"{head}{mark}{int(number) + 7}"}]


def _write(file: Path, rows: list[Values]) -> None:
    aside = file.with_suffix(".part")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    aside.replace(file)
