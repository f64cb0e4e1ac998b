"""Labelled data: formats, CoNLL files, the label list, and the tokens that labels stand on."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

import helpers
from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import CoNLLLoader, Labels, encode, prepare_dataset, render
from aligntune.data.encoding import encode_texts, encode_words
from aligntune.data.labels import class_weights, count_labels, describe_counts
from aligntune.errors import ConfigurationError, ValidationError


def prepared(
    path: Path | str, schema: Schema = Schema.CLASSIFICATION, labels: Labels | None = None, **more: Any
) -> Any:
    return prepare_dataset(DatasetConfig(name=str(path), **more), schema, seed=42, labels=labels)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


# ---- labels --------------------------------------------------------------------------------------------------


def test_the_label_list_does_not_depend_on_the_order_of_rows() -> None:
    found = ["card", "age", "card", "Zoo", "10", "9"]
    for seed in range(5):
        random.Random(seed).shuffle(found)
        assert Labels.of(found).names == ["10", "9", "Zoo", "age", "card"]
    assert Labels.of(["10", "9", "0"]).names == ["0", "9", "10"]


def test_a_label_is_found_by_name_or_by_number() -> None:
    labels = Labels(["no", "yes"])
    assert [labels.find(x) for x in ("no", "yes", "0", "1", "2", "01", "-1", "maybe")] == [0, 1, 0, 1] + [None] * 4
    numbers = Labels(["3", "7"])  # a number that is a name is never a position
    assert [numbers.find(x) for x in ("3", "7", "0", "1")] == [0, 1, None, None]
    with pytest.raises(ValidationError, match="'yess' is not among the 2 labels of the training data") as caught:
        labels.id("yess")
    assert "yes" in caught.value.hint
    assert "task.labels" in caught.value.hint


def test_balanced_weights_have_the_mean_one_over_the_items() -> None:
    labels = Labels(["a", "b", "c", "never"])
    counts = count_labels([0, 0, 0, 0, 0, 0, 1, 1, 2, [-100, 2]])
    weights = class_weights(labels, counts, "balanced")
    assert weights == pytest.approx([10 / 18, 10 / 6, 10 / 6, 1.0])
    assert sum(counts[i] * weights[i] for i in counts) == pytest.approx(counts.total())
    assert class_weights(labels, counts, "none") is None
    assert class_weights(labels, counts, {"b": 3.0}) == [1.0, 3.0, 1.0, 1.0]
    with pytest.raises(ValidationError, match="class_weights names 'bb'"):
        class_weights(labels, counts, {"bb": 3.0})


def test_rare_labels_are_told() -> None:
    notes = describe_counts(Labels(["a", "b", "c"]), count_labels([0, 0, 1]), "rows")
    assert notes[0] == "3 labels; of rows most have 'a' (2), fewest 'b' (1)."
    assert notes[1:] == ["1 of 3 labels have one of rows only: b.", "1 of 3 labels have none of rows: c."]


# ---- texts with a label ------------------------------------------------------------------------------------------


def test_texts_and_labels_under_the_usual_names(tmp_path: Path) -> None:
    for text, label in (("text", "category"), ("sentence", "label"), ("content", "intent"), ("text", "class")):
        made = prepared(jsonl(tmp_path / "a.jsonl", [{text: "one", label: "x"}, {text: "two", label: "y"}]))
        assert made.dataset.to_list() == [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}]
        assert made.format == "classification"
    both = jsonl(tmp_path / "b.jsonl", [{"text": "one", "label": 3, "label_text": "three"}])
    assert prepared(both).dataset["label"] == ["three"]
    mapped = prepared(both, column_mapping={"label": "label"}, prompt_template="{{ text }}!")
    assert mapped.dataset.to_list() == [{"text": "one!", "label": "3"}]


def test_labels_become_text(tmp_path: Path) -> None:
    values = [1, 2.0, True, False, " padded ", "007"]
    path = jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": v} for v in values])
    assert prepared(path).dataset["label"] == ["1", "2", "true", "false", "padded", "007"]


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"text": "good", "label": "a"},
        {"text": "", "label": "a"},
        {"text": "  ", "label": "a"},
        {"text": None, "label": "a"},
        {"text": "t", "label": None},
        {"text": "t", "label": " "},
    ]
    made = prepared(jsonl(tmp_path / "a.jsonl", rows))
    assert made.dataset.to_list() == [rows[0]]
    notes = " ".join(made.notes)
    assert "Left out 3 of 6 rows: the text is empty or null (a.jsonl:2, a.jsonl:3, a.jsonl:4)" in notes
    assert "Left out 2 of 6 rows: the label is empty or null (a.jsonl:5, a.jsonl:6)" in notes


@pytest.mark.parametrize(("value", "said"), [(1.5, "1.5"), (["a", "b"], "not several"), ({"a": 1}, "not several")])
def test_a_label_that_is_no_label_stops_with_its_place(tmp_path: Path, value: Any, said: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": "a"}, {"text": "t", "label": value}])
    with pytest.raises(ValidationError, match=rf"a\.jsonl:2: .*{said}"):
        prepared(path)


def test_an_unknown_label_names_its_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "held.jsonl", [{"text": "t", "label": "a"}, {"text": "t", "label": "q"}])
    with pytest.raises(ValidationError, match=r"held\.jsonl:2: the label 'q' is not among the 2 labels"):
        prepared(path, labels=Labels(["a", "b"]))


def test_rows_of_another_kind_are_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "t", "completion": "a"}])
    with pytest.raises(ValidationError, match="prompt_completion"):
        prepared(path)
    with pytest.raises(ConfigurationError, match="system_prompt has no meaning"):
        prepared(jsonl(tmp_path / "b.jsonl", [{"text": "t", "label": "a"}]), system_prompt="Be brief.")


def test_declared_names_stand_for_numbers(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["b", "a", "never"])})
    rows = {"text": ["one", "two", "three"], "label": [0, 1, -1]}
    data = Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "rows.parquet")
    for name in ("saved", "rows.parquet"):
        made = prepared(tmp_path / name)
        assert made.dataset["label"] == ["b", "a"]  # -1 is no label
        assert made.class_names == ["b", "a", "never"]
    tags = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-x"]))})
    Dataset.from_dict({"tokens": [["p", "q"]], "ner_tags": [[1, 0]]}, features=tags).to_parquet(tmp_path / "t.parquet")
    made = prepared(tmp_path / "t.parquet", Schema.TOKENS)
    assert made.dataset["tags"] == [["B-x", "O"]]
    assert made.class_names == ["O", "B-x"]


def test_files_of_a_folder_that_number_their_names_differently(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    for i, names in enumerate((["a", "b"], ["b", "a"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        Dataset.from_dict({"text": ["t", "t"], "label": [0, 1]}, features=features).to_parquet(
            tmp_path / f"{i}.parquet"
        )
    assert prepared(tmp_path).dataset["label"] == ["a", "b", "b", "a"]


def test_the_declared_list_holds_only_where_every_source_declares_one(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["b", "a"])})
    Dataset.from_dict({"text": ["t"], "label": [0]}, features=features).to_parquet(tmp_path / "p.parquet")
    plain = jsonl(tmp_path / "j.jsonl", [{"text": "t", "label": "z"}])
    sources = [DatasetConfig(name=str(tmp_path / "p.parquet")), DatasetConfig(name=str(plain))]
    assert prepare_dataset(sources, Schema.CLASSIFICATION, seed=0).class_names is None


# ---- tokens with tags ----------------------------------------------------------------------------------------------


def test_tokens_and_tags_as_lists_and_as_cells(tmp_path: Path) -> None:
    wanted = [{"tokens": ["New", "York", "!"], "tags": ["B-l", "I-l", "O"]}]
    lists = jsonl(tmp_path / "a.jsonl", [{"words": ["New", "York", "!"], "ner_tags": ["B-l", "I-l", "O"]}])
    cells = written(tmp_path / "b.csv", "tokens,tags\nNew York !,B-l I-l O\n")
    as_json = written(tmp_path / "c.csv", 'tokens,tags\n"[""New"", ""York"", ""!""]","[""B-l"", ""I-l"", ""O""]"\n')
    as_python = written(tmp_path / "d.csv", "tokens,tags\n\"['New', 'York', '!']\",\"['B-l', 'I-l', 'O']\"\n")
    for path in (lists, cells, as_json, as_python):
        assert prepared(path, Schema.TOKENS).dataset.to_list() == wanted, path
    numbers = jsonl(tmp_path / "e.jsonl", [{"tokens": ["in", 1999], "tags": [0, 1]}])
    assert prepared(numbers, Schema.TOKENS).dataset.to_list() == [{"tokens": ["in", "1999"], "tags": ["0", "1"]}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "token 2 is ''"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "token 2 is None"),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "must be a list"),
        ({"tokens": "['a', 'b]", "tags": ["O"]}, "looks like a list"),
        ({"tokens": ["a"], "tags": [["O"]]}, "one name or number"),
    ],
)
def test_tokens_that_do_not_fit_their_tags_stop_with_their_place(tmp_path: Path, row: Any, said: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"tokens": ["a"], "tags": ["O"]}, row])
    with pytest.raises(ValidationError, match=r"a\.jsonl:2: ") as caught:
        prepared(path, Schema.TOKENS)
    assert said in caught.value.message


def test_empty_sentences_are_left_out(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": ["O"]}, {"tokens": [], "tags": []}, {"tokens": ["a"], "tags": [None]}]
    made = prepared(jsonl(tmp_path / "a.jsonl", rows), Schema.TOKENS)
    assert len(made.dataset) == 1
    assert "there are no tokens (a.jsonl:2)" in " ".join(made.notes)
    assert "the tag of a token is empty or null (a.jsonl:3)" in " ".join(made.notes)


# ---- CoNLL -----------------------------------------------------------------------------------------------------------


def test_two_columns_and_blank_lines_that_hold_tabs(tmp_path: Path) -> None:
    text = "\n\t\nEU\tB-org\r\nrejects\tO\t\n#\tO\n \t \n\nPeter\tB-per\n"
    rows = CoNLLLoader().read_file(written(tmp_path / "a.conll", text))
    assert rows.rows == [
        {"tokens": ["EU", "rejects", "#"], "tags": ["B-org", "O", "O"]},
        {"tokens": ["Peter"], "tags": ["B-per"]},
    ]
    assert [rows.place(i) for i in range(2)] == ["a.conll:3", "a.conll:8"]


def test_conll_2003_has_four_columns_and_documents(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nsaid VBD B-VP O\n\n-DOCSTART- -X- -X- O\n# NN B-NP O\n"
    path = written(tmp_path / "b.iob2", text)
    made = prepared(path, Schema.TOKENS)
    assert made.dataset.to_list() == [
        {"tokens": ["EU", "said"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#"], "tags": ["O"]},
    ]
    speech = prepared(path, Schema.TOKENS, column_mapping={"tags": "column_2"})
    assert speech.dataset["tags"] == [["NNP", "VBD"], ["NN"]]


def test_conllu_leaves_out_comments_ranges_and_empty_nodes(tmp_path: Path) -> None:
    def line(number: str, form: str, upos: str, xpos: str) -> str:
        return "\t".join([number, form, form.lower(), upos, xpos, *["_"] * 5])

    lines = [
        "# text = I don't", line("1", "I", "PRON", "PRP"), line("2-3", "don't", "_", "_"), line("2", "do", "AUX", "VBP"),
        line("3", "n't", "PART", "RB"), line("3.1", "go", "VERB", "VB"), "",
    ]  # fmt: skip
    path = tmp_path / "c.conllu.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    made = prepared(path, Schema.TOKENS)
    assert made.dataset.to_list() == [{"tokens": ["I", "do", "n't"], "tags": ["PRON", "AUX", "PART"]}]
    assert "left out 1 comment lines" in " ".join(made.notes)
    assert prepared(path, Schema.TOKENS, column_mapping={"tags": "xpos"}).dataset["tags"] == [["PRP", "VBP", "RB"]]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a\tO\nb\n", 2, "1 column, line 1 has 2"),
        ("a\tO\nb\tX\tO\n", 2, "3 columns, line 1 has 2"),
        ("a\tO\n\nb O\n", 3, "1 column, line 1 has 2"),
        ("a\tO\n\tO\n", 2, "the token is empty"),
        ("word\n", 1, "one column"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = written(tmp_path / "a.conll", text)
    with pytest.raises(ValidationError, match=rf"a\.conll:{line}: {said}"):
        CoNLLLoader().read_file(path)


def test_a_folder_of_conll_files_has_splits(tmp_path: Path) -> None:
    written(tmp_path / "train.conll", "a\tO\n")
    written(tmp_path / "dev.conll", "b\tB-x\n")
    assert prepared(tmp_path, Schema.TOKENS, split="validation").dataset["tokens"] == [["b"]]


def test_real_conll_files(shared: Path) -> None:
    made = prepared(shared / "data" / "wnut17" / "wnut17train.conll", Schema.TOKENS)
    assert len(made.dataset) > 1000
    tags = {tag for row in made.dataset["tags"] for tag in row}
    assert {"O", "B-person", "I-creative-work"} <= tags
    folder = shared / "data" / "ud_english_ewt"
    universal = prepared(next(folder.glob("*.conllu")), Schema.TOKENS)
    assert {"NOUN", "VERB", "PUNCT"} <= {tag for row in universal.dataset["tags"] for tag in row}


# ---- tokens of a tokenizer -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_bytes() -> Any:
    return helpers.byte_tokenizer()


@pytest.fixture(scope="module")
def by_pieces() -> Any:
    return pieces()


def pieces() -> Any:
    """A WordPiece tokenizer with [CLS] and [SEP], which drops accents and control characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "new", "york", "##er", "##s", "is", "big", "!"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def test_the_first_sub_token_carries_the_tag(by_pieces: Any, tmp_path: Path) -> None:
    rows = [{"tokens": ["New", "Yorkers", "is", "big!"], "tags": ["B-l", "I-l", "O", "O"]}]
    labels = Labels(["B-l", "I-l", "O"])
    made = encode(
        prepared(jsonl(tmp_path / "a.jsonl", rows), Schema.TOKENS), Schema.TOKENS, by_pieces, labels, max_length=20
    )
    row = made.dataset[0]
    assert by_pieces.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]", "new", "york", "##er", "##s", "is", "big", "!", "[SEP]",
    ]  # fmt: skip
    assert row["positions"] == [1, 2, 5, 6]
    assert row["labels"] == [-100, 0, 1, -100, -100, 2, 2, -100, -100]


