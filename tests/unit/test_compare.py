"""Comparisons: plans, measurements from run folders, verdicts by simulation, failed and resumed runs."""

from __future__ import annotations

import json
import math
import random

import pytest

from aligntune.compare.analysis import analyse
from aligntune.compare.crossed import crossed
from aligntune.compare.environments import environments
from aligntune.compare.execution import begin, compare, run_all, train_process
from aligntune.compare.measure import Measured, direction, measure, timings
from aligntune.compare.page import told, write_page
from aligntune.compare.plan import make_plan
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.stats import paired_difference, wilson_interval
from aligntune.utils.run_folder import RunFolder
from runs import SFT_ROWS, write_rows


@pytest.fixture
def source(tiny_model, tmp_path):
    return {
        "task": "instruction_following",
        "model": {"name_or_path": str(tiny_model), "max_seq_length": 64},
        "dataset": {"name": str(write_rows(tmp_path / "rows.jsonl", SFT_ROWS))},
        "train": {"max_steps": 3, "per_device_batch_size": 4, "learning_rate": 1e-3},
    }


def _run(arm, seed, **values):
    return Measured(arm, seed, f"runs/{arm}/{seed}", "finished", values)


# ---- plans


def test_arms_are_the_product_of_the_axes(source, tmp_path):
    settings = ["train.learning_rate=[1.0e-4,1.0e-3]", "train.weight_decay=[0.0,0.1]", "train.max_steps=2"]
    plan = make_plan(source, settings, seeds=2, output_dir=tmp_path / "out")
    assert [a.name for a in plan.arms] == [
        f"train.learning_rate={lr} train.weight_decay={wd}" for lr in ("0.0001", "0.001") for wd in ("0.0", "0.1")
    ]
    config = plan.config(plan.arms[3], 43)
    assert (config.train.learning_rate, config.train.weight_decay, config.train.max_steps) == (1e-3, 0.1, 2)
    assert (config.train.seed, config.logging.steps) == (43, 1)
    assert config.output_dir == str(tmp_path / "out" / plan.arms[3].slug / "seed-43")
    assert len({a.slug for a in plan.arms}) == 4


def test_the_order_turns_with_the_seed(source, tmp_path):
    plan = make_plan(source, ["train.weight_decay=[0.0,0.1,0.2]"], seeds=[1, 2], output_dir=tmp_path)
    ends = [(arm.name[-3:], seed) for arm, seed in plan.order()]
    assert ends == [("0.0", 1), ("0.1", 1), ("0.2", 1), ("0.1", 2), ("0.2", 2), ("0.0", 2)]


def test_the_same_arm_twice_has_two_folders(source, tmp_path):
    plan = make_plan(source, ["train.weight_decay=[0.1,0.1]"], seeds=1, output_dir=tmp_path)
    assert [a.name for a in plan.arms] == ["train.weight_decay=0.1", "train.weight_decay=0.1 (2)"]
    assert plan.arms[0].slug != plan.arms[1].slug


