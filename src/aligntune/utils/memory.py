"""How much memory a run takes: a small model of weights, gradients, optimizer, activations, logits and caches.

>>> shape = read_shape("runs/base")
>>> estimate(shape, Setting(batch=4, length=256)).peak / 1e9
2.19

Per device, in bytes, with P parameters, T of them trained, c bytes per number in forward passes (4 in fp32, 2 in bf16
and fp16), n = batch x length tokens in a forward pass, V the vocabulary, h the width, m the inner width, a and k the
widths of queries and of keys:

| part | bytes |
|---|---|
| weights | 4 P trained in full; c P under adapters (linear layers 0.56 P in 4 bit, 1.06 P in 8 bit) and 4 T for them |
| gradients | 4 T |
| optimizer | 8 T for Adam, 2 T with 8 bit states, 0 for SGD |
| activations | n c (sum over layers of 6 h + 2 a + 2 k + 4 m), and 2 h less under adapters (`_layer`); with gradient
  checkpointing n c h for each layer and one layer whole |
| logits | 4 n V for each of 4 arrays (logits, log-softmax, the gradients of both); parts of an entropy (`_logits`) |
| reference | c P: a second model where the algorithm keeps one (none under LoRA, which switches its adapter off) |
| cache | 2 c k for each layer and token of the sequences that are generated together |

The peak is the largest of four moments: loading, the beginning of the backward pass (weights, optimizer, activations,
logits), its end (weights, optimizer, gradients), and saving.

Source: what PyTorch's autograd keeps for each operation of a Llama block (Korthikanti et al. 2022, arXiv:2205.05198,
count it for GPT in fp16), and the optimizers' documentation. Measured against peaks in `benchmarks/memory.py`. It knows
nothing of CUDA's context and allocator, of ZeRO, or of tensor parallelism; its blocks are those of Llama and its kin.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

LOGIT_COPIES = 4
"""Arrays of n x V numbers at once: logits, log-softmax, and the gradients of both."""
ENTROPY_TOKENS, ENTROPY_COPIES = 128, 8
"""TRL logs the entropy of the predictions, in parts of so many tokens, with about so many arrays of a part at once."""
MAPPED = 32 << 20
"""On the CPU smaller arrays come from the heap and leave their room there; larger ones are given back (glibc's
`M_MMAP_THRESHOLD` as `aligntune.utils.allocation` sets it)."""
HEAP = 1.5
"""On the CPU: the heap that activations take, over what they hold. Buffers of many sizes come and go with every step,
and glibc cannot reuse all of what they leave. Measured over three steps; GPU allocators have not been measured."""
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_8bit": 2.0, "paged_adamw_8bit": 2.0, "sgd": 0.0}
"""State for each trained parameter; Adafactor's is a row and a column for each matrix, next to nothing."""
QUANTISED = {"4bit": 0.56, "8bit": 1.06}
"""Bytes of a quantised weight with its scales (QLoRA, arXiv:2305.14314, section 3: 4 bits and 0.127 bits; int8 with
row scales)."""
RUNTIME = 60_000_000
"""What the libraries and the data of a small run take beside the tensors, measured on the CPU."""


@dataclass(frozen=True)
class Shape:
    """What the model's size is made of.

    Attributes:
        parameters: all of them; tied ones once.
        linear: those in linear layers but the output layer, which adapters and quantisation reach.
        layers, hidden, inner, queries, keys, vocabulary: of the transformer; widths, not numbers of heads.
        modules: linear layers that adapters may be put on, as (name, inputs, outputs).
        largest: the largest single weight.
        head: whether logits over the vocabulary are computed (False for classifiers).
    """

    parameters: int
    linear: int
    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    modules: tuple[tuple[str, int, int], ...]
    largest: int
    head: bool = True

    def adapters(self, peft: Any) -> int:
        """Parameters of LoRA adapters (`PeftConfig`), saved copies of whole modules included."""
        wanted = peft.target_modules
        total = 0
        for name, inputs, outputs in self.modules:
            last = name.rpartition(".")[2]
            if wanted == "all-linear" or (last in wanted if isinstance(wanted, list) else re.fullmatch(wanted, name)):
                total += peft.r * (inputs + outputs) + (outputs if peft.use_dora else 0)
            if peft.modules_to_save and last in peft.modules_to_save:
                total += inputs * outputs
        if peft.modules_to_save and {"lm_head", "embed_tokens"} & set(peft.modules_to_save):
            total += self.hidden * self.vocabulary * len({"lm_head", "embed_tokens"} & set(peft.modules_to_save))
        return total


