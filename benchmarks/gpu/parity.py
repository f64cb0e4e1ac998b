"""Parity: the probe of `aligntune compare --probe` for each algorithm, in fp32 and in bf16.

Per-token log-probabilities, loss and gradient of TRL against Unsloth, and of AlignTune's trainer against the bare
library where that has the algorithm, on one batch. In fp32 PyTorch's TF32 matrix products stay off.
"""

from __future__ import annotations

from functools import partial

from gpu import configs, models
from gpu.child import answer
from gpu.record import Case, Part, Settings, Values

PROBE = """
from aligntune.compare.probe import probe
from aligntune.errors import AlignTuneError
try:
    found = probe(given["config"], timeout=given["each"])
    result = {"verdict": found.to_dict(), "text": str(found)}
except AlignTuneError as error:
    result = {"error": f"{error.message} (hint: {error.hint})"}
"""
ROUNDS = ("spin", "meta_es")
"""Algorithms of several rounds, which have no single loss."""


def cases(precision: str, sampling: bool, settings: Settings) -> list[Case]:
    """Algorithms that sample, or those that do not."""
    named = [n for n in configs.names() if configs.samples(n) == sampling and n not in ROUNDS]
    if settings.tiny:
        named = [n for n in named if n in ("instruction_following", "dpo", "kto", "simpo", "gkd", "grpo", "gspo")]
    return [Case(n, partial(_probe, n, precision, settings), 300) for n in named]


def _probe(name: str, precision: str, settings: Settings, seconds: float) -> Values:
    model, _ = models.build("llama", "0.1b", settings, small_vocabulary=True)
    values = configs.config(name, settings, model, backend="trl", batch=4, precision=precision)
    values["output_dir"] = str(settings.work / "runs" / "parity" / f"{precision}-{name}")
    told = answer(PROBE, seconds, settings, config=values, each=seconds)
    if "error" in told:
        return {"ok": False, "error": told["error"]}
    verdict = told["verdict"]
    pairs = [
        {
            "pair": f"{p['right']} against {p['left']}",
            "ok": p["ok"],
            "cause": p["cause"],
            "quantities": {
                q["name"]: {"difference": q["difference"], "limit": q["tolerance"]} for q in p["quantities"]
            },
        }
        for p in verdict["pairs"]
    ]
    causes = "; ".join(f"{p['pair']}: {p['cause']}" for p in pairs if not p["ok"])
    return {
        "ok": verdict["ok"],
        "error": causes,
        "pairs": pairs,
        "notes": verdict["notes"],
        "precision": verdict["precision"],
    }


PARTS = [
    Part(f"parity-{precision}-{kind}", f"TRL against Unsloth on one batch, {precision}, {what}",
         partial(cases, precision, sampling), True)
    for precision in ("fp32", "bf16")
    for kind, sampling, what in (("supervised", False, "tasks and pairs"), ("policy", True, "algorithms that sample"))
]  # fmt: skip