@pytest.mark.parametrize(
    ("settings", "seeds", "message"),
    [
        ([], 3, "there is no axis"),
        (["train.weight_decay=[0.1]"], 3, "has 1 value"),
        (["train.weight_decay"], 3, "is no setting"),
        (["train.weight_decay=[0,1]"], [1, 1], "seeds are"),
        (["train.weight_decay=[0,1]"], 200, "400 runs"),
        (["train.seed=[1,2]"], 3, "a comparison sets train.seed itself"),
        (["train.weight_decay=[0,1]", "logging.steps=5"], 3, "a comparison sets logging.steps itself"),
        (["train.weight_decy=[0,1]"], 3, "arm train.weight_decy=0"),
        (["backend=[trl,unslot]"], 3, "arm backend=unslot"),
    ],
)
def test_wrong_plans_are_refused_before_anything_runs(source, tmp_path, settings, seeds, message):
    with pytest.raises(ConfigurationError, match=message.replace("[", "\\[")):
        make_plan(source, settings, seeds=seeds, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- measurements


def test_timings_leave_out_the_warm_up_and_pass_over_evaluations():
    times = [5.0, 9.0, 10.0, 11.0, 30.0, 31.0, 32.0]  # two slow steps, and an evaluation before the fifth
    rows = [{"step": i + 1, "time": t, "loss": 1.0, "num_tokens": 100 * (i + 1)} for i, t in enumerate(times)]
    found = timings(rows)
    assert found == {"step_time": 1.0, "tokens_per_second": 100.0}
    assert timings(rows[:1]) == {}


def test_a_run_is_read_from_its_folder(tmp_path):
    run = RunFolder.claim(tmp_path / "run")
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "time": float(step), "loss": 2.0 / step, "learning_rate": 0.1})
    run.append_metrics({"step": 3, "time": 3.5, "eval_nll": 1.5})
    run.mark_finished({"final_loss": 1.2, "peak_memory": 10**9, "metrics": {"eval_nll": 1.4}})
    items = tmp_path / "run" / "eval" / "items"
    items.mkdir(parents=True)
    write_rows(items / "sums.jsonl", [{"id": "a", "scores": {"accuracy": s}} for s in (1.0, 0.0)])
    found = measure("a", 1, tmp_path / "run", {"code": 0, "seconds": 9.0})
    assert found.values["eval_nll"] == 1.4
    assert found.values["wall_time"] == 9.0
    assert found.values["final_loss"] == 1.2
    assert "learning_rate" not in found.values
    assert found.curves["loss"] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    assert found.items == {"sums/accuracy": {"a": 0.5}}
    lost = measure("a", 2, tmp_path / "nothing", {"code": -9, "error": "killed"})
    assert (lost.status, lost.error) == ("failed", "killed")


def test_names_say_which_way_is_better():
    assert [direction(n) for n in ("eval_nll", "eval_reward", "step_time", "tokens_per_second", "eval_rows")] == [
        False, True, False, True, None,
    ]  # fmt: skip


# ---- verdicts


def test_equal_arms_are_equivalent_and_different_ones_different():
    rng = random.Random(0)
    runs = []
    for seed in range(5):
        base = rng.gauss(0.5, 0.1)  # seeds differ more than arms, which pairing takes out
        runs += [
            _run("a", seed, eval_reward=base, step_time=1.0 + 0.01 * rng.random()),
            _run("b", seed, eval_reward=base + rng.gauss(0, 0.001), step_time=0.5 + 0.005 * rng.random()),
            _run("c", seed, eval_reward=base - 0.2 + rng.gauss(0, 0.01), step_time=1.0 + 0.01 * rng.random()),
        ]
    found = analyse(runs, ["a", "b", "c"], margin=0.02)
    assert found.row("b", "eval_reward").verdict == "equivalent within 0.02"
    worse = found.row("c", "eval_reward")
    assert (worse.verdict, worse.better) == ("different", False)
    assert worse.change == pytest.approx(-0.2, abs=0.02)
    faster = found.row("b", "step_time")
    assert (faster.verdict, faster.better, faster.kind) == ("different", True, "ratio")
    assert faster.change == pytest.approx(0.5, abs=0.01)
    assert faster.low < faster.change < faster.high
    assert found.row("c", "step_time").verdict == "equivalent within 5%"


@pytest.mark.parametrize("name", ["eval_reward", "eval/sums/accuracy"])
def test_one_margin_holds_for_held_out_rows_and_for_tasks(name):
    runs = [_run(arm, seed, **{name: 0.5 + seed / 100, "reward": 0.5}) for arm in "ab" for seed in range(3)]
    found = analyse(runs, ["a", "b"], margin=0.05)
    assert found.row("b", name).verdict == "equivalent within 0.05"
    assert found.row("b", "reward").margin is None


def test_runs_that_agree_to_the_last_bit_are_equivalent():
    runs = [_run(arm, seed, eval_nll=1.0 + seed) for arm in "ab" for seed in range(3)]
    row = analyse(runs, ["a", "b"], margin=0.01).row("b", "eval_nll")
    assert (row.verdict, row.change, row.p_value) == ("equivalent within 0.01", 0.0, 1.0)


