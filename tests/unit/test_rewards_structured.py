"""Rewards for output that a program reads: JSON, tool calls, SQL."""

from __future__ import annotations

import json
import sqlite3
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from aligntune import errors
from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.grading import schema as schema_module
from aligntune.grading.schema import check_schema, equal, find_json, fits, parse_json
from aligntune.rewards import CompositeReward, get_reward_function

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
needs_jsonschema = pytest.mark.skipif(not find_spec("jsonschema"), reason="needs the extra 'rewards'")


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ('{"a": 1}', "any", '{"a": 1}'),
        ('Sure:\n```json\n{"a": 1}\n```\nDone.', "any", '{"a": 1}'),
        ("```\n[1]\n```", "fenced", "[1]"),
        ("```\n[1]\n```", "whole", None),
        ("```\n[1]\n```\n```\n[2]\n```", "any", None),
        ('<think>{"a": 2}</think>{"a": 1}', "any", '{"a": 1}'),
        ('Sure: {"a": 1}', "any", None),
        ("NaN", "any", None),
        ("[Infinity]", "any", None),
        ('{"a": 1, "a": 2}', "any", None),
        ("{'a': 1}", "any", None),
        ("", "any", None),
        ("[" * 100_000 + "]" * 100_000, "any", None),
        ("1" * 1_000_000, "any", None),
    ],
)
def test_find_json(text: str, where: str, found: str | None) -> None:
    assert find_json(text, where) == found


def test_json_equality() -> None:
    assert equal({"a": [1, None]}, {"a": [1.0, None]})
    assert not equal(True, 1)
    assert not equal({"a": 0}, {"a": False})
    assert not equal([1], [1, 2])
    assert not equal("1", 1)
    assert parse_json("[1]") == [1]


@needs_jsonschema
def test_json_schema() -> None:
    reward = get_reward_function("json_schema", schema=SCHEMA)
    assert reward.columns == frozenset()
    texts = [
        '{"city": "Rome", "days": 2}',
        '{"city": "rome"}',
        '{"days": 2}',
        '{"city": "Rome", "x": 1}',
        '```json\n{"city": "Rome"}\n```',
        "[]",
        "",
        "none",
        '{"city": "Rome", "days": 0}',
    ]
    assert reward.batch(texts) == [1, 0, 0, 0, 1, 0, 0, 0, 0]
    by_row = get_reward_function("json_schema")
    assert by_row.batch(["1", '"a"'], {"schema": ['{"type": "string"}', {"type": "string"}]}) == [0, 1]
    local = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    assert get_reward_function("json_schema", schema=local).batch(["1", '"a"']) == [1, 0]


@needs_jsonschema
def test_a_schema_that_never_ends_is_a_counted_zero() -> None:
    schema = {"type": "string", "pattern": "^(a+)+$"}
    reward = get_reward_function("json_schema", schema=schema, deadline=0.5)
    scores = CompositeReward([reward]).score_batch(['"' + "a" * 64 + 'b"', '"a"', "x"])
    assert scores.total == [0, 1, 0]
    assert scores.stats["json_schema/timeout"] == scores.stats["json_schema/no_json"] == 1


@needs_jsonschema
@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"$ref": "https://example.org/s.json"}, "refers to https://example.org/s.json, which is outside it"),
        ({"items": [{"$ref": "file:///etc/passwd"}]}, "outside it"),
        ({"$ref": "other.json#/a"}, "outside it"),
        ({"type": "strin"}, "this is no JSON Schema"),
        ("{", "no JSON"),
        ("[]", "the schema is list"),
        ({1, 2}, "no JSON"),
    ],
)
def test_schemas_that_are_refused(schema: object, what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        check_schema(schema)
    with pytest.raises(ConfigurationError, match=what):
        get_reward_function("json_schema", schema=schema)


@needs_jsonschema
def test_a_reference_to_nowhere() -> None:
    with pytest.raises(ValidationError, match="the schema cannot be used"):
        fits("1", {"$ref": "#/$defs/missing"})


def test_without_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    schema_module._checked.cache_clear()
    with pytest.raises(errors.EnvironmentError, match="jsonschema, which is not installed") as e:
        get_reward_function("json_schema", schema={"type": "null"})
    assert e.value.hint == "run: pip install 'aligntune[rewards]'"


GOLD = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"name": "time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
]


