"""Scorers by a local model, and the rewards on them: values against plain forward passes, refusals, cuts, pickling."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import helpers
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval import BertScoreMetric
from aligntune.rewards import RewardConfig, build_rewards, get_reward_function
from aligntune.rewards.builtin.nli import context_text, passages
from aligntune.rewards.models import NLI, Embedder, LocalModel, OneLogit, ReferenceLM, TextClassifier

TEXTS = ["yes", "", "a much longer answer, with a second clause", "\ud800 \0 漢字", "no" * 40, "<|pad|><|im_end|>"]
LABELS = ("neutral", "Toxic", "other")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.save_tiny_encoder(tmp_path_factory.mktemp("cls") / "cls", labels=LABELS)


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = ("CONTRADICTION", "entailment", "Neutral")
    return helpers.save_tiny_encoder(tmp_path_factory.mktemp("nli") / "nli", labels=labels)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.save_tiny_encoder(tmp_path_factory.mktemp("emb") / "tiny-encoder")


def forward(folder: Path, text: str, auto: str, pair: str | None = None) -> Any:
    """One text through the model in float64, without padding."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = [t.encode("utf-8", "replace").decode() for t in (text, pair) if t is not None]
    ids = tokenizer(*given, split_special_tokens=True, return_token_type_ids=auto != "AutoModelForCausalLM")
    known = {k: torch.tensor([ids[k]]) for k in ("input_ids", "token_type_ids") if k in ids}
    model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return model(**known, output_hidden_states=True), known["input_ids"][0]