def test_too_few_seeds_say_how_many_it_takes():
    runs = [_run("a", s, eval_reward=v) for s, v in enumerate((0.4, 0.6, 0.5))]
    runs += [_run("b", s, eval_reward=v) for s, v in enumerate((0.5, 0.5, 0.55))]
    row = analyse(runs, ["a", "b"], margin=0.02).row("b", "eval_reward")
    assert row.verdict.startswith("not enough data: about ")
    assert row.needed > 3
    one = analyse([r for r in runs if r.seed == 0], ["a", "b"], margin=0.02)
    assert one.row("b", "eval_reward").verdict == "no verdict: one seed"
    assert "1 seed: the spread" in one.notes[0]
    assert "no margin was stated" in analyse(runs, ["a", "b"]).notes[-1]


def test_equal_arms_are_called_different_in_at_most_five_percent():
    """Ten values of each run, all without a true difference."""
    rng, count, wrong = random.Random(7), 800, 0
    for _ in range(count):
        runs = [
            _run(arm, seed, **{f"eval_m{i}": rng.gauss(0, 1) for i in range(8)}, step_time=math.exp(rng.gauss(0, 0.1)))
            for seed in range(4)
            for arm in "ab"
        ]
        rows = analyse(runs, ["a", "b"], margin=0.05).rows
        wrong += any(row.verdict == "different" for row in rows)
    assert wilson_interval(wrong, count).low <= 0.05


def _with_items(arm, seed, scores):
    items = {"sums/accuracy": {str(i): float(score) for i, score in enumerate(scores)}}
    return Measured(arm, seed, "x", "finished", {}, {}, items)


def test_items_are_paired_over_arms():
    runs = [_with_items(arm, s, [i < n for i in range(40)]) for arm, n in (("a", 10), ("b", 24)) for s in range(2)]
    row = analyse(runs, ["a", "b"], margin=0.05).row("b", "items/sums/accuracy")
    assert (row.kind, row.n, row.verdict, row.better) == ("items", 40, "different", True)
    assert row.change == pytest.approx(14 / 40)
    # Scores that are no longer 0 or 1, and a margin in units that are no proportions.
    assert analyse(runs, ["a", "b"], margin=1.5).row("b", "items/sums/accuracy").verdict == "equivalent within 1.5"
    named = analyse(runs, ["a", "b"], margin={"items/sums/accuracy": 0.6}).row("b", "items/sums/accuracy")
    assert named.verdict == "equivalent within 0.6"
    one = analyse([r for r in runs if r.seed == 0], ["a", "b"], margin=0.05).row("b", "items/sums/accuracy")
    assert (one.verdict, one.p_value, one.better) == ("no verdict: one seed", None, None)


def test_the_luck_of_a_few_runs_is_not_the_arms_own():
    """Equal arms, whose runs differ by ten points: paired by item alone, more than half would be called different."""
    rng, count, wrong, alone = random.Random(3), 150, 0, 0
    for _ in range(count):
        hard = [rng.random() for _ in range(80)]
        runs = []
        for arm in "ab":
            for seed in range(3):
                luck = rng.gauss(0, 0.15)
                runs.append(_with_items(arm, seed, [rng.random() < h + luck for h in hard]))
        row = analyse(runs, ["a", "b"], margin=0.05).row("b", "items/sums/accuracy")
        wrong += row.verdict != "not enough data" and not row.verdict.startswith("not enough data: ")
        xs, ys = ([sum(r.items["sums/accuracy"][str(i)] for r in runs if r.arm == a) for i in range(80)] for a in "ab")
        alone += paired_difference(xs, ys).p_value < 0.05
    assert wrong / count <= 0.05
    assert alone / count > 0.3


def test_arms_that_differ_by_more_than_their_runs_are_different_by_item():
    rng = random.Random(5)
    runs = [
        _with_items(arm, seed, [rng.random() < share for _ in range(200)])
        for arm, share in (("a", 0.3), ("b", 0.7))
        for seed in range(4)
    ]
    row = analyse(runs, ["a", "b"], margin=0.05).row("b", "items/sums/accuracy")
    assert (row.verdict, row.better) == ("different", True)
    assert row.low < 0.4 < row.high


