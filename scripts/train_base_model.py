"""Train the quickstart's base model from scratch, on text that this script generates.

Writes a model folder (config, weights, tokenizer with chat template, generation settings) and ``TRAINING.json``
with the command, the time, the weights' SHA-256 and the model's accuracy. The text is lines of sums, one after the
other, in which people answer in many wordings and in two ways, at once or by running sums::

    12+34+25=71
    12+34+25: 46 71
    12+34+25=? so 46 71
    total 71

There are two lessons, each with a fresh optimizer. The first trains on single plain lines (``=`` and ``:``), each
closed by the end token, and teaches the skill, which rises sharply there. The second goes on with running text of all
wordings, in which lines just follow each other. No line holds ``####`` or a chat role, and tokens that the second
lesson did not use, the end token among them, get a neutral output: the model can add in part, but knows neither the
answer format, nor the chat, nor when to stop.

Example (one CPU thread; three quarters of an hour on a shared core)::

    OMP_NUM_THREADS=1 python scripts/train_base_model.py --out src/aligntune/quickstart/base

Source: written for this project; the architecture is Llama (arXiv:2302.13971) through transformers.
Does not: run as part of the quickstart, which ships its result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import re
import string
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from aligntune.quickstart import problems as P

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIALS = [PAD, END, SYSTEM, USER, ASSISTANT]

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '" + ASSISTANT + "' -}}"
    "{%- generation -%}{{- message['content'] + '" + END + "' -}}{%- endgeneration -%}"
    "{%- elif message['role'] == 'system' -%}"
    "{{- '" + SYSTEM + "' + message['content'] -}}"
    "{%- else -%}"
    "{{- '" + USER + "' + message['content'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + ASSISTANT + "' -}}{%- endif -%}"
)
"""Each role is one token; a turn of the assistant ends in the end-of-sequence token."""


def build_tokenizer() -> Any:
    """Return a tokenizer with one token per byte and per role, so that no text is unknown to it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIALS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        padding_side="right",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(args: argparse.Namespace, tokenizer: Any) -> Any:
    """Return a Llama with random weights of the size the arguments name."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Lesson:
    """What one part of the training reads, and how long and fast it learns; the defaults are the shipped model's."""

    steps: int
    learning_rate: float
    varied_share: float
    """Share of sums in varied wordings; 0 also means that every line stands alone and ends in the end token."""
    size: int
    """Lines per step where they stand alone, else rows of ``length`` tokens."""
    length: int = 64
    direct_share: float = 0.4
    worked_share: float = 0.45
    """Shares of sums at once and by running sums; the rest are sums of two numbers."""
    question_weight: float = 0.05
    """Weight in the loss of what cannot be computed, against 1 for what can."""


LESSONS = (
    Lesson(steps=8000, learning_rate=2e-3, varied_share=0.0, size=128),
    Lesson(steps=2500, learning_rate=1.5e-3, varied_share=0.7, size=48),
)

Part = tuple[Any, Any, Any]
"""Token ids, attention mask (or None) and the loss weight of each token, all of shape (rows, length)."""

FILLER = string.ascii_letters + "    ..,,::;;--*>()?!=\n\n"


def filler(rng: random.Random, longest: int = 6) -> str:
    """Return up to ``longest`` letters and marks: the wording in front of an answer."""
    return "".join(rng.choice(FILLER) for _ in range(rng.randint(0, longest)))


def line(rng: random.Random, source: Iterator[P.Problem], lesson: Lesson) -> list[tuple[str, float]]:
    """Return one line of text in segments, each with the weight of its tokens in the loss."""
    low = lesson.question_weight
    draw = rng.random()
    varied = lesson.varied_share > 0 and rng.random() < lesson.varied_share
    if draw >= lesson.direct_share + lesson.worked_share:
        first, second = rng.randint(P.LOWEST, (max(P.COUNTS) - 1) * P.HIGHEST), rng.randint(P.LOWEST, P.HIGHEST)
        return [(f"{first}+{second}=", low), (f"{first + second}\n", 1.0)]
    problem = next(source)
    asked = problem.question.removesuffix("=?")
    lead = rng.choice(("", "=", "=?", "=? ")) + filler(rng) if varied else ""
    if draw < lesson.direct_share:
        return [(asked + (lead or "="), low), (f"{problem.answer}\n", 1.0)]
    sums = " ".join(map(str, problem.running_sums))
    if not varied:
        return [(asked + ":", low), (f" {sums}\n", 1.0)]
    return [(asked + (lead or ":"), low), (sums + "\n", 1.0), (filler(rng), low), (f"{problem.answer}\n", 1.0)]


def single_lines(rng: random.Random, source: Iterator[P.Problem], tokenizer: Any, lesson: Lesson) -> list[Part]:
    """Return one step's lines, each closed by the end token, in three parts of similar length to save padding."""
    import torch

    rows = []
    for _ in range(lesson.size):
        segments = line(rng, source, lesson)
        text = "".join(text for text, _ in segments)
        rows.append((text, [weight for text, weight in segments for _ in text]))
    rows.sort(key=lambda row: len(row[0]))
    third = math.ceil(len(rows) / 3)
    parts = []
    for start in range(0, len(rows), third):
        chunk = rows[start : start + third]
        closed = [text.removesuffix("\n") + END for text, _ in chunk]
        encoded = tokenizer(closed, padding=True, padding_side="right", return_tensors="pt")
        width = encoded["input_ids"].shape[1]
        weight = torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in chunk])
        parts.append((encoded["input_ids"], encoded["attention_mask"], weight))
    return parts