def read_shape(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, scalar: bool = False
) -> Shape:
    """The shape of a causal language model, from its config.json alone; `scalar` puts a reward model's one output in
    the place of its vocabulary's.

    Raises:
        OSError: there is no such model, or the hub does not give it.
        ValueError: its architecture is not known here.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    if scalar:
        config.num_labels = 1
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=trust_remote_code)
    return shape_of(model)


def shape_of(model: Any) -> Shape:
    """The shape of a Transformers model, on any device, `meta` too."""
    import torch

    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    modules = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            modules.append((name, module.in_features, module.out_features))
        elif type(module).__name__ == "Conv1D":  # GPT-2's linear layer, with its weight the other way round
            modules.append((name, *map(int, module.weight.shape)))
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1))
    width = int(getattr(config, "head_dim", None) or hidden // heads)
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(inputs * outputs for _, inputs, outputs in modules),
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        inner=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        queries=heads * width,
        keys=int(getattr(config, "num_key_value_heads", None) or heads) * width,
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        modules=tuple(modules),
        largest=max(p.numel() for p in model.parameters()),
        head=head is not None,
    )


@dataclass(frozen=True)
class Setting:
    """What of a run decides its memory.

    Attributes:
        batch: sequences in one forward and backward pass (both answers of a preference pair count).
        length: tokens of the longest of them.
        precision: fp32, bf16 or fp16.
        trained: parameters of adapters; None trains all weights.
        quantization: 4bit, 8bit or None.
        optimizer: a key of `OPTIMIZER_BYTES`, or adafactor.
        checkpointing: gradient checkpointing.
        reference: whether a second model is kept.
        generated: sequences that are generated together, 0 for none; `generated_length` their tokens.
        logits: tokens of a sequence whose logits are computed; None takes all.
        device: cpu, cuda or mps.
    """

    batch: int
    length: int
    precision: str = "fp32"
    trained: int | None = None
    quantization: str | None = None
    optimizer: str = "adamw_torch_fused"
    checkpointing: bool = False
    reference: bool = False
    generated: int = 0
    generated_length: int = 0
    logits: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, by part and by moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reference: int
    cache: int
    loading: int
    forward: int
    backward: int
    saving: int

    @property
    def peak(self) -> int:
        """The largest moment."""
        return max(self.loading, self.forward, self.backward, self.saving)

    @property
    def moment(self) -> str:
        """Which moment that is."""
        moments = ("loading", "forward", "backward", "saving")
        return max(moments, key=lambda name: int(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the peak."""
        return {**asdict(self), "peak": self.peak, "moment": self.moment}


def estimate(shape: Shape, setting: Setting) -> Estimate:
    """The memory of a run on one device; see the module's table."""
    c = 4 if setting.precision == "fp32" else 2
    full = setting.trained is None
    trained = shape.parameters if setting.trained is None else setting.trained
    base = 4 * shape.parameters if full else _frozen(shape, setting.quantization, c)
    weights = base if full else base + 4 * trained
    gradients = 4 * trained
    optimizer = round(OPTIMIZER_BYTES.get(setting.optimizer, 0.1) * trained)
    tokens = setting.batch * setting.length
    layer = _layer(shape, c, full)
    kept = shape.layers * shape.hidden * c + layer if setting.checkpointing else shape.layers * layer
    activations = round(tokens * kept * (HEAP if setting.device == "cpu" else 1))
    predicted = setting.batch * (setting.logits if setting.logits is not None else setting.length)
    logits = _logits(predicted, shape.vocabulary, setting.device) if shape.head else 0
    reference = base if setting.reference and full else 0
    cache = 2 * c * shape.keys * shape.layers * setting.generated * setting.generated_length
    steady = weights + optimizer + reference + RUNTIME
    return Estimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        reference=reference,
        cache=cache,
        loading=base + RUNTIME,  # the file's pages are the weights, until they are written to
        forward=steady + max(activations + logits, cache),
        backward=steady + gradients + 4 * shape.largest * (1 if full else 0),
        saving=steady + (weights if full else 4 * trained),
    )


def _frozen(shape: Shape, quantization: str | None, c: int) -> int:
    """Bytes of weights that are not trained."""
    if quantization is None:
        return c * shape.parameters
    return round(QUANTISED[quantization] * shape.linear + c * (shape.parameters - shape.linear))


def _logits(tokens: int, vocabulary: int, device: str) -> int:
    """Bytes of everything that has a number for each token and each entry of the vocabulary."""
    part = 4 * min(ENTROPY_TOKENS, tokens) * vocabulary
    kept = ENTROPY_COPIES * part if device == "cpu" and part < MAPPED else 0
    return LOGIT_COPIES * 4 * tokens * vocabulary + kept


def _layer(shape: Shape, c: int, full: bool) -> float:
    """Bytes that one layer keeps of one token for the backward pass.

    Norms keep their input, the normalised input (for the weight's gradient) and their output, which the linear layers
    after them share; queries, keys and values go into the attention, which keeps its output too; the gated feed-forward
    part keeps four arrays of the inner width.
    """
    norms = 6 if full else 4
    attention = 2 * (shape.queries + shape.keys)
    return float(c * (norms * shape.hidden + attention + 4 * shape.inner))