def test_crossed_seeds_and_items_by_hand():
    found = crossed([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 1.0]])
    assert found.mean == pytest.approx(6 / 9)
    assert found.of_seeds == pytest.approx(1 / 3 / 3)  # means 1, 0, 1
    assert found.of_items == pytest.approx(1 / 3 / 3)  # means 1, 0, 1
    t = (6 / 9) / math.sqrt(2 / 9)  # two degrees of freedom, whose distribution has a closed form
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.tost(10.0).verdict == "equivalent"
    assert found.tost(0.5).needed is None  # three seeds are too few, however many items there are
    assert crossed([[0.5, 0.5], [0.5, 0.5]]).p_value == 0.0


def test_a_margin_must_be_one():
    runs = [_run(arm, 0, eval_nll=1.0) for arm in "ab"]
    with pytest.raises(ValidationError, match="margin of every value is 0"):
        analyse(runs, ["a", "b"], margin=0.0)
    with pytest.raises(ValidationError, match="margin of times and memory is inf"):
        analyse(runs, ["a", "b"], ratio_margin=math.inf)
    with pytest.raises(ValidationError, match="no run has the value 'eval_nl'") as caught:
        analyse(runs, ["a", "b"], margin={"eval_nl": 0.1})
    assert "--resume" in caught.value.hint


def test_what_ought_to_be_the_same_in_all_runs_and_is_not_is_noted():
    def run(arm, seed, order, python="3.11"):
        facts = {"data_order": {"sha256": order}, "system": {"python": python}}
        return Measured(arm, seed, "x", "finished", {"loss": 1.0}, facts=facts)

    equal = [run(arm, seed, f"order {seed}") for arm in "ab" for seed in range(3)]
    assert analyse(equal, ["a", "b"], margin=1.0).notes == []
    other = [*equal[:4], run("b", 1, "another"), run("b", 2, "third", "3.12")]
    assert analyse(other, ["a", "b"], margin=1.0).notes == [
        "the runs differ in system: see each run's manifest.json",
        "b did not see the batches of a in their order (seeds 1, 2): see order.jsonl",
    ]


def _facts(backend, trl="1.14.2", by=None, **packages):
    return {
        "backend": backend,
        "packages": {"torch": "2.13.0", "trl": trl, "unsloth": "2026.10.9", "tqdm": "4.70.1", **packages},
        "device": {"device": "cpu", "threads": 1},
        "patch_fingerprint": {"hash": f"{backend:0<64}", "replaced": sorted(by or {}), "by": by or {}},
    }


def test_environments_show_what_trains_and_what_differs(source, tmp_path):
    patched = _facts("unsloth", by={"trl.SFTTrainer.__init__": 2}, xxhash="4.1.0")
    runs = [Measured("a", seed, "x", "finished", {"loss": 1.0}, facts=_facts("trl")) for seed in (1, 2)]
    runs += [Measured("b", seed, "x", "finished", {"loss": 1.0}, facts=patched) for seed in (1, 2)]
    one, two = environments(runs)
    assert (one["arm"], one["seeds"], one["backend"], one["device"]) == ("a", "", "trl", "cpu, 1 thread")
    assert one["packages"] == "torch 2.13.0, trl 1.14.2, xxhash (not installed)"
    assert two["packages"] == "torch 2.13.0, trl 1.14.2, unsloth 2026.10.9, xxhash 4.1.0"
    assert (one["fingerprint"], one["replaced"], two["fingerprint"]) == ("trl000000000", "0", "unsloth00000")
    assert (two["replaced"], two["symbols"]) == ("2", ("trl.SFTTrainer.__init__",))
    other = Measured("b", 3, "x", "finished", {"loss": 1.0}, facts=_facts("unsloth", trl="1.15.0"))
    lost = Measured("b", 4, "x", "failed", error="killed")
    assert [row["seeds"] for row in environments([*runs, other, lost])] == ["", "seeds 1, 2", "seed 3"]
    plan = make_plan(source, ["train.weight_decay=[0.0,0.1]"], seeds=2, output_dir=tmp_path)
    page = write_page(tmp_path / "page.html", analyse(runs, ["a", "b"], margin=1.0), plan).read_text()
    for text in ("Environments", "unsloth00000", "trl.SFTTrainer.__init__", "xxhash 4.1.0"):
        assert text in page
    empty = write_page(tmp_path / "page.html", analyse([lost], ["a", "b"], margin=1.0), plan).read_text()
    assert "Environments" not in empty


