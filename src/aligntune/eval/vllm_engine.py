"""Generated answers by vLLM in place of Transformers' `generate`: `engine: vllm` in an evaluation file.

    engine: vllm
    vllm: {gpu_memory_utilization: 0.85, tensor_parallel_size: 2}

Prompts are written by this package (chat template or plain text) and go to vLLM as token ids, so that both engines read
the same tokens; what vLLM read is compared with what was sent. Answers come back as token ids and become text here,
under the same rules for stop strings and end tokens. Every setting of sampling is sent explicitly, and
`generation_config: vllm` keeps those of the model's folder out. Sampled answers of a prompt have a seed of their own:
the first four bytes of SHA-256 of "<seed>:<number of the prompt>"; vLLM adds the sample's number to it.

It writes answers only: kinds that read log-probabilities, quantised models and adapters take Transformers. Greedy
answers of the two engines differ where two tokens are nearly as likely, because their kernels round differently. The
calls are tested against a stand-in for the package; they have not run on a GPU.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from aligntune import errors
from aligntune.eval.generation import Answer, AnswerEngine, Sampling, context_length, decode

if TYPE_CHECKING:
    from aligntune.core.config.sections import ModelConfig
    from aligntune.eval.config import VLLMConfig
    from aligntune.utils.model_loader import Loaded

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
INSTALL = "run: pip install 'aligntune[vllm]' (in an environment of its own: vLLM pins its own PyTorch)"
ENDED = ("stop", "length")
"""Why vLLM ends an answer that is whole."""


def check_vllm(config: ModelConfig) -> None:
    """Refuse what cannot work, before data are read.

    Raises:
        errors.EnvironmentError: the package or a CUDA GPU is missing.
        errors.ConfigurationError: the model is an adapter.
    """
    if find_spec("vllm") is None:
        raise errors.EnvironmentError("engine vllm needs the package vllm, which is not installed", hint=INSTALL)
    import torch

    if not torch.cuda.is_available():
        raise errors.EnvironmentError(
            "engine vllm needs a CUDA GPU, and PyTorch finds none", hint="remove engine, or run on a machine with a GPU"
        )
    from aligntune.utils.model_source import find_source

    if find_source(config.name_or_path, config.revision).adapter is not None:
        raise errors.ConfigurationError(
            f"model.name_or_path: {config.name_or_path} is an adapter, and engine vllm reads whole models",
            hint="merge it into its base first (save_merged of the trainer that made it), or remove engine",
        )


def load_vllm(config: ModelConfig, vllm: VLLMConfig, seed: int) -> Loaded:
    """The model in vLLM, and its tokenizer as for every other evaluation.

    Args:
        config: the model.
        vllm: vLLM's own settings.
        seed: of its random state.

    Raises:
        errors.EnvironmentError: vLLM cannot load the model.
    """
    from transformers import AutoConfig

    from aligntune.utils.device import DeviceManager
    from aligntune.utils.model_loader import Loaded, ModelLoader, library_faults

    loader = ModelLoader(config, training=False, seed=seed)
    source, tokenizer = loader.source, loader.load_tokenizer()
    given = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with library_faults(source):
        described = AutoConfig.from_pretrained(source.base, **given)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"  # no run of AlignTune reports to anybody
    from vllm import LLM

    options = {
        "model": source.base,
        "tokenizer": source.tokenizer,
        **given,
        "dtype": DTYPES[DeviceManager("cuda").precision(config.precision)],
        "seed": seed,
        "max_model_len": vllm.max_model_len or context_length(SimpleNamespace(config=described)),
        "gpu_memory_utilization": vllm.gpu_memory_utilization,
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "generation_config": "vllm",
    }
    try:
        llm = LLM(**options)
    except (RuntimeError, ValueError, OSError) as e:
        raise errors.EnvironmentError(
            f"vLLM cannot load {source.path}: {errors.first_line(e)}",
            hint="lower vllm.max_model_len or vllm.gpu_memory_utilization, or remove engine",
        ) from e
    engine = VLLMEngine(llm, described, _generation_config(source.base, given), vllm.max_model_len)
    return Loaded(model=engine, tokenizer=tokenizer, path=source.path, notes=["answers are written by vLLM"])


def _generation_config(base: str, given: dict[str, Any]) -> Any:
    """The model's generation settings, of which only the end tokens are read; None where it has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base, **given)
    except OSError:
        return None


class VLLMEngine(AnswerEngine):
    """A model that vLLM runs.

    Args:
        llm: `vllm.LLM`.
        config: the model's Transformers configuration.
        generation_config: its generation settings, or None.
        most: tokens of prompt and answer, where they are fewer than the model's context.
    """

    def __init__(self, llm: Any, config: Any, generation_config: Any, most: int | None = None) -> None:
        self.llm, self.config, self.generation_config = llm, config, generation_config
        self.most = most

    def answers(
        self, tokenizer: Any, rows: Sequence[list[int]], rooms: Sequence[int], sampling: Sampling
    ) -> list[list[Answer]]:
        """See `AnswerEngine.answers`.

        Raises:
            errors.EnvironmentError: vLLM gave up an answer, or read other tokens than it was sent.
        """
        from vllm import SamplingParams

        params = [
            SamplingParams(
                n=sampling.num_samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p or 0.0,
                repetition_penalty=sampling.repetition_penalty,
                seed=None if sampling.seed is None or not sampling.temperature else prompt_seed(sampling.seed, i),
                stop=list(sampling.stop) or None,
                stop_token_ids=list(sampling.end_tokens),
                max_tokens=room,
                detokenize=bool(sampling.stop),  # what ends at a stop string must be text to it
            )
            for i, room in enumerate(rooms)
        ]
        asked = [{"prompt_token_ids": list(ids)} for ids in rows]
        found = self.llm.generate(asked, params, use_tqdm=False)
        return [self._read(tokenizer, output, ids, sampling) for output, ids in zip(found, rows, strict=True)]

    def _read(self, tokenizer: Any, output: Any, ids: Sequence[int], sampling: Sampling) -> list[Answer]:
        """The answers to one prompt."""
        if output.prompt_token_ids is not None and list(output.prompt_token_ids) != list(ids):
            raise errors.EnvironmentError(
                "vLLM read other tokens than the prompt's", hint="remove engine; this version of vllm changes prompts"
            )
        ordered = sorted(output.outputs, key=lambda one: one.index)
        for one in ordered:
            if one.finish_reason not in ENDED:
                raise errors.EnvironmentError(
                    f"vLLM ended an answer with '{one.finish_reason}'",
                    hint="look at vLLM's own messages; vllm.max_model_len and gpu_memory_utilization set its memory",
                )
        made = decode(tokenizer, [list(one.token_ids) for one in ordered], list(sampling.end_tokens), sampling.stop)
        return [
            Answer(answer.text, answer.tokens, answer.finished or one.finish_reason == "stop")
            for answer, one in zip(made, ordered, strict=True)
        ]

    def close(self) -> None:
        """Let go of the GPU: another model may follow."""
        import torch

        self.llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def prompt_seed(seed: int, number: int) -> int:
    """The seed of one prompt's samples; close numbers give seeds far apart, since vLLM counts up from each."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
