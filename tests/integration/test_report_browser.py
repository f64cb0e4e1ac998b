"""The report in headless Chromium: it loads, draws its charts, runs no script, fits the window, in both colour schemes."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

import reporting
from aligntune.report import Answer, Interval, Sample, Stage, build_report, build_story
from aligntune.utils.files import append_line
from aligntune.utils.run_folder import EVENTS, RunFolder

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")

ATTACK = "</pre><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def chromium(tmp_path: Path, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--force-color-profile=srgb", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


def pixels(path: Path) -> tuple[int, int, list[bytes]]:
    """Width, height and rows (three bytes a pixel) of an 8-bit RGB or RGBA PNG without interlace (PNG, section 9)."""
    data, at, packed = path.read_bytes(), 8, b""
    width = height = channels = 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert depth == 8
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            packed += body
        at += size + 12
    raw, stride = zlib.decompress(packed), width * channels
    rows, before = [], bytearray(stride)
    for y in range(height):
        start = y * (stride + 1)
        rows.append(before := _unfilter(raw[start], raw[start + 1 : start + 1 + stride], before, channels))
    return width, height, [b"".join(bytes(r[i : i + 3]) for i in range(0, stride, channels)) for r in rows]


def _unfilter(kind: int, line: bytes, up: bytearray, step: int) -> bytearray:
    row = bytearray(line)
    for i in range(len(row)):
        left = row[i - step] if i >= step else 0
        corner = up[i - step] if i >= step else 0
        if kind == 4:
            guess = left + up[i] - corner
            nearest = min(
                (abs(guess - left), 0, left), (abs(guess - up[i]), 1, up[i]), (abs(guess - corner), 2, corner)
            )
            row[i] = (row[i] + nearest[2]) & 255
        else:
            row[i] = (row[i] + (0, left, up[i], (left + up[i]) // 2)[kind]) & 255
    return row


def colour_at(rows: list[bytes], x: int, y: int) -> tuple[int, ...]:
    return tuple(rows[y][3 * x : 3 * x + 3])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run's report and a story, with model text that tries to run scripts."""
    folder = tmp_path_factory.mktemp("report")
    run = RunFolder.claim(folder / "run")
    run.write_config({"note": ATTACK})
    run.update_manifest({"algorithm": "grpo", "backend": "trl", "notes": [ATTACK]})
    for step in range(1, 60):
        run.append_metrics({"step": step, "loss": 1 / step, "reward": step / 60, "entropy": 1.0, "rewards/a/mean": 0.5})
    for severity in ("warning", "error"):
        event = {
            "step": 9,
            "rule": "kl_high",
            "severity": severity,
            "message": ATTACK,
            "advice": "lower algo.beta " * 9,
        }
        append_line(run.path / EVENTS, event)
    run.append_samples([{"step": 1, "prompt": ATTACK, "answer": ATTACK}])
    run.append_rollouts([{"step": 1, "prompt": ATTACK, "completion": ATTACK, "reward": 1.0}])
    run.mark_finished({"training_time": 5.0})
    stages = [
        Stage("Base", accuracy=Interval(0.1, 0.08, 0.13), seconds=1.0, memory_bytes=5e8),
        Stage("SFT", run.path, ATTACK, Interval(0.5, 0.46, 0.54), Interval(0.4, 0.36, 0.44), "Base", 0.5,
              Interval(0.51, 0.46, 0.56), 71.0, 9e8),
    ]  # fmt: skip
    sample = Sample(ATTACK, [Answer("Base", ATTACK, False), Answer("SFT", "#### 2", True)], "2")
    story = build_story("A story", stages, folder / "story.html", lead="Lead.", samples=[sample, sample, sample])
    return build_report(run.path), story


def test_the_pages_load_draw_and_run_nothing(pages: tuple[Path, Path], tmp_path: Path) -> None:
    for page, title, charts in ((pages[0], "run", 4), (pages[1], "A story", 6)):
        dom = chromium(tmp_path, page, "--dump-dom").stdout
        assert f"<title>{title}</title>" in dom
        assert len(re.findall(r'<svg class="chart[^"]*" role="img"', dom)) == charts
        assert "<script>" not in dom
        assert "<img" not in dom
        assert "&lt;script&gt;document.title='taken'" in dom


@pytest.mark.parametrize("width", [500, 800, 1400])
def test_the_page_fits_the_window(pages: tuple[Path, Path], tmp_path: Path, width: int) -> None:
    """With a script of the test's own, which the shipped page's policy would forbid, measured in a copy."""
    text = pages[1].read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    measure = (
        "<script>document.title = [document.documentElement.scrollWidth, document.body.scrollHeight].join('x')</script>"
    )
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", measure + "</body>"), encoding="utf-8")
    dom = chromium(tmp_path, copy, "--dump-dom", f"--window-size={width},900").stdout
    measured, height = map(int, re.search(r"<title>(\d+)x(\d+)</title>", dom).groups())
    assert measured <= width
    assert 1000 < height < 12000


