"""Evaluation by vLLM against a stand-in for the package: what is sent, how answers are read, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from aligntune.errors import AlignTuneError, ConfigurationError
from aligntune.eval import EvalRunner
from aligntune.eval.config import build_eval_config
from aligntune.eval.generation import encode_prompts, generate_answers
from aligntune.eval.vllm_engine import VLLMEngine, prompt_seed

ROWS = [{"prompt": f"Say {i} {'and ' * i}", "reference": str(i)} for i in range(5)]
TASK = {"name": "sums", "kind": "exact_match", "match": "text", "max_new_tokens": 6}


@dataclasses.dataclass
class SamplingParams:
    """The fields of vLLM's that are used; another one is an error, as it is there."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: list[str] | None
    stop_token_ids: list[int]
    max_tokens: int
    detokenize: bool


class LLM:
    """Writes what Transformers' greedy decoding writes, token by token, as vLLM returns it."""

    made: list[LLM] = []
    reasons: list[str] = []

    def __init__(self, **options: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.options, self.calls = options, []
        self.model = AutoModelForCausalLM.from_pretrained(options["model"]).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(options["tokenizer"])
        LLM.made.append(self)

    def generate(self, prompts: list[dict[str, Any]], params: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.calls.append((prompts, params))
        return [self._one(p["prompt_token_ids"], how) for p, how in zip(prompts, params, strict=True)]

    def _one(self, ids: list[int], how: SamplingParams) -> Any:
        import torch

        new: list[int] = []
        reason, why = "length", None
        while len(new) < how.max_tokens:
            with torch.no_grad():
                token = int(self.model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax())
            new.append(token)
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            if token in how.stop_token_ids or any(mark in text for mark in how.stop or ()):
                reason, why = "stop", None
                break
        reason = LLM.reasons.pop() if LLM.reasons else reason
        made = [
            types.SimpleNamespace(index=k, token_ids=tuple(new), finish_reason=reason, stop_reason=why, text="")
            for k in reversed(range(how.n))
        ]
        return types.SimpleNamespace(prompt_token_ids=ids, outputs=made)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """A package `vllm`, and a GPU to the eyes of the checks."""
    package = types.ModuleType("vllm")
    package.LLM, package.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr("torch.cuda.is_available", lambda *args: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *args, **options: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "reasons", [])
    return LLM


def plain(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {**TASK, "dataset": str(rows), **changes.pop("task", {})}
    return {"model": {"name_or_path": str(model)}, "engine": "vllm", "tasks": [task], **changes}


def test_greedy_answers_are_those_of_transformers(
    vllm: type[LLM], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = plain(tiny_model, tmp_path, vllm={"gpu_memory_utilization": 0.5, "max_model_len": 48})
    runner = EvalRunner(build_eval_config({**raw, "output_dir": str(tmp_path / "out")}))
    result = runner.run()
    (llm,) = vllm.made
    assert llm.options == {
        "model": str(tiny_model), "tokenizer": str(tiny_model), "revision": None, "trust_remote_code": False,
        "dtype": "bfloat16", "seed": 42, "max_model_len": 48, "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 1, "generation_config": "vllm",
    }  # fmt: skip
    ((asked, params),) = llm.calls
    prompts = [item["prompt"] for item in result.tasks["sums"].items]
    assert [p["prompt_token_ids"] for p in asked] == encode_prompts(llm.tokenizer, prompts)  # with the chat template
    how = params[0]
    assert (how.n, how.temperature, how.top_p, how.top_k, how.min_p, how.repetition_penalty) == (1, 0, 1, 0, 0, 1)
    assert (how.seed, how.stop, how.max_tokens, how.detokenize) == (None, None, 6, False)
    assert llm.tokenizer.eos_token_id in how.stop_token_ids
    settings = result.tasks["sums"].settings
    assert (settings["engine"], settings["chat_template"]) == ("vllm", bool(llm.tokenizer.chat_template))
    assert runner.model is None  # the GPU is free again
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plain_raw = {k: v for k, v in raw.items() if k not in ("engine", "vllm")}
    other = EvalRunner(build_eval_config(plain_raw)).run()
    assert other.tasks["sums"].settings["engine"] == "transformers"
    for mine, theirs in zip(result.tasks["sums"].items, other.tasks["sums"].items, strict=True):
        assert mine == theirs


@pytest.fixture
def engine(vllm: type[LLM], tiny_model: Path) -> tuple[VLLMEngine, Any, LLM]:
    llm = vllm(model=str(tiny_model), tokenizer=str(tiny_model))
    return VLLMEngine(llm, llm.model.config, llm.model.generation_config), llm.tokenizer, llm


def test_stop_strings_end_answers_as_they_do_in_transformers(engine: tuple[VLLMEngine, Any, LLM]) -> None:
    model, tokenizer, llm = engine
    prompts = ["one two", "seven"]
    (free,), _ = generate_answers(llm.model, tokenizer, prompts, max_new_tokens=8)
    stop = [free.text[2:4]]
    want = generate_answers(llm.model, tokenizer, prompts, max_new_tokens=8, stop=stop)
    found = generate_answers(model, tokenizer, prompts, max_new_tokens=8, stop=stop)
    assert found == want
    assert found[0][0].text == free.text[: free.text.find(stop[0])]
    params = llm.calls[0][1]
    assert (params[0].stop, params[0].detokenize) == (stop, True)


def test_every_prompt_samples_with_a_seed_of_its_own(engine: tuple[VLLMEngine, Any, LLM]) -> None:
    model, tokenizer, llm = engine
    options = {"max_new_tokens": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "num_samples": 4}
    found = generate_answers(model, tokenizer, ["a", "b", "c"], seed=7, **options)
    assert [len(row) for row in found] == [4, 4, 4]
    params = llm.calls[0][1]
    assert [how.seed for how in params] == [prompt_seed(7, i) for i in range(3)]
    assert (params[0].n, params[0].temperature, params[0].top_p, params[0].top_k, params[0].min_p) == (
        4,
        0.7,
        0.9,
        5,
        0.1,
    )
    seeds = {s + k for s in (prompt_seed(7, i) for i in range(2000)) for k in range(8)}
    assert len(seeds) > 0.999 * 16000  # vLLM counts up from each
    assert all(0 <= s < 2**32 for s in seeds)


def test_an_answer_ends_where_the_context_does(engine: tuple[VLLMEngine, Any, LLM]) -> None:
    model, tokenizer, llm = engine
    ids = encode_prompts(tokenizer, ["one two three four"])[0]
    model.most = len(ids) + 2
    ((answer,),) = generate_answers(model, tokenizer, ["one two three four"], max_new_tokens=9)
    assert llm.calls[0][1][0].max_tokens == 2 >= answer.tokens


def test_an_answer_that_was_given_up_is_an_error(engine: tuple[VLLMEngine, Any, LLM]) -> None:
    model, tokenizer, llm = engine
    LLM.reasons = ["abort"]
    with pytest.raises(AlignTuneError, match="ended an answer with 'abort'"):
        generate_answers(model, tokenizer, ["a"], max_new_tokens=2)
    one = llm._one
    llm._one = lambda ids, how: one([*ids, 1], how)  # type: ignore[method-assign]
    with pytest.raises(AlignTuneError, match="read other tokens"):
        generate_answers(model, tokenizer, ["a"], max_new_tokens=2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"task": {"kind": "perplexity", "max_new_tokens": 256, "match": "answer"}},
            "tasks.0.kind: perplexity reads log",
        ),
        ({"task": {"batch_size": 4}}, "tasks.0.batch_size: has no effect"),
        ({"lm_eval": {"tasks": ["arc_easy"]}}, "lm_eval: needs a model of Transformers"),
        ({"engine": "transformers", "vllm": {"tensor_parallel_size": 2}}, "vllm.tensor_parallel_size: has no effect"),
        ({"vllm": {"gpu_memory_utilization": 1.5}}, "gpu_memory_utilization"),
        ({"engine": "vlm"}, "engine"),
    ],
)
def test_what_vllm_cannot_do_is_refused(changes: dict[str, Any], told: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=told):
        build_eval_config(plain(tiny_model, tmp_path, **changes))


def test_settings_of_the_model_that_vllm_does_not_read_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    raw = plain(tiny_model, tmp_path)
    for key, value in (("quantization", {"load_in": "4bit"}), ("attn_implementation", "sdpa"), ("device", "cpu")):
        with pytest.raises(ConfigurationError, match=rf"model\.{key}"):
            build_eval_config({**raw, "model": {**raw["model"], key: value}})


def test_without_package_or_gpu_it_says_what_to_do(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = EvalRunner(build_eval_config(plain(tiny_model, tmp_path)))
    monkeypatch.setattr("aligntune.eval.vllm_engine.find_spec", lambda name: None)
    with pytest.raises(AlignTuneError, match=r"pip install 'aligntune\[vllm\]'") as caught:
        runner.run()
    assert caught.value.exit_code == 3
    monkeypatch.setattr("aligntune.eval.vllm_engine.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(AlignTuneError, match="needs a CUDA GPU") as caught:
        runner.run()
    assert caught.value.exit_code == 3


def test_adapters_models_in_memory_and_opponents_are_refused(vllm: type[LLM], tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    with pytest.raises(ConfigurationError, match="is an adapter"):
        EvalRunner(build_eval_config(plain(adapter, tmp_path))).run()
    with pytest.raises(ConfigurationError, match="one in memory was given"):
        EvalRunner(build_eval_config(plain(tiny_model, tmp_path)), object(), object()).run()
    met = {"name": "w", "kind": "win_rate", "dataset": str(tmp_path / "rows.jsonl"), "opponent": str(tiny_model)}
    raw = {**plain(tiny_model, tmp_path), "tasks": [{**met, "rewards": [{"type": "brevity"}]}]}
    with pytest.raises(ConfigurationError, match="holds one at a time"):
        EvalRunner(build_eval_config(raw)).run()
    assert not vllm.made
