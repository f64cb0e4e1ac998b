"""Malformed input: each ends in one clear message with its place, and with `on_bad_row: skip` nothing is lost."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from aligntune import errors
from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import prepare_dataset
from aligntune.errors import AlignTuneError, ConfigurationError, ValidationError

GOOD = b'{"prompt": "a", "completion": "b"}\n'
HUGE = b'{"prompt": "' + b"x" * 300_000 + b'", "completion": "b"}\n'
ARROW = b"PAR1" + b"\0" * 40 + b"PAR1"
PAIR = "prompt_completion"


def conversation(*messages: Any) -> bytes:
    return json.dumps({"messages": list(messages)}).encode() + b"\n"


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}

# name of the file, content, schema, settings, what the message says (place and reason)
CASES: list[tuple[str, str, bytes, str, dict[str, Any], str]] = [
    ("not json", "a.jsonl", GOOD + b"{oops}\n", PAIR, {}, r"a\.jsonl:2: not JSON \(.*column 2\)"),
    ("cut off line", "a.jsonl", GOOD + b'{"prompt": "a", "comp', PAIR, {}, r"a\.jsonl:2: not JSON"),
    ("two objects in a line", "a.jsonl", GOOD + GOOD.strip() + b" " + GOOD, PAIR, {}, r"a\.jsonl:2: not JSON \(Extra"),
    ("a list as a row", "a.jsonl", GOOD + b"[1]\n", PAIR, {}, r"a\.jsonl:2: a row must be an object, this is a list"),
    ("text as a row", "a.jsonl", b'"hello"\n', PAIR, {}, r"a\.jsonl:1: a row must be an object, this is text"),
    ("a number as a row", "a.jsonl", b"7\n", PAIR, {}, r"a\.jsonl:1: .* this is a number"),
    ("null as a row", "a.jsonl", b"null\n", PAIR, {}, r"a\.jsonl:1: .* this is null"),
    ("true as a row", "a.jsonl", b"true\n", PAIR, {}, r"a\.jsonl:1: .* a truth value"),
    ("a key twice", "a.jsonl", GOOD + b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', PAIR, {}, r"a\.jsonl:2: .*'prompt' stands twice"),
    ("a nested key twice", "a.jsonl", b'{"prompt": {"x": 1, "x": 2}}\n', PAIR, {}, r"a\.jsonl:1: .*'x' stands twice"),
    ("not UTF-8", "a.jsonl", GOOD + b'{"prompt": "\xff"}\n', PAIR, {}, r"a\.jsonl:2: byte 0xff is not UTF-8"),
    ("latin-1 bytes", "a.jsonl", '{"prompt": "é"}\n'.encode("latin-1"), PAIR, {}, r"a\.jsonl:1: byte 0xe9"),
    ("UTF-16 bytes", "a.jsonl", GOOD.decode().encode("utf-16"), PAIR, {}, r"a\.jsonl:1: byte 0xff is not UTF-8"),
    ("not the encoding", "a.jsonl", GOOD, PAIR, {"read": {"encoding": "utf-16"}}, r"a\.jsonl"),
    ("no such encoding", "a.jsonl", GOOD, PAIR, {"read": {"encoding": "utf-99"}}, r"no text encoding 'utf-99'"),
    ("a codec of bytes", "a.jsonl", GOOD, PAIR, {"read": {"encoding": "zlib"}}, r"no text encoding 'zlib'"),
    ("NUL bytes", "a.jsonl", GOOD + b"\0\0\0\n", PAIR, {}, r"a\.jsonl:2: not JSON"),
    ("half a surrogate", "a.jsonl", b'{"prompt": "\\ud83d", "completion": "b"}\n', PAIR, {}, r"a\.jsonl:1: half of a surrogate"),
    ("a number of 5000 digits", "a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", PAIR, {}, r"a\.jsonl:1: not JSON"),
    ("nested too deeply", "a.jsonl", b'{"a": ' * 100_000 + b"\n", PAIR, {}, r"a\.jsonl:1: not JSON"),
    ("an over-long line", "a.jsonl", GOOD + HUGE, PAIR, {"read": {"max_line_mb": 0.2}}, r"a\.jsonl:2: the line is longer than read.max_line_mb = 0.2 MB"),
    ("an over-long line, UTF-16", "a.jsonl", (GOOD + HUGE).decode().encode("utf-16"), PAIR, {"read": {"max_line_mb": 0.2, "encoding": "utf-16"}}, r"a\.jsonl:2: the line is longer"),
    ("a cut archive", "a.jsonl.gz", gzip.compress(GOOD * 5000)[:-20], PAIR, {}, r"a\.jsonl\.gz: damaged gzip archive"),
    ("no archive", "a.jsonl.gz", GOOD, PAIR, {}, r"a\.jsonl\.gz: damaged gzip archive"),
    ("a damaged archive", "a.jsonl.gz", gzip.compress(GOOD * 500)[:40] + b"\xff" * 40, PAIR, {}, r"a\.jsonl\.gz: damaged gzip"),
    ("an empty file", "a.jsonl", b"", PAIR, {}, r"a\.jsonl holds no rows"),
    ("blank lines only", "a.jsonl", b"\n \n\t\n", PAIR, {}, r"a\.jsonl holds no rows"),
    ("an empty archive", "a.jsonl.gz", gzip.compress(b""), PAIR, {}, r"holds no rows"),
    ("columns of no format", "a.jsonl", b'{"x": 1}\n', PAIR, {}, r"columns found: x"),
    ("objects without keys", "a.jsonl", b"{}\n", PAIR, {}, r"columns found: none"),
    ("all answers null", "a.jsonl", b'{"prompt": "a", "completion": null}\n', PAIR, {}, r"none of the 1 rows .*a\.jsonl:1"),
    ("all prompts empty", "a.jsonl", b'{"prompt": " ", "completion": "b"}\n', PAIR, {}, r"none of the 1 rows"),
    ("a prompt of a wrong type", "a.jsonl", GOOD + b'{"prompt": 7, "completion": "b"}\n', PAIR, {}, r"a\.jsonl:2: expected text or a list of messages, found int"),
    ("an answer of a wrong type", "a.jsonl", GOOD + b'{"prompt": "a", "completion": true}\n', PAIR, {}, r"a\.jsonl:2: "),
    ("an unknown role", "a.jsonl", conversation({"role": "boss", "content": "x"}, ANSWER), "messages", {}, r"a\.jsonl:1: unknown role 'boss'"),
    ("a message without a role", "a.jsonl", conversation({"content": "x"}), "messages", {}, r"a\.jsonl:1: unknown role None"),
    ("a message that is text", "a.jsonl", conversation("hello"), "messages", {}, r"a\.jsonl:1: a message must be an object"),
    ("an image", "a.jsonl", conversation({"role": "user", "content": [{"type": "image"}]}), "messages", {}, r"a\.jsonl:1: .*images are not supported"),
    ("tools that are no JSON", "a.jsonl", b'{"messages": [{"role": "user", "content": "a"}], "tools": "{"}\n', "messages", {}, r"a\.jsonl:1: tools is not JSON"),
    ("tools that are a number", "a.jsonl", b'{"messages": [{"role": "user", "content": "a"}], "tools": 3}\n', "messages", {}, r"a\.jsonl:1: tools must be a list"),
    ("no assistant turn", "a.jsonl", conversation(USER), "messages", {}, r"none of the 1 rows"),
    ("chosen is rejected", "a.jsonl", b'{"prompt": "p", "chosen": "a", "rejected": "a"}\n', "preference", {}, r"chosen and rejected are the same"),
    ("a label that is no truth value", "a.jsonl", b'{"prompt": "p", "completion": "a", "label": "maybe"}\n', "unpaired", {}, r"a\.jsonl:1: the label must be true or false"),
    ("a rank of 3", "a.jsonl", b'{"input": "p", "output_1": "a", "output_2": "b", "label": 3}\n', "preference", {}, r"a\.jsonl:1: the better answer must be 1 or 2"),
    ("steps and labels apart", "a.jsonl", b'{"prompt": "p", "completions": ["a", "b"], "labels": [true]}\n', "unpaired", {}, r"a\.jsonl:1: 2 steps and 1 labels"),
    ("ids that are text", "a.jsonl", b'{"input_ids": ["a"]}\n', "text", {}, r"a\.jsonl:1: 'input_ids' must be a list of whole numbers"),
    ("labels of another length", "a.jsonl", b'{"input_ids": [1, 2], "labels": [1]}\n', "text", {}, r"a\.jsonl:1: 2 input_ids and 1 labels"),
    ("labels that are other ids", "a.jsonl", b'{"input_ids": [1, 2], "labels": [1, 3]}\n', "text", {}, r"a\.jsonl:1: labels must be the input_ids"),
    ("tags of another length", "a.jsonl", b'{"tokens": ["a", "b"], "tags": ["O"]}\n', "tokens", {}, r"a\.jsonl:1: 2 tokens and 1 tags"),
    ("a class that is a list", "a.jsonl", b'{"text": "a", "label": ["x"]}\n', "classification", {}, r"a\.jsonl:1: the label is list"),
    ("a class that is a fraction", "a.jsonl", b'{"text": "a", "label": 1.5}\n', "classification", {}, r"a\.jsonl:1: the label is 1\.5"),
    ("a document cut off", "a.json", b'[{"prompt": "a"},\n {"prompt"', PAIR, {}, r"a\.json:2: not JSON"),
    ("a document of text", "a.json", b'"hello"', PAIR, {}, r"a\.json: no list of rows at the top"),
    ("a document of other keys", "a.json", b'{"x": 1}', PAIR, {}, r"a\.json: no list of rows at the top \(found: x\)"),
    ("rows that are numbers", "a.json", b"[1, 2]", PAIR, {}, r"a\.json, row 1: a row must be an object"),
    ("no rows at the path", "a.json", b'{"a": {"b": 3}}', PAIR, {"read": {"rows_at": "a.b"}}, r"no list of rows at 'a\.b' \(found: a number\)"),
    ("a key twice in a document", "a.json", b'[{"a": 1, "a": 2}]', PAIR, {}, r"a\.json: .*'a' stands twice"),
    ("a document that is not UTF-8", "a.json", b'[{"prompt":\n "\xff"}]', PAIR, {}, r"a\.json:2: byte 0xff"),
    ("a document nested too deeply", "a.json", b"[" * 100_000, PAIR, {}, r"a\.json: "),
    ("too many cells", "a.csv", b"prompt,completion\na,b\na,b,c\n", PAIR, {}, r"a\.csv:3: 3 cells, the header has 2"),
    ("too few cells", "a.csv", b"prompt,completion\na\n", PAIR, {}, r"a\.csv:2: 1 cells, the header has 2"),
    ("an open quote", "a.csv", b'prompt,completion\na,b\n"a,b\nc,d\n', PAIR, {}, r"a\.csv:3: not CSV \(unexpected end of data\)"),
    ("text after a quote", "a.csv", b'prompt,completion\n"a"x,b\n', PAIR, {}, r"a\.csv:2: not CSV"),
    ("a column twice", "a.csv", b"prompt,prompt\na,b\n", PAIR, {}, r"a\.csv:1: column 'prompt' stands twice"),
    ("a NUL in a cell", "a.csv", b"prompt,completion\na\0,b\n", PAIR, {}, r"a\.csv:2: a NUL character"),
    ("a NUL in the header", "a.csv", b"prompt\0,completion\na,b\n", PAIR, {}, r"a\.csv:1: a NUL character"),
    ("UTF-16 in a table", "a.csv", "prompt,completion\na,b\n".encode("utf-16"), PAIR, {}, r"a\.csv:1: byte 0xff is not UTF-8"),
    ("bytes in a table", "a.csv", b"prompt,completion\na,b\n\xe9,b\n", PAIR, {}, r"a\.csv:3: byte 0xe9 is not UTF-8"),
    ("a header alone", "a.csv", b"prompt,completion\n", PAIR, {}, r"a\.csv holds no rows"),
    ("fewer names than cells", "a.csv", b"a,b,c\n", PAIR, {"read": {"header": ["prompt", "completion"]}}, r"a\.csv:1: 3 cells, read\.header has 2"),
    ("an over-long cell", "a.csv", b"prompt,completion\n" + b"x" * 300_000 + b",b\n", PAIR, {"read": {"max_line_mb": 0.2}}, r"a\.csv:2: "),
    ("a table in a cut archive", "a.csv.gz", gzip.compress(os.urandom(9000))[:-9], PAIR, {}, r"a\.csv\.gz"),
    ("wrong Parquet magic", "a.parquet", b"PARX" + b"\0" * 40, PAIR, {}, r"a\.parquet: not Parquet"),
    ("an empty Parquet file", "a.parquet", b"", PAIR, {}, r"a\.parquet: not Parquet"),
    ("a Parquet file without a footer", "a.parquet", ARROW, PAIR, {}, r"a\.parquet: not Parquet"),
    ("a token without a tag", "a.conll", b"word\n", "tokens", {}, r"a\.conll:1: one column"),
    ("a line of other columns", "a.conll", b"a\tO\nb\tO\tX\n", "tokens", {}, r"a\.conll:2: 3 columns, line 1 has 2"),
    ("an empty tag", "a.conll", b"a\tx\tO\nb\tx\t\n", "tokens", {}, r"a\.conll:2"),
    ("an unknown ending", "a.xyz", b"x", PAIR, {}, r"a\.xyz: no loader for this kind of file"),
    ("an empty text file", "a.txt", b"", "text", {}, r"none of the 1 rows .*the text is empty"),
    ("columns that are not there", "a.jsonl", GOOD, PAIR, {"columns": ["prompt", "answr"]}, r"no column 'answr' to read"),
    ("a mapping to no column", "a.jsonl", GOOD, PAIR, {"column_mapping": {"prompt": "promt"}}, r"column 'promt' \(for 'prompt'\) is not in the data"),
    ("a template of no column", "a.jsonl", GOOD, PAIR, {"prompt_template": "{{ nothing }}"}, r"a\.jsonl:1: prompt_template needs 'nothing'"),
    ("an option of other files", "a.jsonl", GOOD, PAIR, {"read": {"delimiter": ";"}}, r"'read\.delimiter' has no meaning"),
    ("rows_at for lines", "a.jsonl", GOOD, PAIR, {"read": {"rows_at": "x"}}, r"'read\.rows_at' has no meaning"),
    ("no such split", "a.jsonl", GOOD, PAIR, {"split": "test"}, r"a\.jsonl has no split 'test'"),
    ("a slice outside", "a.jsonl", GOOD, PAIR, {"split": "train[5:9]"}, r"."),
    ("no such preset", "a.jsonl", GOOD, PAIR, {"preset": "gsm9k"}, r"unknown preset 'gsm9k'"),
    ("filters that contradict", "a.jsonl", GOOD, PAIR, {"filter": {"min_chars": 9, "max_chars": 3}}, r"filter\.min_chars = 9 is more than"),
    ("a filter that leaves nothing", "a.jsonl", GOOD, PAIR, {"filter": {"min_chars": 99}}, r"shorter than filter\.min_chars"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "schema", "keys", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_each_ends_in_one_message(
    tmp_path: Path, name: str, content: bytes, schema: str, keys: dict[str, Any], said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AlignTuneError, match=said) as caught:
        prepare_dataset(DatasetConfig(name=str(tmp_path / name), **keys), Schema(schema))
    assert isinstance(caught.value, (ValidationError, ConfigurationError))
    assert caught.value.hint
    assert len(caught.value.message) < 500


def test_there_are_enough_of_them() -> None:
    assert len(CASES) + 5 >= 60
    assert len({case[0] for case in CASES}) == len(CASES)


def refused(path: Path, said: str, kind: type[Exception] = ValidationError, **keys: Any) -> None:
    with pytest.raises(kind, match=said):
        prepare_dataset(DatasetConfig(name=str(path), **keys), Schema.PROMPT_COMPLETION)


def test_links_in_a_circle_pipes_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    refused(tmp_path / "a.jsonl", "neither a file nor a folder")
    os.mkfifo(tmp_path / "p.jsonl")
    refused(tmp_path / "p.jsonl", "neither a file nor a folder")
    refused(tmp_path / "c.jsonl", "no such file or folder")
    refused(tmp_path / ("x" * 300 + ".jsonl"), ".", OSError if os.name == "nt" else Exception)


def test_a_folder_with_a_loop_and_a_broken_link(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(GOOD)
    (folder / "again").symlink_to(folder)
    assert len(prepare_dataset(str(folder), Schema.PROMPT_COMPLETION).dataset) == 1
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    refused(folder, r"gone\.jsonl: cannot be read", errors.EnvironmentError)


def test_a_folder_of_damaged_files_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(GOOD + b"{\n")
    refused(tmp_path, r"b\.jsonl:2: not JSON")
    kept = prepare_dataset(DatasetConfig(name=str(tmp_path), on_bad_row="skip"), Schema.PROMPT_COMPLETION)
    assert len(kept.dataset) == 2
    assert [row["place"] for row in kept.skipped] == ["b.jsonl:2"]


def test_rows_of_another_schema_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + conversation(USER, ANSWER))
    prepared = prepare_dataset(DatasetConfig(name=str(tmp_path / "a.jsonl"), format="messages"), Schema.MESSAGES)
    assert len(prepared.dataset) == 1
    assert [row["place"] for row in prepared.skipped] == ["a.jsonl:1"]
    assert any(note.startswith("Left out 1 of 2 rows") for note in prepared.notes)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    for name, head in (("a.jsonl", b""), ("a.csv", b"prompt,completion\n")):
        body = GOOD if not head else b"a,b\n"
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + head + body)
        rows = prepare_dataset(str(tmp_path / name), Schema.PROMPT_COMPLETION).dataset
        assert rows[0]["prompt"][0]["content"] == "a"


BAD_LINES = [
    b"{oops}",
    b'{"prompt": "\xff", "completion": "b"}',
    b"[1]",
    b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "\\ud83d", "completion": "b"}',
    b'{"prompt": "' + b"x" * 30_000 + b'"}',
    b'{"prompt": 7, "completion": "b"}',
]


def test_skipped_rows_are_counted_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [line + b"\n" for bad in BAD_LINES for line in (GOOD.strip(), bad)] + [
        b'{"prompt": "a", "completion": ""}\n'
    ]
    path.write_bytes(b"".join(lines))
    source = DatasetConfig(name=str(path), on_bad_row="skip", read={"max_line_mb": 0.02})
    prepared = prepare_dataset(source, Schema.PROMPT_COMPLETION)
    assert len(prepared.dataset) == len(BAD_LINES)
    assert len(prepared.dataset) + len(prepared.skipped) == len(lines)
    places = {row["place"] for row in prepared.skipped}
    assert places == {f"a.jsonl:{2 * i + 2}" for i in range(len(BAD_LINES))} | {f"a.jsonl:{len(lines)}"}
    assert all(row["reason"] for row in prepared.skipped)
    note = next(n for n in prepared.notes if n.startswith("Skipped"))
    assert note.startswith(f"Skipped {len(BAD_LINES)} of {len(lines)} rows that cannot be read (a.jsonl:2: ")
    json.dumps(prepared.skipped)


def test_skipped_csv_rows_keep_their_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,completion\na,b\na,b,c\n"x"y,z\nd,e\n')
    prepared = prepare_dataset(DatasetConfig(name=str(path), on_bad_row="skip"), Schema.PROMPT_COMPLETION)
    assert [row["prompt"][0]["content"] for row in prepared.dataset] == ["a", "d"]
    assert prepared.skipped[0] == {"place": "a.csv:3", "reason": prepared.skipped[0]["reason"], "row": ["a", "b", "c"]}
    assert prepared.skipped[1]["place"] == "a.csv:4"


def test_where_no_row_can_be_read_the_first_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{\n{\n")
    refused(
        tmp_path / "a.jsonl", r"none of the 2 rows of a\.jsonl can be read: a\.jsonl:1: not JSON", on_bad_row="skip"
    )