@pytest.mark.parametrize(("scheme", "page_colour"), [("light", (0xF6, 0xF7, 0xF9)), ("dark", (0x0F, 0x14, 0x1A))])
def test_the_page_follows_the_colour_scheme(
    pages: tuple[Path, Path], tmp_path: Path, scheme: str, page_colour: tuple[int, int, int]
) -> None:
    out = tmp_path / "shot.png"
    flag = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    chromium(tmp_path, pages[1], f"--screenshot={out}", "--window-size=800,500", flag)
    width, height, rows = pixels(out)
    assert (width, height) == (800, 500)
    assert colour_at(rows, 2, 2) == page_colour
    assert len({row[i : i + 3] for row in rows for i in range(0, len(row), 3)}) > 20  # text and badges are drawn


# ---- evaluation and its item browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two evaluations, whose answers try to run scripts."""
    folder = tmp_path_factory.mktemp("evaluated")
    for i, share in enumerate((0.4, 0.7)):
        reporting.result(f"model-{i}", share, i).save(folder / f"e{i}")
    return build_report([folder / "e0", folder / "e1"])


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs with rewards, rollouts and samples, whose answers try to run scripts."""
    folder = tmp_path_factory.mktemp("beside")
    for i, name in enumerate(("a-run-with-a-long-name", "b")):
        run = RunFolder.claim(folder / name)
        run.write_config({"model": {"name": "m"}, "train": {"seed": 1, "learning_rate": i}})
        for step in range(1, 6):
            run.append_metrics({"step": step, "reward": step / 5 - i})
            scores = [(k / 4, float((k + step) % 2)) for k in range(4)]
            run.append_rollouts(
                [
                    {"step": step, "group": 0, "prompt": f"{step} {ATTACK}", "completion": ATTACK, "reward": a + b,
                     "reward/right": a, "reward/form": b}
                    for a, b in scores
                ]
            )  # fmt: skip
        run.append_samples(
            [{"step": s, "prompt": ATTACK, "answer": f"{s} {'x' * 90}", "reference": "2"} for s in (0, 5)]
        )
        run.mark_finished({"training_time": 5.0})
    return build_report([folder / "a-run-with-a-long-name", folder / "b"])


def framed(page: Path, tmp_path: Path, width: int, script: str, *flags: str) -> str:
    """The title that a script sets, which sees the page as `d` in a frame of this width."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><title>not run</title><iframe id="f" src="{page.as_uri()}" style="width:{width}px;height:900px">'
        f"</iframe><script>f.onload = () => {{ const d = f.contentDocument; {script} }}</script>",
        encoding="utf-8",
    )
    flags = (*flags, "--dump-dom", "--allow-file-access-from-files", "--window-size=1300,1000")
    dom = chromium(tmp_path, frame, *flags).stdout
    return re.search(r"<title>(.*?)</title>", dom).group(1)


def test_the_item_browser_searches_filters_and_shows_more(evaluated: Path, tmp_path: Path) -> None:
    script = """
      const box = d.querySelector("[data-browser]"), told = [];
      const count = () => box.querySelector("[data-count]").textContent;
      const seen = () => [...box.querySelectorAll(".item")].filter(i => !i.hidden);
      box.open = true;
      told.push(count(), seen().length);
      box.querySelector("[data-more]").click();
      told.push(seen().length, d.activeElement.tagName);
      [...box.querySelectorAll("[data-filter]")].find(b => b.dataset.filter === "wrong").click();
      told.push(new Set(seen().map(i => i.dataset.kind)).size, seen()[0].dataset.kind);
      const field = box.querySelector("input");
      box.querySelector("[data-filter='']").click();
      field.value = "what is 17 +"; field.dispatchEvent(new Event("input"));
      told.push(count(), seen()[0].textContent.includes("17 + 3"));
      document.title = told.join("|") + "|" + d.title;
    """
    told = framed(evaluated, tmp_path, 1200, script).split("|")
    assert told == [
        "20 of 200 shown", "20", "40", "SUMMARY", "1", "wrong", "1 of 1 shown", "true", "model-0 and model-1"
    ]  # fmt: skip


