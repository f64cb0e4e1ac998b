"""Counterfactual GRPO: tokens and their text, spans, drops of the answer's likelihood, weights."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

import helpers
import plugs
import runs
from aligntune.algorithms import spans
from aligntune.core.config import build_config
from aligntune.core.config.io import notices
from aligntune.errors import ConfigurationError, TrainingError

MULTIBYTE = "Füñf 12+34 = 46. 日本語 🙂 and more.\n#### 51<|im_end|>"


def decoder(tokenizer: Any) -> Any:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def tokenizers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Bytes, SentencePiece with bytes as fallback, and GPT-2's merges; the last two from files beside the checkout."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    found = {"bytes": helpers.byte_tokenizer()}
    folder = Path(__file__).resolve().parents[3] / "shared" / "models"
    if (folder / "gpt2-tokenizer").is_dir():
        merges = ByteLevelBPETokenizer(
            str(folder / "gpt2-tokenizer/vocab.json"), str(folder / "gpt2-tokenizer/merges.txt")
        )
        found["gpt2"] = PreTrainedTokenizerFast(tokenizer_object=merges._tokenizer)
        found["sentencepiece"] = helpers._stories_tokenizer(folder / "stories260K" / "tok512.bin")
    return found


# ---- tokens and their text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bytes", "gpt2", "sentencepiece"])
def test_every_token_finds_its_characters(name: str, tokenizers: dict[str, Any]) -> None:
    if name not in tokenizers:
        pytest.skip("the tokenizer's files are not there")
    tokenizer, text = tokenizers[name], MULTIBYTE * 3
    ids = tokenizer.encode(text, add_special_tokens=False)
    found, ranges = spans.align(decoder(tokenizer), ids)
    assert found == text == decoder(tokenizer)(ids)
    assert len(ranges) == len(ids)
    assert {i for start, end in ranges for i in range(start, end)} == set(range(len(text)))
    for token, (start, end) in zip(tokenizer.convert_ids_to_tokens(ids), ranges, strict=True):
        if token.isascii() and not token.startswith("<"):
            assert text[start:end] == token.replace("Ġ", " ")
    starts = [start for start, _ in ranges]
    assert starts == sorted(starts)
    for sign in ("ü", "日", "🙂"):  # the tokens of one character all stand for it
        at = text.index(sign)
        parts = [r for r in ranges if r[0] <= at < r[1]]
        assert len(parts) == (len(sign.encode()) if name == "bytes" else len(parts)) >= 1
        assert all(r == parts[0] for r in parts)


def test_any_tokens_align(tokenizers: dict[str, Any]) -> None:
    """Tokens that form no text, as an untrained model samples them."""
    rng = random.Random(0)
    for tokenizer in tokenizers.values():
        for _ in range(60):
            ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 70))]
            text, ranges = spans.align(decoder(tokenizer), ids)
            assert len(ranges) == len(ids)
            assert all(0 <= start <= end <= len(text) for start, end in ranges)
            assert [s for s, _ in ranges] == sorted(s for s, _ in ranges)
    assert spans.align(decoder(tokenizers["bytes"]), []) == ("", [])


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("1+1=2\n#### 2", 6),
        ("#### 1 no: #### 2", 11),
        ("so \\boxed{4}", 3),
        ("Final Answer: 3", 0),
        ("x<answer>3</answer>", 1),
        ("#### 4, in short \\boxed{4}", 17),
        ("the answer is 3", None),
        ("", None),
    ],
)
def test_the_answer_begins_at_the_last_marker(text: str, start: int | None) -> None:
    assert spans.answer_start(text, ["####", "\\boxed", "final answer", "<answer>"]) == start


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("We add: 12+34 = 46. So far so good. ", ["12+34 = 46", "So far so good."]),
        ("It costs $5 × 3 = $15, or 3.50 \\times 2 = 7.\nDone", ["$5 × 3 = $15", "3.50 \\times 2 = 7", "Done"]),
        ("(2 + 3) * 4 = 20", ["(2 + 3) * 4 = 20"]),
        ("46 71\n", ["46 71"]),
        ("He has 3 apples. She has 1,200!  Both?", ["He has 3 apples.", "She has 1,200!", "Both?"]),
        ("A line\n\n  another one\n", ["A line", "another one"]),
        ("Version 1.5 is out. Yes", ["Version 1.5 is out.", "Yes"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_candidates_are_expressions_and_then_sentences(text: str, found: list[str]) -> None:
    assert [text[a:b] for a, b in spans.candidate_spans(text + "#### 1", len(text), 10)] == found


def test_candidates_never_overlap_and_are_not_too_many() -> None:
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choice("12 +=.\nab!?(") for _ in range(rng.randrange(80)))
        end, most = rng.randrange(len(text) + 1), rng.randrange(1, 6)
        found = sorted(spans.candidate_spans(text, end, most))
        assert len(found) <= most
        assert all(0 <= a < b <= end for a, b in found)
        assert all(b <= c for (_, b), (c, _) in itertools.pairwise(found))


def test_candidates_are_found_in_linear_time() -> None:
    """Text that makes a careless pattern try every split."""
    for part in ("1", "1+", "(", "a", "1,", "1.", " ", ".", "1 + "):
        assert len(spans.candidate_spans(part * 20000, 20000, 10)) <= 10


def test_a_token_belongs_to_one_span() -> None:
    ranges = [(0, 2), (2, 4), (2, 4), (4, 4), (4, 7), (7, 9)]
    assert spans.tokens_of([(0, 3), (3, 5)], ranges, 6) == [[0, 1, 2], [3, 4]]
    assert spans.tokens_of([(4, 7), (7, 9)], ranges, 5) == [[4]]  # the last token is the answer's
    assert spans.tokens_of([(0, 9)], ranges, 6) == [[0, 1, 2, 3, 4, 5]]
    assert spans.first_answer_token(ranges, 3) == 1
    assert spans.first_answer_token(ranges, 7) == 5
    assert spans.first_answer_token(ranges, 9) == 6


# ---- weights ----------------------------------------------------------------------------------------------------


def test_the_example_by_hand() -> None:
    importance = spans.span_importance([3.0, -1.0], "counterfactual")
    weights = spans.token_weights(6, [[0, 1], [2, 3]], importance, 5)
    assert importance == [1.0, 0.0]
    assert weights == pytest.approx([w / (7 / 6) for w in (2, 2, 0.5, 0.5, 0.5, 1.5)])
    raw = spans.token_weights(6, [[0, 1], [2, 3]], [1.0, 0.0], 5, mode="inverted", conserve_gradient=False)
    assert raw == [0.5, 0.5, 2.0, 2.0, 2.0, 1.5]
    assert spans.token_weights(6, [[0, 1]], [1.0], 5, mode="uniform") == [1.0] * 6
    assert spans.token_weights(3, [], [], 0) == [1.0] * 3  # an answer and nothing else


def reference(length: int, held: Any, drops: Any, answer: int, low: float, high: float, end: float) -> Any:
    """The formula, in float64."""
    import torch

    drop = torch.zeros(length, dtype=torch.float64)
    for tokens, d in zip(held, drops, strict=True):
        drop[tokens] = d
    gain = drop.clamp(min=0)
    weight = low + (high - low) * (gain / gain.max() if gain.max() > 0 else gain)
    weight[answer:] = end
    return weight / weight.mean()


def test_weights_equal_the_formula_and_have_mean_one() -> None:
    rng = random.Random(2)
    for _ in range(200):
        length = rng.randrange(1, 30)
        answer = rng.randrange(length + 1)
        edges = sorted(rng.sample(range(answer + 1), k=min(answer, 3) + 1))
        held = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
        drops = [rng.gauss(0, 2) for _ in held]
        low, high, end = rng.uniform(0.1, 1), rng.uniform(1, 3), rng.uniform(0.1, 2)
        importance = spans.span_importance(drops, "counterfactual")
        given = {"min_weight": low, "boost_factor": high, "answer_weight": end}
        weights = spans.token_weights(length, held, importance, answer, **given)
        expected = reference(length, held, drops, answer, low, high, end)
        assert weights == pytest.approx(expected.tolist(), rel=1e-12)
        for mode in ("counterfactual", "inverted", "uniform"):
            made = spans.token_weights(length, held, importance, answer, mode=mode, **given)  # type: ignore[arg-type]
            assert sum(made) == pytest.approx(length, rel=1e-12)
            assert min(made) >= 0


def test_distractors_lift_nothing() -> None:
    """A span whose removal helps the answer changes no other token's weight; where none is positive all are 0."""
    with_one = spans.token_weights(4, [[0], [1]], spans.span_importance([2.0, -5.0], "counterfactual"), 3)
    without = spans.token_weights(4, [[0], [1]], spans.span_importance([2.0, 0.0], "counterfactual"), 3)
    assert with_one == without
    assert spans.span_importance([-1.0, -2.0], "counterfactual") == [0.0, 0.0]


