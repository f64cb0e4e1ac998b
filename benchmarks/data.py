"""From a file to tokenised training rows: time and peak memory, against `datasets` and TRL's own preparation.

    python benchmarks/data.py                                  # 10^4 rows, in a few minutes
    python benchmarks/data.py --rows 10000 100000 1000000      # the full table
    python benchmarks/data.py --rows 10000 --formats jsonl --only cold trl
    python benchmarks/data.py --stream-memory --rows 10000 100000 1000000      # into results/data_stream.json
    python benchmarks/data.py --rows 1000000 --formats jsonl --add   # beside what the result file has

Each measurement is a process of its own, which first imports everything and builds a one-layer model, and is then timed
from the name of the file to the trainer that holds the tokenised rows. Rows are prompts and completions of about 60 and
120 words of English-like text, drawn with a seed, tokenised by the quickstart's tokenizer; `chat` has them as messages
through a chat template. The arms:

| arm | what is timed |
|---|---|
| trl | `datasets.load_dataset` and `trl.SFTTrainer(...)`, with the library's caches empty |
| cold | our trainer with an empty data cache |
| cached | our trainer again |
| stream | 10^5 rows or fewer of our stream, one after the other |

`--stream-memory` reads a stream of short rows to its end, which shows whether its memory depends on its length.

Peak memory is the growth of the process's peak resident set over that before the clock starts. Bars: cold at most 1.1
times and cached at most 0.1 times the time of `trl`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ARMS = ("trl", "cold", "cached", "stream")
FORMATS = ("jsonl", "csv", "parquet", "chat")
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = (  # noqa: SIM905 - a list of these would be a page long
    "the of and to in is that it for was on are as with they be at one have this from by had not but what all were "
    "when we there can an your which their said if will each about how up out them then she many some so these would "
    "other"
).split()


def write_rows(path: Path, kind: str, count: int) -> None:
    """Write `count` rows in one format, block by block."""
    import pyarrow as pa
    from pyarrow import parquet

    rng = random.Random(count)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high))).capitalize() + "."

    table: Any = None
    with open(path, "w", encoding="utf-8") if kind != "parquet" else tempfile.TemporaryFile("w") as file:
        if kind == "csv":
            file.write("prompt,completion\n")
        for start in range(0, count, 10_000):
            rows = [(text(30, 90), text(60, 180)) for _ in range(min(10_000, count - start))]
            if kind == "csv":
                file.writelines(f'"{p}","{c}"\n' for p, c in rows)
            elif kind == "short":
                file.writelines(
                    json.dumps({"text": f"row {start + i} " + p[:20]}) + "\n" for i, (p, _) in enumerate(rows)
                )
            elif kind == "parquet":
                block = pa.table({"prompt": [p for p, _ in rows], "completion": [c for _, c in rows]})
                table = table or parquet.ParquetWriter(path, block.schema)
                table.write_table(block)
            elif kind == "chat":
                file.writelines(
                    json.dumps(
                        {
                            "prompt": [{"role": "user", "content": p}],
                            "completion": [{"role": "assistant", "content": c}],
                        }
                    )
                    + "\n"
                    for p, c in rows
                )
            else:
                file.writelines(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows)
    if table is not None:
        table.close()


def save_model(folder: Path) -> Path:
    """A one-layer model with the quickstart's tokenizer, and with a chat template in `<folder>-chat`."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from aligntune.quickstart import BASE_MODEL

    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **shape)
    for name, template in (("plain", None), ("chat", CHAT)):
        tokenizer.chat_template = template
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def measure(arm: str, kind: str, path: Path, model: Path, work: Path) -> dict[str, Any]:
    """One measurement in this process."""
    import datasets
    import transformers
    import trl

    from aligntune.core.backend_factory import create_sft_trainer
    from aligntune.core.callbacks import Progress, StopRequest
    from aligntune.utils.device import peak_rss_bytes

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    folder = model / ("chat" if kind == "chat" else "plain")
    settings = {"output_dir": str(work / f"out-{arm}"), "max_steps": 1, "model__max_seq_length": 1024}
    trl.SFTTrainer  # noqa: B018 - imported before the clock starts
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    before, started = peak_rss_bytes(), time.perf_counter()
    if arm == "trl":
        loader = "json" if kind in ("jsonl", "chat") else kind
        rows = datasets.load_dataset(loader, data_files=str(path), split="train", cache_dir=str(work / "hf"))
        args = trl.SFTConfig(
            output_dir=settings["output_dir"], max_steps=1, max_length=1024, use_cpu=True, bf16=False, report_to="none"
        )
        trainer = trl.SFTTrainer(str(folder), args=args, train_dataset=rows)
        count, longest = len(trainer.train_dataset), len(trainer.train_dataset[0]["input_ids"])
    else:
        streaming = {"dataset__streaming": True} if arm == "stream" else {}
        if kind == "short":
            settings["task_type"] = "text_generation"
        ours = create_sft_trainer(
            model_name=str(folder), dataset_name=str(path), cache__dir=str(work / "cache"), **settings, **streaming
        )
        if arm == "stream":
            count = 0
            for row in ours._train_rows().dataset:
                count, longest = count + 1, len(row["input_ids"])
                if count == 100_000 and kind != "short":
                    break
        else:
            made = ours._build(StopRequest(), Progress("x")).train_dataset
            count, longest = len(made), len(made[0]["input_ids"])
    seconds = time.perf_counter() - started
    return {
        "arm": arm,
        "format": kind,
        "rows": count,
        "seconds": round(seconds, 3),
        "rows_per_second": round(count / seconds),
        "peak_mb": round((peak_rss_bytes() - before) / 1e6, 1),
        "tokens_of_one_row": longest,
    }