def test_the_evaluation_is_usable_at_400_pixels_and_by_keyboard(evaluated: Path, tmp_path: Path) -> None:
    script = """
      d.querySelectorAll("details").forEach(x => { x.open = true; });
      const wide = [...d.querySelectorAll("main *")].filter(x => !x.closest(".scroll, pre, svg")
        && x.getClientRects().length && x.getBoundingClientRect().right > 401).length;
      const scrolls = [...d.querySelectorAll(".scroll")].every(x => x.tabIndex === 0 && x.getAttribute("aria-label"));
      const inputs = [...d.querySelectorAll("input")].every(x => x.labels.length === 1);
      const buttons = [...d.querySelectorAll("button")].every(x => x.type === "button" && x.textContent.trim());
      document.title = [d.documentElement.scrollWidth <= 400, wide, scrolls, inputs, buttons].join(" ");
    """
    assert framed(evaluated, tmp_path, 400, script) == "true 0 true true true"


@pytest.mark.parametrize(("page", "width"), [("run", 400), ("run", 1200), ("runs", 400)])
def test_the_run_is_usable_by_keyboard_and_fits(
    page: str, width: int, pages: tuple[Path, Path], beside: Path, tmp_path: Path
) -> None:
    """Nothing stands out of the window, what scrolls can be focused and has a name, what unfolds is a real control."""
    script = f"""
      d.querySelectorAll("details").forEach(x => {{ x.open = true; }});
      const wide = [...d.querySelectorAll("main *, header *")].filter(x => !x.closest(".scroll, pre, svg")
        && x.getClientRects().length && x.getBoundingClientRect().right > {width} + 1).length;
      const held = [...d.querySelectorAll(".scroll, pre:not(.text)")]
        .filter(x => x.tabIndex !== 0 || !x.getAttribute("aria-label")).length;
      const folds = [...d.querySelectorAll("details")].filter(x => x.firstElementChild.tagName !== "SUMMARY").length;
      const charts = [...d.querySelectorAll("svg.chart")].filter(x => !x.getAttribute("aria-label")
        && !x.querySelector("title")).length;
      const links = [...d.querySelectorAll("nav a")].filter(x => !d.querySelector(x.getAttribute("href"))).length;
      const box = d.querySelector(".grid svg.chart").getBoundingClientRect();
      document.title = [d.documentElement.scrollWidth <= {width}, wide, held, folds, charts, links, box.width > 200].join(" ");
    """
    shown = beside if page == "runs" else pages[0]
    assert framed(shown, tmp_path, width, script) == "true 0 0 0 0 0 true"


def test_answers_of_several_runs_stand_beside_each_other(beside: Path, tmp_path: Path) -> None:
    """The newest step is open and its two runs share a line in a wide window; every chart is drawn."""
    script = """
      const step = d.querySelector("#answers").parentElement.querySelector("details[open]");
      const sides = [...step.querySelectorAll(".beside h4")].map(x => x.getBoundingClientRect());
      const lines = [...d.querySelectorAll("svg.chart path.line")].filter(x => x.getTotalLength() > 20).length;
      document.title = [step.firstElementChild.textContent, sides.length, sides[0].top === sides[1].top,
        sides[0].left < sides[1].left, d.querySelectorAll("svg.chart").length, lines > 9].join("|");
    """
    told = framed(beside, tmp_path, 1200, script)
    assert told == "Step 5: 1 of 1 prompt in common|2|true|true|5|true"


@pytest.mark.parametrize(
    ("page", "scheme"),
    [("evaluation", "light"), ("evaluation", "dark"), ("run", "light"), ("run", "dark"), ("runs", "dark")],
)
def test_the_text_has_enough_contrast(
    page: str, evaluated: Path, pages: tuple[Path, Path], beside: Path, tmp_path: Path, scheme: str
) -> None:
    """At least 4.5:1 for every piece of text (WCAG 2.2, 1.4.3), by the formula of relative luminance."""
    script = """
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const rgba = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data]; };
      const lum = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const back = x => { for (; x; x = x.parentElement) { const c = f.contentWindow.getComputedStyle(x).backgroundColor;
        if (rgba(c)[3] > 250) { return lum(rgba(c)); } } return 1; };
      d.querySelectorAll("details").forEach(x => { x.open = true; });
      let worst = [99, ""];
      for (const x of d.querySelectorAll("main *, header *, footer *")) {
        if (![...x.childNodes].some(n => n.nodeType === 3 && n.data.trim())) { continue; }
        if (!x.getClientRects().length) { continue; }
        const style = f.contentWindow.getComputedStyle(x), svg = x.closest("svg");
        const a = lum(rgba(svg ? style.fill : style.color)), b = back(x);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) { worst = [ratio, x.tagName + "." + x.classList.value.replaceAll(" ", ".")]; }
      }
      document.title = worst[0].toFixed(2) + " " + worst[1] + " "
        + f.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches;
    """
    flag = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    shown = {"evaluation": evaluated, "run": pages[0], "runs": beside}[page]
    told = framed(shown, tmp_path, 1200, script, flag)
    ratio, _, dark = told.split(" ")
    assert dark == ("true" if scheme == "dark" else "false")
    assert float(ratio) >= 4.5, told