def test_random_importance_comes_from_its_seed() -> None:
    one, two, three = (spans.span_importance([0.0] * 4, "random", random.Random(s)) for s in (1, 1, 2))
    assert one == two != three
    assert max(one) == 1.0
    assert min(one) >= 0
    with pytest.raises(ValueError, match="source of random"):
        spans.span_importance([1.0], "random")


# ---- the plugin ---------------------------------------------------------------------------------------------------


def config(folder: Path, **changes: Any) -> Any:
    raw = runs.plain("grpo", Path("model"), folder)
    raw["algo"]["name"] = "counterfactual_grpo"
    for key, value in changes.items():
        raw["algo"][key] = value
    return build_config(raw)


def plugin(folder: Path, **changes: Any) -> Any:
    made = config(folder, **changes)
    return plugs.attached(made.algo.plugin(made), made, [{"prompt": "Q:"}])


def test_the_old_name(tmp_path: Path) -> None:
    raw = runs.plain("grpo", Path("model"), tmp_path)
    raw["algo"]["name"] = "counterfact_grpo"
    assert build_config(raw).algo.key == "counterfactual_grpo"
    assert notices(raw) == ["'counterfact_grpo' is now called 'counterfactual_grpo'"]


def test_drops_equal_one_forward_pass_after_another(tmp_path: Path) -> None:
    """Against the definition: each span replaced by itself, the sum over the answer's tokens."""
    import torch

    made = plugin(tmp_path)
    texts = [plugs.REASONING, "no mark", "12+3=15. #### 15", "#### 4"]
    out = plugs.batch(texts)
    made.token_weights(out)
    parts = [made._parts(ids[mask.bool()].tolist()) for ids, mask in zip(out["completion_ids"], out["completion_mask"], strict=True)]  # fmt: skip
    drops = made._drops(out, parts)
    assert [len(d) for d in drops] == [4, 0, 1, 0]
    assert parts[1] is None

    def score(row: int, answer: int, replaced: list[int]) -> float:
        ids = out["completion_ids"][row : row + 1].clone()
        ids[0, replaced] = 0
        inputs = {**{k: v[row : row + 1] for k, v in out.items()}, "completion_ids": ids}
        with torch.no_grad():
            logps = made.backend.per_token_logps(made.trainer.model.eval(), inputs, 1.0)[0]
        return float(logps[answer : len(texts[row].encode())].sum())

    for row in (0, 2):
        held, answer = parts[row]
        assert bytes(texts[row], "utf-8")[answer:].startswith(b"####")
        expected = [score(row, answer, []) - score(row, answer, tokens) for tokens in held]
        assert drops[row] == pytest.approx(expected, abs=1e-9)
        assert any(d != 0 for d in expected)