def running_text(rng: random.Random, source: Iterator[P.Problem], tokenizer: Any, lesson: Lesson) -> list[Part]:
    """Return one step's rows of lines that follow each other; a row starts at a line and is cut at ``length``."""
    import torch

    texts, weights = [], []
    for _ in range(lesson.size):
        text, weight = "", []
        while len(text) < lesson.length:
            for segment, value in line(rng, source, lesson):
                text += segment
                weight += [value] * len(segment)
        texts.append(text[: lesson.length])
        weights.append(weight[: lesson.length])
    return [(tokenizer(texts, return_tensors="pt")["input_ids"], None, torch.tensor(weights))]


def settle_unseen(model: Any, seen: set[int]) -> None:
    """Give tokens that never occurred the mean vector of those that did, plus their own initial noise at the input.

    Left alone, their output rows have been pushed far down by every step, and the first fine-tuning steps would pay
    for it; around the mean is where ``resize_token_embeddings`` of transformers puts new tokens.
    """
    import torch

    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    rest = torch.tensor([i for i in range(inputs.shape[0]) if i not in seen])
    known = torch.tensor(sorted(seen))
    with torch.no_grad():
        inputs[rest] += inputs[known].mean(dim=0)
        outputs[rest] = outputs[known].mean(dim=0)


def greedy(model: Any, tokenizer: Any, prompts: list[str], new_tokens: int) -> list[str]:
    """Return the greedy continuations of ``prompts``, in their order."""
    import torch

    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        out = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    texts: list[str] = tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def accuracies(model: Any, tokenizer: Any, size: int) -> dict[str, float]:
    """Return the greedy accuracy on ``size`` held-out problems.

    ``direct`` and ``worked`` continue the raw text after ``=`` and ``:`` (first line); ``chat`` applies the chat
    template and takes the last number of at most 30 tokens, as the quickstart's grader does without ``####``.
    """
    model.eval()
    problems = P.sample("test", size, seed=0)
    texts = [p.question.removesuffix("=?") for p in problems]
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.question}], tokenize=False, add_generation_prompt=True
        )
        for p in problems
    ]
    right: dict[str, list[bool]] = {"direct": [], "worked": [], "chat": []}
    for name, prompts in (("direct", [t + "=" for t in texts]), ("worked", [t + ":" for t in texts]), ("chat", chats)):
        for problem, answer in zip(problems, greedy(model, tokenizer, prompts, 30), strict=True):
            numbers = re.findall(r"\d+", answer if name == "chat" else answer.strip().split("\n")[0])
            right[name].append(bool(numbers) and int(numbers[-1]) == problem.answer)
    result = {name: sum(hits) / len(hits) for name, hits in right.items()}
    for count in P.COUNTS:
        hits = [hit for hit, p in zip(right["direct"], problems, strict=True) if len(p.numbers) == count]
        result[f"direct_{count}_numbers"] = sum(hits) / len(hits)
    model.train()
    return {name: round(value, 4) for name, value in result.items()}


def learning_rate(step: int, lesson: Lesson) -> float:
    """Return the rate of a step: linear warm-up over 200 steps, then half a cosine down to a tenth."""
    peak = lesson.learning_rate
    if step < 200:
        return peak * (step + 1) / 200
    progress = (step - 200) / max(1, lesson.steps - 200)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train(model: Any, tokenizer: Any, lesson: Lesson, seed: int, log_every: int) -> set[int]:
    """Train ``model`` in place for one lesson, print loss and accuracies, return the token ids that occurred."""
    import torch

    rng = random.Random(f"base:{seed}")
    source = P.generate("base", rng)
    draw = running_text if lesson.varied_share else single_lines
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    started, total = time.time(), 0.0
    seen: set[int] = set()
    model.train()
    for step in range(lesson.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lesson)
        parts = draw(rng, source, tokenizer, lesson)
        scale = sum(weight[:, 1:].sum() for _, _, weight in parts)
        optimizer.zero_grad()
        for ids, mask, weight in parts:
            seen.update(ids.unique().tolist())
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            loss = (losses * weight[:, 1:]).sum() / scale
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % log_every == 0:
            scores = accuracies(model, tokenizer, 200)
            print(f"step {step + 1} loss {total / log_every:.4f} {scores} {time.time() - started:.0f} s", flush=True)
            total = 0.0
    return seen


def save(model: Any, tokenizer: Any, folder: Path) -> str:
    """Write the model folder and return the SHA-256 of its weights' file."""
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's settings; the defaults are those of the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=500)
    parser.add_argument("--test-size", type=int, default=2000, help="problems of the recorded accuracy")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, measure and write the model and its record."""
    args = parse(argv)
    import torch
    import transformers

    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(args, tokenizer)
    started, cpu = time.time(), time.process_time()
    for lesson in LESSONS:
        seen = train(model, tokenizer, lesson, args.seed, args.log_every)
    settle_unseen(model, seen)
    seconds, cpu_seconds = time.time() - started, time.process_time() - cpu
    digest = save(model, tokenizer, args.out)
    record = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python scripts/train_base_model.py --out FOLDER",
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "log_every")},
        "lessons": [asdict(lesson) for lesson in LESSONS],
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": round(seconds, 1),
        "training_cpu_seconds": round(cpu_seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "weights_sha256": digest,
        "greedy_accuracy": accuracies(model, tokenizer, args.test_size),
        "test_problems": args.test_size,
    }
    (args.out / "TRAINING.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
