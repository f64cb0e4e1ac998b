"""Models for tests: a tiny untrained Llama made in code, and the conversion of a llama2.c checkpoint.

`import helpers` works in every test, because pytest puts this folder on the path with `conftest.py`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\n' -}}"
    "{%- else -%}{{- message['content'] + '<|im_end|>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""ChatML; the assistant's tokens, its terminator included, stand in a generation block."""


def byte_tokenizer(*, chat: bool = True) -> Any:
    """A tokenizer with one token per byte and the special tokens <|pad|>, <|im_start|>, <|im_end|> (the EOS)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(folder: Path, *, chat: bool = True, seed: int = 0, hidden: int = 32, layers: int = 2) -> Path:
    """Write an untrained Llama and its byte tokenizer to `folder`; the same seed gives the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    tokenizer = byte_tokenizer(chat=chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_reward_model(folder: Path, *, chat: bool = True, labels: int = 1, seed: int = 1) -> Path:
    """Write an untrained Llama sequence classifier and its byte tokenizer to `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.set_num_threads(1)
    tokenizer = byte_tokenizer(chat=chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_labels=labels,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_encoder(folder: Path, *, labels: tuple[str, ...] = (), seed: int = 2, **config: Any) -> Path:
    """Write an untrained BERT and a byte tokenizer with [CLS] and [SEP] to `folder`; with `labels`, a classifier.

    Args:
        config: fields of `BertConfig` in place of these (hidden 32, 2 layers, 128 positions).
    """
    import torch
    from tokenizers import processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.set_num_threads(1)
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.cls_token, tokenizer.sep_token = "<|im_start|>", "<|im_end|>"
    ends = [("<|im_start|>", tokenizer.cls_token_id), ("<|im_end|>", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=ends,
    )
    given = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,  # far enough from zero that different texts have different scores
        **({"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}),
        **config,
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = (BertForSequenceClassification if labels else BertModel)(BertConfig(**given))
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def convert_stories260k(source: Path, folder: Path) -> Path:
    """Convert `stories260K.bin` and `tok512.bin` (llama2.c, version 0) to a Hugging Face folder.

    llama2.c rotates adjacent pairs of a head's channels, Hugging Face's Llama rotates its two halves; so the rows of
    the query and key projections are put into the other order.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = (source / "stories260K.bin").read_bytes()
    dim, inner, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", raw[:28])
    values = np.frombuffer(raw, dtype="<f4", offset=28)
    head, kv_dim = dim // heads, dim // heads * kv_heads
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        block, at = values[at : at + count], at + count
        return torch.from_numpy(block.reshape(shape).copy())

    embedding = take(vocab, dim)
    norm1, wq, wk = take(layers, dim), take(layers, dim, dim), take(layers, kv_dim, dim)
    wv, wo, norm2 = take(layers, kv_dim, dim), take(layers, dim, dim), take(layers, dim)
    gate, down, up = take(layers, inner, dim), take(layers, dim, inner), take(layers, inner, dim)
    last = take(dim)
    if at + length * head != len(values):
        raise ValueError(f"{source}: {len(values)} values, expected {at + length * head}")

    def halves(weight: torch.Tensor, n: int) -> torch.Tensor:
        return weight.view(n, head // 2, 2, dim).transpose(1, 2).reshape(n * head, dim)

    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": last}
    for i in range(layers):
        p = f"model.layers.{i}."
        state |= {
            p + "input_layernorm.weight": norm1[i],
            p + "self_attn.q_proj.weight": halves(wq[i], heads),
            p + "self_attn.k_proj.weight": halves(wk[i], kv_heads),
            p + "self_attn.v_proj.weight": wv[i],
            p + "self_attn.o_proj.weight": wo[i],
            p + "post_attention_layernorm.weight": norm2[i],
            p + "mlp.gate_proj.weight": gate[i],
            p + "mlp.down_proj.weight": down[i],
            p + "mlp.up_proj.weight": up[i],
        }
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.set_num_threads(1)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{source}: weights do not fit ({missing}, {unexpected})")
    model.save_pretrained(folder)
    _stories_tokenizer(source / "tok512.bin").save_pretrained(folder)
    return folder


def _stories_tokenizer(path: Path) -> Any:
    """The SentencePiece BPE model of `tok512.bin`: best score first, bytes as fallback, a space before the text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    raw, at = path.read_bytes(), 4
    pieces: list[tuple[str, float]] = []
    while at < len(raw):
        score, size = struct.unpack_from("<fi", raw, at)
        pieces.append((raw[at + 8 : at + 8 + size].decode().replace(" ", "▁"), score))
        at += 8 + size
    pieces[:3] = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, _score in sorted(pieces[259:], key=lambda p: -p[1]):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        fits = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(fits, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