def test_probabilities_are_the_softmax_of_the_logits_in_any_batch(classifier: Path) -> None:
    scorer = TextClassifier(str(classifier), batch_size=4)
    found = scorer.probabilities(TEXTS)
    assert list(found[0]) == list(LABELS) == scorer.labels
    for text, row in zip(TEXTS, found, strict=True):
        expected = forward(classifier, text, "AutoModelForSequenceClassification")[0].logits[0].softmax(-1)
        assert list(row.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert list(row.values()) == pytest.approx(list(scorer.probabilities([text])[0].values()), abs=1e-5)
    assert [list(r.values()) for r in scorer.probabilities(TEXTS[::-1])][::-1] == [
        pytest.approx(list(r.values()), abs=1e-5) for r in found
    ]
    assert len({round(row["Toxic"], 6) for row in found}) == len(TEXTS)
    assert scorer.probabilities([]) == []
    assert scorer.label("toxic") == "Toxic"
    with pytest.raises(ConfigurationError, match="has no label 'rude'"):
        scorer.label("rude")


def test_several_labels_at_once_are_sigmoids(classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(classifier, tmp_path / "multi")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    found = TextClassifier(str(folder)).probabilities(["yes"])[0]
    logits = forward(classifier, "yes", "AutoModelForSequenceClassification")[0].logits[0]
    assert list(found.values()) == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)


def test_weights_are_frozen_and_read_at_the_first_use(classifier: Path) -> None:
    scorer = TextClassifier(str(classifier))
    assert scorer._loaded is None
    model, tokenizer, limit = scorer.load()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert (limit, tokenizer.padding_side) == (128, "right")
    assert scorer.load()[0] is model
    scorer.place("cpu")
    assert scorer._loaded is None
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy.probabilities(["a"]) == scorer.probabilities(["a"])
    assert "model.safetensors " in scorer.source
    assert f"{classifier}@main" in scorer.source


def test_what_is_too_long_is_cut_between_the_ends_and_counted(classifier: Path) -> None:
    scorer = TextClassifier(str(classifier), max_length=10)
    cut, short = scorer.probabilities(["x" * 50, "x" * 8])
    assert cut == pytest.approx(short, abs=1e-6)  # [CLS], 8 letters, [SEP]
    rows = scorer.encode(["x" * 50], ["y" * 3])
    assert len(rows[0]["input_ids"]) == 10
    assert rows[0]["token_type_ids"] == [0] * 6 + [1] * 4
    reward = get_reward_function("semantic_similarity", path=str(classifier), max_length=10)
    assert reward.model.max_length == 10


def test_a_megabyte_is_cut_before_it_is_tokenized(classifier: Path) -> None:
    scorer = TextClassifier(str(classifier))
    assert len(scorer.encode(["x" * 1_000_000])[0]["input_ids"]) == 128


def test_limits_leave_room_for_positions_behind_the_padding(tmp_path: Path) -> None:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = helpers.byte_tokenizer(chat=False)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, pad_token_id=1, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = TextClassifier(str(tmp_path))
    assert scorer.load()[2] == 18
    assert len(scorer.probabilities(["x" * 100])) == 1


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (("LABEL_0", "LABEL_1"), TextClassifier, "does not say what its labels mean"),
        (("only",), TextClassifier, "has one output"),
        (("yes", "no", "maybe"), NLI, r"is no NLI model by its labels \(yes, no, maybe\)"),
        (("entailment", "not_entailment"), NLI, "is no NLI model"),
        (("a", "b"), OneLogit, "has 2 outputs"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: Any, kind: type[LocalModel], said: str) -> None:
    folder = helpers.save_tiny_encoder(tmp_path / "m", labels=labels)
    with pytest.raises(ValidationError, match=said):
        kind(str(folder)).load()


def test_what_is_no_such_model_is_refused(encoder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"is no sequence classifier: it has no weights for classifier\.bias"):
        TextClassifier(str(encoder)).load()
    with pytest.raises(ValidationError, match="no causal language model: it has no weights for"):
        ReferenceLM(str(helpers.save_tiny_encoder(tmp_path / "e", is_decoder=True))).load()
    with pytest.raises(ConfigurationError, match=r"embedding model: there is no folder './gone'"):
        Embedder("./gone").load()
    pickled = shutil.copytree(encoder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="has no safetensors weights"):
        Embedder(str(pickled)).load()
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        Embedder("x", batch_size=0)
    with pytest.raises(ConfigurationError, match="precision is 'int8'"):
        ReferenceLM("x", precision="int8")  # type: ignore[arg-type]


def test_a_tokenizer_that_cannot_pad_is_refused(classifier: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = shutil.copytree(classifier, tmp_path / "m")
    bare = PreTrainedTokenizerFast(tokenizer_object=helpers.byte_tokenizer(chat=False).backend_tokenizer)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    bare.save_pretrained(folder)
    assert TextClassifier(str(folder)).load()[1].pad_token == "<|pad|>"  # a reserved token of the vocabulary pads
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    with pytest.raises(ValidationError, match="has no padding, unknown or end-of-sequence token"):
        TextClassifier(str(folder)).load()


def test_nli_reads_the_order_of_its_labels(nli: Path) -> None:
    pairs = [("It rains.", "It is wet."), ("a", ""), ("", "b"), ("\ud800" * 300, "漢字" * 200)]
    scorer = NLI(str(nli), batch_size=2)
    found = scorer.probabilities(pairs)
    for (premise, hypothesis), row in zip(pairs[:3], found, strict=False):
        logits = forward(nli, premise, "AutoModelForSequenceClassification", hypothesis)[0].logits[0]
        c, e, n = logits.softmax(-1).tolist()
        assert row == pytest.approx((e, n, c), abs=1e-5)
    assert [sum(row) for row in found] == pytest.approx([1.0] * 4)
    assert scorer.probabilities([]) == []


def test_vectors_are_masked_means_of_length_one(encoder: Path, tmp_path: Path) -> None:
    import numpy as np

    found = Embedder(str(encoder), batch_size=3).embed(TEXTS)
    assert found.shape == (len(TEXTS), 32)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)
    states = forward(encoder, TEXTS[2], "AutoModel")[0].last_hidden_state[0]
    mean = states.mean(0) / states.mean(0).norm()
    assert found[2] == pytest.approx(mean.numpy(), abs=1e-5)
    first = Embedder(str(encoder), pooling="cls").embed(["", TEXTS[2]])[1]
    assert first == pytest.approx((states[0] / states[0].norm()).numpy(), abs=1e-5)
    last = Embedder(str(encoder), pooling="last").embed(["longer" * 9, TEXTS[2]])[1]
    assert last == pytest.approx((states[-1] / states[-1].norm()).numpy(), abs=1e-5)
    assert Embedder(str(encoder), prefix="a much ").embed(["longer answer, with a second clause"])[0] == pytest.approx(
        found[2], abs=1e-5
    )
    stated = shutil.copytree(encoder, tmp_path / "st")
    (stated / "1_Pooling").mkdir()
    (stated / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "word_embedding_dimension": 32}')
    assert Embedder(str(stated)).embed([TEXTS[2]])[0] == pytest.approx(first, abs=1e-6)
    (stated / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValidationError, match="states the pooling max_tokens"):
        Embedder(str(stated)).embed(["a"])
    modules = [("", "Transformer"), ("own", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (stated / "modules.json").write_text(json.dumps(listed))
    (stated / "own").mkdir()
    (stated / "own/config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert Embedder(str(stated)).embed([TEXTS[2]])[0] == pytest.approx(last, abs=1e-6)
    (stated / "modules.json").write_text(json.dumps([*listed, {"path": "3_Dense", "type": "models.Dense"}]))
    with pytest.raises(ValidationError, match=r"layers after its pooling \(Dense\)"):
        Embedder(str(stated)).embed(["a"])
    with pytest.raises(ConfigurationError, match="the pooling of owner/name cannot be read") as caught:
        Embedder("owner/name")._stated_pooling()
    assert "pooling: mean, cls, last" in caught.value.hint
    with pytest.raises(ConfigurationError, match="pooling is 'max'"):
        Embedder(str(encoder), pooling="max")  # type: ignore[arg-type]


def test_half_precision_is_near_and_an_encoder_with_a_decoder_is_refused(classifier: Path, tmp_path: Path) -> None:
    import torch
    from transformers import T5Config, T5Model

    full = TextClassifier(str(classifier)).probabilities(["yes"])[0]
    half = TextClassifier(str(classifier), precision="bf16")
    assert half.probabilities(["yes"])[0] == pytest.approx(full, abs=0.05)
    assert next(half.load()[0].parameters()).dtype is torch.bfloat16
    tokenizer = helpers.byte_tokenizer(chat=False)
    T5Model(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValidationError, match="an encoder with a decoder"):
        Embedder(str(tmp_path)).embed(["a"])


def test_likelihoods_are_sums_of_log_probabilities(tiny_model: Path) -> None:
    import torch

    scorer = ReferenceLM(str(tiny_model), batch_size=4)
    found = scorer.log_likelihood(TEXTS)
    for text, (nats, tokens) in zip(TEXTS, found, strict=True):
        if not text:
            assert (nats, tokens) == (0.0, 0)
            continue
        out, ids = forward(tiny_model, text, "AutoModelForCausalLM")
        logps = out.logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])
        assert tokens == len(ids) - 1
        assert nats == pytest.approx(-float(logps.sum()), rel=1e-5, abs=1e-5)
        assert nats == pytest.approx(scorer.log_likelihood([text])[0][0], rel=1e-5)
    assert scorer.perplexities(["", "ab"])[0] is None
    assert scorer.perplexities(["abcd"])[0] == pytest.approx(math.exp(scorer.log_likelihood(["abcd"])[0][0] / 3))
    assert scorer.log_likelihood([]) == []
    assert isinstance(torch.tensor(found[0][0]).item(), float)


def test_importing_the_scorers_loads_no_model_library() -> None:
    import subprocess

    code = (
        "import sys, aligntune.rewards.models as m, aligntune.rewards as r; r.list_rewards();"
        "print([n for n in ('torch', 'transformers', 'numpy', 'nltk') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- rewards on them -----------------------------------------------------------------------------------------------


def test_similarity_is_the_rescaled_cosine_of_the_best_reference(encoder: Path) -> None:
    reward = get_reward_function("semantic_similarity", path=str(encoder), baseline=0.2)
    a, b, c = Embedder(str(encoder)).embed(["one cat", "two dogs", "three"]).astype("float64")
    expected = max(0.0, (max(a @ b, a @ c) - 0.2) / 0.8)
    found = reward.batch(
        ["one cat", "<think>x</think>one cat", "one cat", "", "one cat"],
        {"answer": [["two dogs", "three"], "one cat", None, "one cat", ["one cat"]]},
    )
    assert found == [pytest.approx(expected, abs=1e-6), pytest.approx(1.0), None, 0.0, pytest.approx(1.0)]
    with pytest.raises(ConfigurationError, match=r"'semantic_similarity' needs 'reference', which is no column"):
        reward.batch(["a"], {"prompt": ["x"]})


def greedy(folder: Path, text: str, reference: str, layer: int) -> float:
    """BERTScore's F1 by loops over tokens, [CLS] and [SEP] matched but not averaged."""
    sides = []
    for given in (text, reference):
        states = forward(folder, given, "AutoModel")[0].hidden_states[layer][0]
        sides.append(states / states.norm(dim=-1, keepdim=True))
    a, b = sides
    p = [max(float(x @ y) for y in b) for x in a[1:-1]]
    r = [max(float(x @ y) for x in a) for y in b[1:-1]]
    p, r = sum(p) / len(p), sum(r) / len(r)
    return 2 * p * r / (p + r)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_bertscore_is_greedy_matching_at_its_layer(encoder: Path, layer: int) -> None:
    reward = get_reward_function("bertscore", path=str(encoder), layer=layer)
    texts, golds = ["the cat sat", "a dog", "the cat sat"], ["a cat was sitting", "the dogs ran", "the cat sat"]
    expected = [greedy(encoder, t, g, layer) for t, g in zip(texts, golds, strict=True)]
    assert reward.batch(texts, {"reference": golds}) == pytest.approx(expected, abs=1e-5)
    assert expected[2] == pytest.approx(1.0)
    metric = BertScoreMetric(str(encoder), layer).compute(texts, references=golds)
    assert (metric.value, metric.n) == (pytest.approx(sum(expected) / 3, abs=1e-5), 3)
    assert metric.name == f"bertscore[tiny-encoder:{layer}]"
    rescaled = get_reward_function("bertscore", path=str(encoder), layer=layer, baseline=0.5)
    assert rescaled.compute(texts[0], reference=golds[0]) == pytest.approx(max(0, 2 * expected[0] - 1), abs=1e-5)


def test_bertscore_carries_model_and_layer_in_its_name(encoder: Path) -> None:
    rewards = build_rewards([RewardConfig(type="bertscore", params={"path": str(encoder), "layer": 1})])
    assert rewards.components[0].name == "bertscore[tiny-encoder:1]"
    scores = rewards.score_batch(["a"], {"reference": ["a"]})
    assert scores.raw == {"bertscore[tiny-encoder:1]": [pytest.approx(1.0)]}
    with pytest.raises(ConfigurationError, match="has no layer 3"):
        get_reward_function("bertscore", path=str(encoder), layer=3).compute("a", reference="b")
    with pytest.raises(ConfigurationError, match="needs layer"):
        get_reward_function("bertscore", path=str(encoder))


def test_fluency_is_a_band_of_the_perplexity(tiny_model: Path) -> None:
    text = "the cat sat"
    perplexity = ReferenceLM(str(tiny_model)).perplexities([text])[0]
    assert perplexity is not None

    def score(low: float, high: float, **more: Any) -> float | None:
        return get_reward_function("fluency", path=str(tiny_model), low=low, high=high, **more).compute(text)

    assert score(perplexity / 2, perplexity * 2) == 1.0
    assert score(1, perplexity / math.sqrt(2)) == pytest.approx(0.5)
    assert score(perplexity * math.sqrt(2), 1e9) == pytest.approx(0.5)
    assert score(1, perplexity / math.sqrt(2), factor=4) == pytest.approx(0.75)
    assert score(1, perplexity / 3) == 0.0
    reward = get_reward_function("fluency", path=str(tiny_model), low=1, high=1e9)
    assert reward.batch(["", "a", "...", "ab"], {}) == [0.0, None, 0.0, 1.0]
    assert reward.label == f"fluency[{tiny_model.name}]"
    with pytest.raises(ConfigurationError, match="low = 9 is above high = 2"):
        get_reward_function("fluency", path="x", low=9, high=2)
    with pytest.raises(ConfigurationError, match="needs path and low and high"):
        get_reward_function("fluency")


def test_grounded_nli_is_the_share_of_supported_sentences(nli: Path) -> None:
    context = "It rained all day. The road is wet. Nobody went out."
    text = "The road is wet. The sun shone. It was dark!"
    reward = get_reward_function("grounded_nli", path=str(nli), passage_words=4, threshold=0.4)
    parts = passages(context, 4)
    assert parts == ["It rained all day.", "The road is wet.", "Nobody went out."]
    claims = ["The road is wet.", "The sun shone.", "It was dark!"]
    best = [max(e for e, _, _ in NLI(str(nli)).probabilities([(p, c) for p in parts])) for c in claims]
    assert reward.compute(text, context=context) == pytest.approx(sum(p >= 0.4 for p in best) / 3)
    edge = get_reward_function("grounded_nli", path=str(nli), passage_words=4, threshold=max(best) - 1e-4)
    assert edge.compute(text, context=[{"text": context}]) == pytest.approx(1 / 3)
    rewards = build_rewards([RewardConfig(type="grounded_nli", params={"path": str(nli)})])
    scores = rewards.score_batch(["", "A b.", "A b. " * 99], {"context": [context, None, context]})
    assert scores.raw["grounded_nli"][:2] == [0.0, None]
    assert (scores.stats["grounded_nli/no_context"], scores.stats["grounded_nli/truncated"]) == (1, 1)
    assert context_text([{"content": "a"}, "b", None]) == "a\nb"


def test_an_ensemble_is_low_where_its_models_disagree(tmp_path: Path) -> None:
    folders = [str(helpers.save_tiny_reward_model(tmp_path / f"rm{i}", seed=i)) for i in range(3)]
    single = [get_reward_function("reward_model", path=f).compute("yes", prompt="Q: ") for f in folders]
    mean = sum(single) / 3
    std = math.sqrt(sum((s - mean) ** 2 for s in single) / 3)

    def score(**more: Any) -> Any:
        return get_reward_function("reward_ensemble", paths=folders, **more).compute("yes", prompt="Q: ")

    assert score(standardise=False) == pytest.approx(mean - std, abs=1e-6)
    assert score(standardise=False, penalty=0.5) == pytest.approx(mean - std / 2, abs=1e-6)
    assert score(standardise=False, method="minimum") == pytest.approx(min(single), abs=1e-6)
    with pytest.raises(ConfigurationError, match="does not state the scale of its scores"):
        score()
    for i, folder in enumerate(folders):
        (Path(folder) / "reward_model.json").write_text(json.dumps({"scores": {"mean": 0.1 * i, "std": 1.0 + i}}))
    z = [(s - 0.1 * i) / (1.0 + i) for i, s in enumerate(single)]
    assert score(method="minimum") == pytest.approx(min(z), abs=1e-6)
    (Path(folders[0]) / "reward_model.json").write_text('{"scores": {"mean": 0, "std": 0}}')
    with pytest.raises(ConfigurationError, match=r"states the mean 0\.0 and the std 0\.0"):
        score()
    with pytest.raises(ConfigurationError, match="at least two different"):
        get_reward_function("reward_ensemble", paths=folders[:1] * 2, standardise=False)
    with pytest.raises(ConfigurationError, match="penalty has no effect"):
        score(standardise=False, method="minimum", penalty=1.0)


def test_a_reward_model_keeps_the_length_it_was_trained_with(tmp_path: Path) -> None:
    folder = helpers.save_tiny_reward_model(tmp_path / "rm")
    (folder / "reward_model.json").write_text('{"max_length": 7}')
    assert OneLogit(str(folder)).load()[2] == 7
    assert OneLogit(str(folder), max_length=9).load()[2] == 9