def call(name: str = "weather", **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


@needs_jsonschema
@pytest.mark.parametrize(
    ("text", "score", "partial"),
    [
        (call(city="Rome", days=2), 1, 1),
        (f"Let me see.\n<tool_call>\n{call(city='Rome', days=2)}\n</tool_call>", 1, 1),
        ('{"name": "weather", "parameters": {"days": 2.0, "city": "Rome"}}', 1, 1),
        ('{"function": {"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 2}"}}', 1, 1),
        (f"[{call(city='Rome', days=2)}]", 1, 1),
        (call(city="Rome", days=3), 0, 2 / 3),
        (call(city="Rome"), 0, 2 / 3),
        (call(city="Rome", days=2, x=1), 0, 0),
        (call(city="rome", days=2), 0, 0),
        (call("time"), 0, 0),
        (call("unknown", city="Rome", days=2), 0, 0),
        (f"<tool_call>{call(city='Rome', days=2)}</tool_call><tool_call>{call('time')}</tool_call>", 0, 0.5),
        (f"<tool_call>{call(city='Rome', days=2)}", 0, 0),
        ("<tool_call>weather(Rome)</tool_call>", 0, 0),
        ("The weather in Rome", 0, 0),
        ("", 0, 0),
        ("[]", 0, 0),
        ("<tool_call>" * 1000, 0, 0),
        ('{"name": "weather", "arguments": ' + '{"city":' * 400 + "1" + "}" * 401, 0, 0),
    ],
)
def test_tool_call(text: str, score: float, partial: float) -> None:
    row = {"reference": GOLD, "tools": TOOLS}
    assert get_reward_function("tool_call").compute(text, **row) == score
    assert get_reward_function("tool_call", partial=True).compute(text, **row) == pytest.approx(partial)
    if score:
        assert get_reward_function("tool_call").compute(text, reference=json.dumps([GOLD])) == 1


@needs_jsonschema
def test_tool_calls_without_gold_or_tools() -> None:
    reward = get_reward_function("tool_call")
    assert [reward.compute(t, tools=TOOLS) for t in (call("time"), call("time", x=1), "none")] == [1, 0, 0]
    assert [reward.compute(t, reference="[]") for t in ("no call needed", call("time"))] == [1, 0]
    assert reward.compute(call("time")) is None
    both = json.dumps([json.loads(call("a")), json.loads(call("b"))])
    swapped = json.dumps([json.loads(call("b")), json.loads(call("a"))])
    assert reward.compute(swapped, reference=both) == 1
    assert get_reward_function("tool_call", ordered=True).compute(swapped, reference=both) == 0
    for bad, what in (
        ({"reference": "{"}, "no JSON"),
        ({"reference": 5}, "cannot be read"),
        ({"tools": [{}]}, "no name"),
    ):
        with pytest.raises(RewardError, match=what):
            reward.batch(["a"], {k: [v] for k, v in bad.items()})


DATABASE = """
CREATE TABLE city(name TEXT, people INTEGER, area REAL);
INSERT INTO city VALUES ('Rome', 2800, 1285.0), ('Paris', 2100, 105.4), ('Nice', 340, 71.9);
"""


def sql(query: str, gold: object = "SELECT name FROM city WHERE people > 1000", database: object = DATABASE, **params):
    return get_reward_function("sql_result", **params).compute(query, reference=gold, database=database)


@pytest.mark.parametrize(
    ("query", "score"),
    [
        ("SELECT name FROM city WHERE people >= 2000;", 1),
        ("Here:\n```sql\nSELECT name AS n FROM city WHERE people >= 2000 ORDER BY 1\n```", 1),
        ("```\nSELECT 1\n```\nBetter:\n```sql\nSELECT name FROM city WHERE people > 999\n```\nDone.", 1),
        ("<think>SELECT 1</think>SELECT name FROM city WHERE people > 999", 1),
        ("WITH c AS (SELECT * FROM city) SELECT name FROM c WHERE people > 999", 1),
        ("SELECT name FROM city", 0),
        ("SELECT name, people FROM city WHERE people > 1000", 0),
        ("SELECT 'Rome' UNION ALL SELECT 'Paris'", 0),
        ("SELECT name FROM city WHERE people > 999; SELECT 1", 0),
        ("SELEC name", 0),
        ("", 0),
        ("DROP TABLE city", 0),
        ("INSERT INTO city VALUES ('a', 1, 1)", 0),
        ("UPDATE city SET people = 0", 0),
        ("ATTACH DATABASE '/tmp/x.db' AS x", 0),
        ("PRAGMA query_only = 0", 0),
        ("SELECT * FROM pragma_database_list", 0),
        ("SELECT load_extension('x')", 0),
        ("SELECT zeroblob(1000000000) FROM city", 0),
        ("SELECT random() FROM city", 0),
        ("VACUUM INTO '/tmp/stolen.db'", 0),
        ("BEGIN", 0),
        ("SELECT name FROM city, city, city, nothing", 0),
        ("SELECT " + "(" * 5000 + "1", 0),
        ("\0", 0),
        ("\ud800", 0),
    ],
)
def test_sql_result(query: str, score: float) -> None:
    assert sql(query) == score
    assert not Path("/tmp/stolen.db").exists()


def test_sql_order_and_numbers() -> None:
    ordered = "SELECT name FROM city ORDER BY people"
    assert sql("SELECT name FROM city ORDER BY people ASC", ordered) == 1
    assert sql("SELECT name FROM city ORDER BY people DESC", ordered) == 0
    assert sql("SELECT name FROM city ORDER BY people DESC", ordered, order="never") == 1
    assert sql("SELECT name FROM city ORDER BY name", "SELECT name FROM city", order="always") == 0
    assert sql("SELECT sum(area) FROM city", "SELECT 1285.0 + 105.4 + 71.9 FROM city LIMIT 1") == 1
    assert sql("SELECT count(*) FROM city", [[3]]) == 1
    assert sql("SELECT count(*) FROM city", [[4]]) == 0
    assert sql("SELECT 1", None) is None


def test_sql_that_never_ends_is_a_counted_zero() -> None:
    loop = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT max(x) FROM r, city"
    composite = CompositeReward([get_reward_function("sql_result", deadline=0.5)])
    queries = [loop, "SELECT 'Rome' UNION SELECT 'Paris'", "SELEC", "SELECT name FROM city WHERE people > 999"]
    gold = ["SELECT name FROM city WHERE people > 1000"] * 4
    scores = composite.score_batch(queries, {"reference": gold, "database": [DATABASE] * 4})
    assert scores.total == [0, 0, 0, 1]
    assert [scores.stats[f"sql_result/{k}"] for k in ("timeout", "no_table", "error")] == [1, 1, 1]


def test_sql_on_files(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(DATABASE)
    connection.close()
    before = path.read_bytes()
    query = "SELECT name FROM city WHERE people > 2000"
    assert sql(query, database=str(path)) == 1
    assert path.read_bytes() == before
    other = DATABASE + "INSERT INTO city VALUES ('Oslo', 1500, 1);"
    assert sql(query, database=[str(path), other]) == 0
    assert sql("SELECT name FROM city WHERE people > 1000", database=[str(path), other]) == 1


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"database": "missing.db"}, "the database missing.db does not exist"),
        ({"database": 5}, "a database is int"),
        ({"database": []}, "the column database is empty"),
        ({"database": "CREATE TABLE x("}, "the database cannot be read"),
        ({"reference": "SELECT nothing FROM city"}, "the gold query fails"),
        ({"reference": [{"a": 1}]}, "the gold rows are no table"),
    ],
)
def test_sql_rows_that_cannot_be_judged(row: dict, what: str) -> None:
    columns = {"reference": "SELECT 1", "database": DATABASE, **row}
    with pytest.raises(RewardError, match=what):
        get_reward_function("sql_result").batch(["SELECT 1"], {k: [v] for k, v in columns.items()})


def test_sql_functions_that_are_not_let_through() -> None:
    from aligntune.grading.worker_sql import Database

    database = Database(None, DATABASE)
    for query in ("SELECT random()", "SELECT hex(randomblob(2))", "SELECT * FROM pragma_table_info('city')"):
        with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|prohibited"):
            database.run(query, float("inf"))
    assert database.run("SELECT max(people) FROM city", float("inf")) == ([(2800,)], True)