# ---- running


def _fake(outcomes):
    """A runner that writes a finished run, or fails, as `outcomes` says for each folder name."""

    def runner(file, printed, begun):
        import yaml

        folder = yaml.safe_load(file.read_text())["output_dir"]
        printed.write_text("words\n")
        what = outcomes(folder)
        if isinstance(what, str):
            return {"code": 1, "seconds": 1.0, "error": what}
        run = RunFolder.claim(folder)
        run.append_metrics({"step": 1, "time": 1.0, "loss": what})
        run.mark_finished({"final_loss": what, "metrics": {"eval_nll": what}})
        return {"code": 0, "seconds": 2.0}

    return runner


def test_a_failed_arm_is_reported_and_the_others_go_on(source, tmp_path):
    plan = make_plan(source, ["train.weight_decay=[0.0,0.1]"], seeds=2, output_dir=tmp_path / "out")
    begin(plan, resume=False)
    runs = run_all(plan, _fake(lambda folder: "the disk is full" if folder.endswith("0.1/seed-42") else 1.0))
    found = analyse(runs, [a.name for a in plan.arms], margin=0.1)
    assert [(r.arm[-3:], r.seed) for r in found.failed] == [("0.1", 42)]
    assert "train.weight_decay=0.1, seed 42 failed: the disk is full" in found.notes
    assert found.row("train.weight_decay=0.1", "eval_nll").n == 1
    page = write_page(tmp_path / "page.html", found, plan).read_text()
    assert "the disk is full" in page
    assert "<script" not in page
    assert "no verdict: one seed" in told(found)


def test_lists_on_the_command_line_may_have_spaces_and_no_empty_names(cli, source, tmp_path):
    from aligntune.cli.compare import read_names, read_seeds

    assert read_names("--backends", " trl, unsloth ") == ["trl", "unsloth"]
    assert [read_seeds(text) for text in ("3", " 3 ", "1, 2 ,3", "7,", " 7, ")] == [3, 3, [1, 2, 3], [7], [7]]
    for text in ("", " ", "trl,", ",trl", "trl,,unsloth", "trl, ,unsloth"):
        with pytest.raises(ConfigurationError, match=r"--backends is .* a name in it is empty"):
            read_names("--backends", text)
    for text in ("", " ", ",", "1,,2", ",1", "1, ,2", "-1", "0", "a,b", "1,,"):
        with pytest.raises(ConfigurationError, match="--seeds is"):
            read_seeds(text)
    line = ["compare", _written(source, tmp_path / "run.yaml"), "--output-dir", tmp_path / "out", "--dry-run"]
    ran = cli(*line, "--algorithms", "dpo,", "--seeds", "1,2")
    assert (ran.code, "--algorithms is 'dpo,', and a name in it is empty" in ran.err) == (2, True)
    ran = cli(*line, "--backends", "trl, trl", "--seeds", "1, 2", "--json")
    assert [(run["arm"], run["seed"]) for run in ran.json["runs"][:2]] == [("backend=trl", 1), ("backend=trl (2)", 1)]