def test_words_are_found_with_any_tokenizer(by_bytes: Any, by_pieces: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    generator = random.Random(0)
    sentences = [
        ["".join(generator.choices("aé日b'.😀-", k=generator.randint(1, 6))) for _ in range(generator.randint(1, 9))]
        for _ in range(40)
    ]
    for tokenizer in (by_bytes, AutoTokenizer.from_pretrained(tokenizer_folder(tmp_path))):
        for words, one in zip(sentences, encode_words(tokenizer, sentences, 10**6), strict=True):
            assert one.ids == tokenizer(" ".join(words))["input_ids"]
            assert all(p >= 0 for p in one.positions)
            assert one.positions == sorted(set(one.positions))
            for word, at in zip(words, one.positions, strict=True):
                piece = tokenizer.decode([one.ids[at]]).strip()
                assert word.startswith(piece) or "\ufffd" in piece, (word, piece)


def tokenizer_folder(folder: Path) -> str:
    """A byte-level BPE tokenizer that joins a space with the word after it, as GPT-2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([" ab ba é 日 ab"] * 50, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def test_what_the_limit_cuts_is_counted(by_bytes: Any, tmp_path: Path) -> None:
    rows = [{"tokens": ["abc", "def", "ghi"], "tags": ["x", "y", "x"]}, {"tokens": ["a"], "tags": ["x"]}]
    source = prepared(jsonl(tmp_path / "a.jsonl", rows), Schema.TOKENS)
    made = encode(source, Schema.TOKENS, by_bytes, Labels(["x", "y"]), max_length=5)
    assert made.dataset["positions"] == [[0, 4, -1], [0]]
    assert [len(ids) for ids in made.dataset["input_ids"]] == [5, 1]
    assert made.notes[-1] == (
        "1 of 2 rows are longer than model.max_seq_length = 5 tokens and are cut there (longest: 11); 1 tags are cut off."
    )
    texts = prepared(jsonl(tmp_path / "b.jsonl", [{"text": "abcdefgh", "label": "x"}, {"text": "a", "label": "y"}]))
    cut = encode(
        texts, Schema.CLASSIFICATION, by_bytes, Labels(["x", "y"]), max_length=5, cut_by="the model's limit of 5"
    )
    assert cut.dataset["labels"] == [0, 1]
    assert "1 of 2 rows are longer than the model's limit of 5 tokens and are cut there (longest: 8)." in cut.notes
    assert cut.content_hash == texts.content_hash


def test_words_without_a_token_are_counted(by_pieces: Any, tmp_path: Path) -> None:
    rows = [{"tokens": ["new", "\u200d", "big"], "tags": ["x", "y", "x"]}]
    source = prepared(jsonl(tmp_path / "a.jsonl", rows), Schema.TOKENS)
    made = encode(source, Schema.TOKENS, by_pieces, Labels(["x", "y"]), max_length=9)
    assert made.dataset["positions"] == [[1, -1, 2]]
    assert "1 words have no token in this tokenizer" in made.notes[-1]
    lost = prepared(jsonl(tmp_path / "b.jsonl", [{"tokens": ["\u200d"], "tags": ["x"]}]), Schema.TOKENS)
    with pytest.raises(ValidationError, match="none of the 1 rows"):
        encode(lost, Schema.TOKENS, by_pieces, Labels(["x", "y"]), max_length=9)


def test_texts_keep_the_special_tokens_when_cut(by_pieces: Any) -> None:
    one = encode_texts(by_pieces, ["new york is big"], 4)[0]
    assert by_pieces.convert_ids_to_tokens(one.ids) == ["[CLS]", "new", "york", "[SEP]"]
    assert one.length == 6


def test_a_slow_tokenizer_is_refused() -> None:
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(ValidationError, match="no character offsets"):
        encode_words(slow, [["a"]], 9)


def test_labelled_rows_are_not_rendered(tmp_path: Path, by_bytes: Any) -> None:
    source = prepared(jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": "a"}]))
    with pytest.raises(ConfigurationError, match="not rendered"):
        render(source, Schema.CLASSIFICATION, by_bytes, max_length=9)