def child(arm: str, kind: str, path: Path, model: Path, work: Path) -> dict[str, Any]:
    """One measurement in a fresh process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_DATASETS_CACHE": str(work / "hf"), "CUDA_VISIBLE_DEVICES": ""}
    call = [sys.executable, __file__, "--child", arm, kind, str(path), str(model), str(work)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm} {kind} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def run(counts: list[int], formats: list[str], arms: list[str], repeats: int) -> list[dict[str, Any]]:
    """Every measurement; of several repeats the fastest."""
    found = []
    with tempfile.TemporaryDirectory(prefix="data-benchmark-") as temporary:
        root = Path(temporary)
        model = save_model(root / "model")
        for count in counts:
            for kind in formats:
                path = root / f"rows.{'jsonl' if kind == 'chat' else kind}"
                write_rows(path, kind, count)
                best: dict[str, dict[str, Any]] = {}
                for repeat in range(repeats):
                    work = root / f"work-{repeat}"
                    for arm in arms:
                        row = child(arm, kind, path, model, work)
                        if arm not in best or row["seconds"] < best[arm]["seconds"]:
                            best[arm] = row
                    shutil.rmtree(work, ignore_errors=True)
                for row in best.values():
                    if "trl" in best and row["arm"] in ("cold", "cached"):
                        row["times_trl"] = round(row["seconds"] / best["trl"]["seconds"], 3)
                    print(json.dumps(row), flush=True)
                    found.append(row)
                path.unlink()
    return found


def stream_memory(counts: list[int]) -> list[dict[str, Any]]:
    """Peak memory of a stream of each length."""
    found = []
    with tempfile.TemporaryDirectory(prefix="data-benchmark-") as temporary:
        root = Path(temporary)
        model = save_model(root / "model")
        for count in counts:
            write_rows(root / "rows.jsonl", "short", count)
            found.append(child("stream", "short", root / "rows.jsonl", model, root / "work"))
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        arm, kind, *places = sys.argv[2:]
        print(json.dumps(measure(arm, kind, *map(Path, places))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--add", action="store_true", help="Keep the other measurements that the result file has.")
    parser.add_argument("--stream-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from machine import describe

    if options.stream_memory:
        out = options.out or HERE / "results" / "data_stream.json"
        told = {"machine": describe(), "measurements": stream_memory(options.rows)}
        out.write_text(json.dumps(told, indent=1) + "\n")
        return
    options.out = options.out or HERE / "results" / "data.json"
    known = json.loads(options.out.read_text())["measurements"] if options.add and options.out.exists() else []
    rows = run(options.rows, options.formats, options.only, options.repeats)
    made = {(r["arm"], r["format"], r["rows"]) for r in rows}
    rows = [r for r in known if (r["arm"], r["format"], r["rows"]) not in made] + rows
    rows.sort(key=lambda r: (r["rows"], FORMATS.index(r["format"]), ARMS.index(r["arm"])))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"machine": describe(), "measurements": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