def test_every_algorithm_is_probed_on_the_backends(cli, monkeypatch, source, tmp_path, tiny_model):
    import yaml

    from aligntune.compare.probe import ProbeResult
    from aligntune.compare.probe_verdict import Pair, Quantity

    rows = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "yes", "rejected": "no"}] * 4)
    raw = {"algo": "dpo", "model": source["model"], "datasets": [str(rows)], "train": {"max_steps": 1}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    probed = []

    def probe(config, backends):
        probed.append((config.algorithm.key, config.algorithm.beta, list(backends)))
        loss = Quantity("loss", config.algorithm.key == "dpo", 0.0, 0.1, "nats")
        return ProbeResult(config.algorithm.key, "fp32", [Pair("trl", "unsloth", "fp32", [loss])], {})

    monkeypatch.setattr("aligntune.compare.probe.probe", probe)
    line = ["compare", tmp_path / "run.yaml", "--backends", "trl,unsloth", "--algorithms", "dpo,simpo", "--probe"]
    line += ["algo.beta=[0.1,0.2]", "--seeds", "1,", "--output-dir", tmp_path / "out"]
    unprobed = "dpo is probed with algo.name=dpo algo.beta=0.1, not with algo.name=dpo "
    planned = cli(*line, "--dry-run", "--json").json
    assert planned["notes"][0] == "the probe of dpo, simpo on trl, unsloth is not run by --dry-run"
    assert planned["notes"][1] == f"{unprobed}algo.beta=0.2"
    assert (probed, "note: the probe of dpo, simpo" in cli(*line, "--dry-run").out) == ([], True)
    ran = cli(*line)
    assert probed == [("dpo", 0.1, ["trl", "unsloth"]), ("simpo", 0.1, ["trl", "unsloth"])]
    assert (ran.code, "the backends differ in simpo; nothing was trained" in ran.out) == (1, True)
    assert f"note: {unprobed}algo.beta=0.2" in ran.err
    assert [result["ok"] for result in cli(*line, "--json").json["probes"]] == [True, False]
    assert not (tmp_path / "out").exists()
    ran = cli("compare", tmp_path / "run.yaml", "algo.beta=[0.1,0.2]", "--probe", "--dry-run", "--output-dir", "o")
    assert (ran.code, "--probe holds backends against each other" in ran.err) == (2, True)


def _compared(cli, monkeypatch, source, folder, outcomes, *flags):
    """`aligntune compare` of two weight decays over two seeds, with the runs of `_fake`."""
    monkeypatch.setattr("aligntune.compare.execution.train_process", _fake(outcomes))
    folder.mkdir(exist_ok=True)
    file = _written(source, folder / "run.yaml")
    line = ["compare", file, "train.weight_decay=[0.0,0.1]", "--seeds", "1,2", "--output-dir", folder / "out"]
    return cli(*line, *flags)


@pytest.mark.parametrize(
    ("failing", "code"), [("", 0), ("0.1/seed-1", 0), ("0.0/seed-2", 0), ("0.1/", 1), ("0.0/", 1), ("seed", 1)]
)
def test_the_exit_code_says_whether_an_arm_has_no_results(cli, monkeypatch, source, tmp_path, failing, code):
    ran = _compared(cli, monkeypatch, source, tmp_path, lambda f: "no disk" if failing and failing in f else 1.0)
    assert ran.code == code, ran.err
    assert (tmp_path / "out" / "comparison.html").exists()


def test_two_processes_on_one_comparison_refuse_each_other(source, tmp_path, monkeypatch):
    import subprocess
    import sys

    made = []
    monkeypatch.setattr("aligntune.compare.execution.train_process", _fake(lambda f: made.append(f) or 1.0))
    out = tmp_path / "out"
    out.mkdir()
    hold = "import sys; from aligntune.utils.lock import RunLock as L; L(sys.argv[1]).acquire(); print(); input()"
    line = [sys.executable, "-c", hold, str(out)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "\n"
        for resume in (False, True):
            with pytest.raises(ConfigurationError, match=f"in use by process {other.pid}"):
                compare(source, ["train.weight_decay=[0.0,0.1]"], seeds=1, output_dir=out, resume=resume)
        assert made == []
        assert not (out / "plan.json").exists()
        other.communicate("\n")
    compare(source, ["train.weight_decay=[0.0,0.1]"], seeds=1, output_dir=out)
    assert len(made) == 2
    assert not (out / ".run.lock").exists()


def test_a_comparison_goes_on_with_what_is_missing(source, tmp_path):
    plan = make_plan(source, ["train.weight_decay=[0.0,0.1]"], seeds=1, output_dir=tmp_path / "out")
    begin(plan, resume=False)
    made = []

    def outcome(folder):
        made.append(folder)
        return 1.0

    run_all(plan, _fake(outcome))
    assert len(made) == 2
    with pytest.raises(ConfigurationError, match="this comparison already"):
        begin(plan, resume=False)
    begin(plan, resume=True)
    run_all(plan, _fake(outcome))
    assert len(made) == 2
    other = make_plan(source, ["train.weight_decay=[0.0,0.2]"], seeds=1, output_dir=tmp_path / "out")
    with pytest.raises(ConfigurationError, match="another arms"):
        begin(other, resume=True)


def _written(source, path, **train):
    import yaml

    path.write_text(yaml.safe_dump({**source, "train": {**source["train"], **train}}))
    return path


def test_a_file_that_was_edited_since_is_refused_with_what_changed(source, tmp_path):
    file = _written(source, tmp_path / "run.yaml")
    settings, out = ["train.weight_decay=[0.0,0.1]"], tmp_path / "out"
    begin(make_plan(file, settings, seeds=1, output_dir=out), resume=False)
    _written(source, file, max_steps=5, warmup_steps=1)
    with pytest.raises(ConfigurationError) as caught:
        begin(make_plan(file, settings, seeds=1, output_dir=out), resume=True)
    assert "train.max_steps: 3 -> 5" in caught.value.message
    assert "train.warmup_steps: 0 -> 1" in caught.value.message
    assert "train.weight_decay" not in caught.value.message
    assert caught.value.hint == f"put them back in {file}, or set another output folder (--output-dir)"
    _written(source, file)
    begin(make_plan(file, settings, seeds=1, output_dir=out), resume=True)
    begin(make_plan(file, settings, seeds=1, output_dir=tmp_path / "other"), resume=False)


def test_settings_that_changed_in_some_arms_name_them(source, tmp_path):
    from aligntune.compare.identity import changes

    before = {"a": {"train": {"max_steps": 3}, "x": 1}, "b": {"train": {"max_steps": 3}}}
    now = {"a": {"train": {"max_steps": 4}}, "b": {"train": {"max_steps": 4}}}
    assert changes(before, now) == ["train.max_steps: 3 -> 4", "x: 1 -> (nothing) (a)"]
    plan = make_plan(source, ["train.weight_decay=[0.0,0.1]"], seeds=1, output_dir=tmp_path / "out")
    begin(plan, resume=False)
    changed = {**source, "train": {**source["train"], "max_steps": 4}}
    with pytest.raises(ConfigurationError, match=r"has other settings: train.max_steps: 3 -> 4\n"):
        begin(make_plan(changed, ["train.weight_decay=[0.0,0.1]"], seeds=1, output_dir=tmp_path / "out"), resume=True)


def test_a_file_that_is_edited_during_a_comparison_changes_no_run(source, tmp_path):
    file = _written(source, tmp_path / "run.yaml")
    plan = make_plan(file, ["train.weight_decay=[0.0,0.1]"], seeds=1, output_dir=tmp_path / "out")
    _written(source, file, max_steps=5)
    assert [plan.config(arm, 42).train.max_steps for arm in plan.arms] == [3, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "written by an earlier version"), (b"{", "is damaged"), (b"[]", "is not the plan of a comparison")],
)
def test_a_plan_that_does_not_say_what_its_arms_were_is_refused(source, tmp_path, content, message):
    plan = make_plan(source, ["train.weight_decay=[0.0,0.1]"], seeds=1, output_dir=tmp_path / "out")
    begin(plan, resume=False)
    path = tmp_path / "out" / "plan.json"
    before = json.loads(path.read_text())
    del before["configurations"]
    path.write_bytes(json.dumps(before).encode() if content is None else content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        begin(plan, resume=True)
    assert "another output folder" in caught.value.hint


def test_a_run_that_was_cut_reaches_its_runner_as_begun(source, tmp_path):
    plan = make_plan(source, ["train.weight_decay=[0.0,0.1,0.2]"], seeds=1, output_dir=tmp_path / "out")
    begin(plan, resume=False)
    calls, whole = [], _fake(lambda folder: 1.0)

    def runner(file, printed, begun, cut=None):
        import yaml

        folder = yaml.safe_load(file.read_text())["output_dir"]
        calls.append((folder.split("weight_decay=")[1][:3], begun))
        if calls[-1][0] == cut:
            run = RunFolder.claim(folder)
            run.append_metrics({"step": 1, "loss": 2.0})
            run.mark_interrupted()
            raise KeyboardInterrupt
        if begun:
            run = RunFolder.claim(folder, resume=True)
            run.mark_finished({"final_loss": 1.0, "metrics": {}})
            return {"code": 0, "seconds": 1.0}
        return whole(file, printed, begun)

    with pytest.raises(KeyboardInterrupt):
        run_all(plan, lambda *given: runner(*given, cut="0.1"))
    begin(plan, resume=True)
    runs = run_all(plan, runner)
    assert calls == [("0.0", False), ("0.1", False), ("0.1", True), ("0.2", False)]
    assert [run.status for run in runs] == ["finished"] * 3


@pytest.mark.parametrize(("begun", "flags"), [(False, []), (True, ["--resume=latest"])])
def test_a_run_that_was_begun_goes_on_from_its_checkpoint(monkeypatch, tmp_path, begun, flags):
    lines = []

    class Process:
        returncode = 0

        def __init__(self, line, **given):
            lines.append(line[1:])

        def communicate(self):
            return b"{}", None

    monkeypatch.setattr("aligntune.compare.execution.subprocess.Popen", Process)
    record = train_process(tmp_path / "seed-1.yaml", tmp_path / "train.log", begun)
    assert record["code"] == 0
    assert lines == [["-m", "aligntune", "train", str(tmp_path / "seed-1.yaml"), "--json", *flags]]


def test_a_run_that_was_cut_has_no_wall_time(tmp_path):
    run = RunFolder.claim(tmp_path / "run")
    run.append_metrics({"step": 1, "loss": 2.0})
    run.mark_interrupted()
    again = RunFolder.claim(tmp_path / "run", resume=True)
    again.mark_finished({"metrics": {}, "final_loss": 2.0})
    assert "wall_time" not in measure("a", 1, tmp_path / "run", {"code": 0, "seconds": 3.0}).values


def test_a_child_ends_with_its_parent(tmp_path):
    """The parent is killed with SIGKILL; what it has started is gone soon after."""
    import signal
    import subprocess
    import sys
    import time

    child = "import time; from aligntune.utils.parent import follow_parent as f; f(); print('ready', flush=True); time.sleep(60)"
    parent = (
        "import os, subprocess, sys; from aligntune.utils.parent import child_environment as env\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], env=env(os.environ), stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); p.wait()"
    )
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    import psutil

    watched = psutil.Process(int(started.stdout.readline()))
    started.send_signal(signal.SIGKILL)
    started.wait()
    gone = time.monotonic() + 20
    while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE and time.monotonic() < gone:
        time.sleep(0.05)
    assert not watched.is_running() or watched.status() == psutil.STATUS_ZOMBIE


def test_two_equal_arms_from_the_command_line(cli, source, tmp_path):
    """Fresh processes, the same seed: equal to the last bit."""
    import yaml

    held = [{"prompt": f"Tell {i}", "completion": f"There are {i % 3}."} for i in range(6)]
    source["evaluation"] = {"dataset": {"name": str(write_rows(tmp_path / "held.jsonl", held))}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(source))
    line = ["compare", tmp_path / "run.yaml", "train.weight_decay=[0.1,0.1]", "--seeds", "1,"]
    planned = cli(*line, "--output-dir", tmp_path / "out", "--dry-run", "--json").json
    assert len(planned["runs"]) == 2
    assert not (tmp_path / "out").exists()
    ran = cli(*line, "--output-dir", tmp_path / "out", "--margin", "0.01", "--json")
    assert ran.code == 0, ran.err
    rows = {row["value"]: row for row in ran.json["rows"]}
    assert rows["eval_nll"]["change"] == 0.0
    assert rows["final_loss"]["change"] == 0.0
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [r["status"] for r in stored["runs"]] == ["finished", "finished"]
    assert (tmp_path / "out" / "comparison.html").stat().st_size > 5000
    assert cli(*line, "--output-dir", tmp_path / "out").code == 2
    assert cli("compare", tmp_path / "run.yaml", "--output-dir", tmp_path / "o", "--seeds", "x").code == 2
    assert cli("compare", tmp_path / "run.yaml", "--output-dir", tmp_path / "o", "--margin", "-1").code == 2