def test_weights_of_a_batch(tmp_path: Path) -> None:
    made = plugin(tmp_path)
    out = plugs.batch([plugs.REASONING, "no mark"])
    weights = made.token_weights(out)
    assert weights.shape == out["completion_ids"].shape
    assert made.trainer.model.training
    length = len(plugs.REASONING)
    assert float(weights[0, :length].mean()) == pytest.approx(1, abs=1e-6)
    assert weights[1].tolist() == [1.0] * length
    answer = plugs.REASONING.index("####")
    assert len(set(weights[0, answer:length].tolist())) == 1
    metrics = made.trainer._metrics["train"]
    assert metrics["counterfactual/marked"] == [0.5]
    assert metrics["counterfactual/spans"] == [4.0]
    assert metrics["counterfactual/forward_rows"] == [5]
    assert (made.marked, made.unmarked) == (1, 1)
    again = plugin(tmp_path)
    again.load_state(made.state())
    assert again.state() == made.state() == {"marked": 1, "unmarked": 1, "batches": 1}


def test_the_other_modes_run_no_model(tmp_path: Path) -> None:
    out = plugs.batch([plugs.REASONING])
    assert plugin(tmp_path, mode="uniform").token_weights(out) is None
    drawn = [plugin(tmp_path, mode="random") for _ in range(2)]
    for made in drawn:
        made.backend = None
    first, second = (made.token_weights(out) for made in drawn)
    assert first.tolist() == second.tolist()
    assert first.tolist() != drawn[0].token_weights(out).tolist()  # another batch, another draw
    inverted = plugin(tmp_path, mode="inverted").token_weights(out)
    plain = plugin(tmp_path).token_weights(out)
    assert (inverted[0].argmax(), inverted[0].argmin()) != (plain[0].argmax(), plain[0].argmin())


def test_nothing_happens_in_evaluation(tmp_path: Path) -> None:
    made = plugin(tmp_path)
    made.trainer.model.eval()
    assert made.token_weights(plugs.batch([plugs.REASONING])) is None
    assert made.state() == {"marked": 0, "unmarked": 0, "batches": 0}


def test_a_run_without_any_marker_is_stopped(tmp_path: Path) -> None:
    made = plugin(tmp_path)
    out = plugs.batch(["no mark", "none"])
    for step in range(19):
        made.trainer.state.global_step = step
        assert set(made.token_weights(out).flatten().tolist()) == {1.0}
    made.trainer.state.global_step = 19
    with pytest.raises(TrainingError, match="none of 40 completions in 20 steps had an answer marker") as caught:
        made.token_weights(out)
    assert "algo.answer_markers" in caught.value.hint

    found = plugin(tmp_path)
    found.token_weights(plugs.batch([plugs.REASONING]))
    found.trainer.state.global_step = 19
    found.token_weights(out)
    assert (found.marked, found.unmarked) == (1, 2)


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"boost_factor: .* below algo.min_weight 0.5"):
        config(tmp_path, boost_factor=0.1)
    with pytest.raises(ConfigurationError, match=r"algo.max_spans: has no effect here: algo.mode uniform"):
        config(tmp_path, mode="uniform", max_spans=3)
    with pytest.raises(ConfigurationError, match=r"algo.min_weight: and algo.answer_weight are both 0"):
        config(tmp_path, min_weight=0, answer_weight=0)
    with pytest.raises(ConfigurationError, match="answer_markers"):
        config(tmp_path, answer_markers=[])
    with pytest.raises(ConfigurationError, match="answer_markers"):
        config(tmp_path, answer_markers=[""])
