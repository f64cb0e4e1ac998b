"""The tables of docs/gpu.md, from the result files: what has been run, and what it showed.

Only results of the full form count; a part without one stands there as not run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpu.record import Part, Values, read_result

BEGIN, END = "<!-- results: python benchmarks/gpu_suite.py --page -->", "<!-- end of results -->"


def write(results: Path, parts: list[Part], page: Path) -> None:
    """Put the tables between the marks of the page.

    Raises:
        SystemExit: the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    head, mark, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"{page} has no marks for the results")
    page.write_text(f"{head}{BEGIN}\n{tables(results, parts)}{END}{tail}", encoding="utf-8")


def tables(results: Path, parts: list[Part]) -> str:
    """One row for each part, and below it the figures of those that have been run."""
    found = {part.name: _full(read_result(results / f"{part.name}.json")) for part in parts}
    lines = ["", "| part | what it shows | state |", "|---|---|---|"]
    lines += [f"| `{part.name}` | {part.what} | {_state(found[part.name])} |" for part in parts]
    for part in parts:
        result = found[part.name]
        if result is not None and result["cases"]:
            lines += ["", f"### {part.name}", "", f"{_machine(result)}, {result['seconds']:.0f} s.", ""]
            lines += _figures(part.name, result)
    return "\n".join([*lines, ""])


def _full(result: Values | None) -> Values | None:
    return result if result is not None and result["form"] == "full" else None


def _state(result: Values | None) -> str:
    if result is None:
        return "not run yet"
    done, failed, left = len(result["cases"]), len(result["failed"]), len(result["left"])
    parts = [f"{done - failed} of {done + left} as expected"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{left} not run yet"] if left else []
    return ", ".join(parts)


def _machine(result: Values) -> str:
    machine = result["machine"]
    gpu = (machine.get("gpu") or {}).get("name", "no GPU")
    packages = machine["packages"]
    named = ", ".join(f"{n} {packages.get(n)}" for n in ("torch", "trl", "transformers", "unsloth"))
    return f"{gpu}; {named}"


def _figures(name: str, result: Values) -> list[str]:
    group = name.partition("-")[0]
    columns = COLUMNS.get(group, COLUMNS["smoke"])
    lines = ["| case | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for case, values in result["cases"].items():
        if values["ok"] or group == "isolation":
            cells = [str(make(values, result)) for make in columns.values()]
        else:
            error = str(values.get("error", "")).splitlines() or [""]
            cells = [f"failed: {error[-1][:160]}".replace("|", "/"), *[""] * (len(columns) - 1)]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return lines


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f} GB"


def _share(rate: float | None, of: float | None) -> str:
    return "" if not rate or not of else f"{100 * rate / of:.0f}%"


def _row(values: Values, name: str) -> Values:
    return next((row for row in values.get("rows", []) if row["value"] == name), {})


def _verdicts(values: Values) -> str:
    return "; ".join(f"{r['value']}: {r['verdict']}" for r in values.get("rows", []) if r["margin"] is not None)


def _worst(values: Values, quantity: str) -> str:
    gaps = [p["quantities"][quantity]["difference"] for p in values.get("pairs", []) if quantity in p["quantities"]]
    return _number(max(map(float, gaps)), ".2g") if gaps else ""


Column = Callable[[Values, Values], str]
COLUMNS: dict[str, dict[str, Column]] = {
    "smoke": {
        "first loss": lambda v, _: v.get("skipped") or _number(v.get("first_loss")),
        "last loss": lambda v, _: _number(v.get("last_loss")),
        "peak memory": lambda v, _: _gigabytes(v.get("peak_bytes")),
        "replaced by Unsloth": lambda v, _: str(v.get("foreign", "")),
    },
    "isolation": {
        "verdict": lambda v, _: str(v.get("verdict") or ("as expected" if v["ok"] else "NOT as expected")),
        "symbols, replaced": lambda v, _: f"{v['symbols']}, {v['replaced']}" if "symbols" in v else "",
    },
    "parity": {
        "log-probabilities (nats)": lambda v, _: _worst(v, "log-probabilities"),
        "loss (relative)": lambda v, _: _worst(v, "loss"),
        "gradient (1 - cosine)": lambda v, _: _worst(v, "gradient direction"),
    },
    "dpo": {
        "step time in s, TRL": lambda v, _: _number(_row(v, "step_time").get("base_median")),
        "Unsloth": lambda v, _: _number(_row(v, "step_time").get("arm_median")),
        "peak memory, TRL": lambda v, _: _gigabytes(_row(v, "peak_gpu_memory").get("base_median")),
        "Unsloth ": lambda v, _: _gigabytes(_row(v, "peak_gpu_memory").get("arm_median")),
        "verdicts": lambda v, _: _verdicts(v),
    },
    "speed": {
        "tokens/s, TRL": lambda v, _: _number(v["trl"]["tokens_per_second"], ",.0f"),
        "Unsloth": lambda v, _: _number(v["unsloth"]["tokens_per_second"], ",.0f"),
        "speed ratio": lambda v, _: _number(v.get("speed_ratio"), ".2f"),
        "MFU, TRL": lambda v, r: _share(v["trl"].get("model_flops"), r["facts"].get("peak_flops")),
        "Unsloth ": lambda v, r: _share(v["unsloth"].get("model_flops"), r["facts"].get("peak_flops")),
        "peak memory, TRL": lambda v, _: _gigabytes(v["trl"]["peak_bytes"]),
        "Unsloth  ": lambda v, _: _gigabytes(v["unsloth"]["peak_bytes"]),
    },
    "memory": {
        "estimated": lambda v, _: _gigabytes(v["estimated"]["peak"]),
        "measured": lambda v, _: _gigabytes(v["measured"]),
        "ratio": lambda v, _: _number(v["ratio"], ".2f"),
    },
}
COLUMNS["grpo"] = COLUMNS["dpo"]
