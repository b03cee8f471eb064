"""The report holds the run's numbers, loads nothing from outside, and its script runs in a browser."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from fixture_run import SPIKE_STEP, STEPS, make_corpus, make_run

from mobillama import report
from mobillama.core.errors import UserError
from mobillama.core.records import Ledger, append_line, manifest_hash


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    corpus = make_corpus(folder / "corpus")
    return make_run(folder / "first", corpus), make_run(folder / "second", corpus, seed=1)


@pytest.fixture(scope="module")
def page(runs):
    return report.write(runs[0]).read_text(encoding="utf-8")


class Page(HTMLParser):
    """The text of a page, its elements' attributes, and the JSON its script draws."""

    def __init__(self, html):
        super().__init__()
        self.attributes, self.texts, self.curves, self.skipping, self.inside_curves = (
            [],
            [],
            None,
            False,
            False,
        )
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.skipping = tag in ("script", "style")
        self.inside_curves = ("id", "curves") in attrs

    def handle_endtag(self, tag):
        self.skipping = self.inside_curves = False

    def handle_data(self, data):
        if self.inside_curves:
            self.curves = json.loads(data)
        elif not self.skipping:
            self.texts.append(data)


def test_the_page_holds_the_numbers_of_the_records(runs, page):
    text = Page(page).text
    last = json.loads((runs[0] / "evaluations.jsonl").read_text().splitlines()[-1])["subsets"]
    tokens = {"docs": 4318, "code": 4409}
    mean = sum(last[name]["bits_per_byte"] * tokens[name] for name in tokens) / sum(tokens.values())
    xz = (2.56 * tokens["docs"] + 8 * 940 / 3000 * tokens["code"]) / sum(tokens.values())
    assert f"Held-out text {mean:.3f}" in text
    assert f"Against xz -9 {mean / xz:.2f} ×" in text
    assert f"docs 2 kB {last['docs']['bits_per_byte']:.3f} 2.560 2.720" in text
    assert "8,208 stored parameters in 4 layers that share one FFN" in text
    assert "docs too short 5" in text and "code exact duplicate 1" in text
    assert "optimizer.learning_rate 0.004 quickstart.toml:15" in text
    for checkpoint in (runs[0] / "checkpoints").iterdir():
        assert f"{checkpoint.name} " in text and manifest_hash(checkpoint) in text
    assert "Ledger intact, 18 entries" in text


def test_the_curves_are_the_recorded_ones(runs, page):
    (run,) = Page(page).curves
    metrics = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert run["metrics"]["step"] == list(range(1, STEPS + 1))
    assert run["metrics"]["loss"] == pytest.approx([entry["loss"] for entry in metrics], rel=1e-5)
    assert "mfu" not in run["metrics"]
    assert run["heldout"]["tokens"] == [step * 4096 for step in range(50, 401, 50)]
    assert run["baselines"]["docs"] == {"xz": 2.56, "zstd": 2.72}


def test_the_page_is_one_file_and_loads_nothing(page):
    loading = [
        entry for entry in Page(page).attributes if entry[1] in ("src", "href", "srcset", "action", "data")
    ]
    assert all(tag == "a" and value.startswith("#") for tag, _, value in loading)
    assert "@import" not in page and not re.search(r"url\(", page)
    assert "default-src 'none'" in page


def test_text_of_the_model_cannot_become_markup(runs, page):
    assert "<b>else</b>" in (runs[0] / "samples.jsonl").read_text()
    assert "<b>else</b>" not in page and "&lt;b&gt;else&lt;/b&gt;" in page


def test_a_run_named_as_a_script_stays_text(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "<script>alert(1)<")
    assert "<script>alert" not in report.write(tmp_path / "<script>alert(1)<").read_text(encoding="utf-8")


def test_several_runs_lie_over_each_other_with_what_differs_first(runs):
    out = report.write(list(runs))
    assert out.parent == runs[0].parent
    parsed = Page(out.read_text(encoding="utf-8"))
    assert [run["name"] for run in parsed.curves] == ["first", "second"]
    recipe = parsed.text[parsed.text.rindex("Recipe") :]
    assert recipe.index("seed 0 1") < recipe.index("optimizer.name muon muon")


def test_a_killed_run_without_checkpoints_evaluations_or_extras_still_reports(tmp_path):
    (tmp_path / "run.toml").write_text("seed = 1\n")
    append_line(tmp_path / "metrics.jsonl", '{"step": 1, "loss": NaN}')
    append_line(tmp_path / "metrics.jsonl", '{"step": 2, "loss": 4.5, "tokens": 10}')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    (run,) = Page(report.write(tmp_path).read_text(encoding="utf-8")).curves
    assert run["metrics"] == {"step": [1, 2], "tokens": [None, 10], "loss": [None, 4.5]}


def test_an_evaluation_of_a_part_of_the_text_is_called_so(runs, page, tmp_path):
    assert "first part of the held-out text" not in Page(page).text
    copy = shutil.copytree(runs[0], tmp_path / "run")
    lines = (copy / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (copy / "evaluations.jsonl").write_text("".join(lines[:-1]))
    Ledger(copy / "ledger.jsonl").append("warning", reason="the last evaluation was taken out")
    text = Page(report.write(copy, tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "after step 400, on the first part of the held-out text only" in text


def test_the_held_out_curve_stays_on_one_text(runs, page):
    entries = [json.loads(line) for line in (runs[0] / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["whole"] for entry in entries[-2:]] == [False, True]
    steps = Page(page).curves[0]["heldout"]["step"]
    assert steps == [entry["step"] for entry in entries[:-1]]


def test_a_run_with_an_edited_ledger_is_not_reported(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    ledger.path.write_text(ledger.path.read_text().replace('"step":100', '"step":101'))
    with pytest.raises(UserError, match="line 4 was changed"):
        report.write(tmp_path / "run")


def test_what_was_measured_of_changed_weights_is_measured_again(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    before = Page(report.write(run).read_text(encoding="utf-8")).curves
    cache = run / ".timeline.json"
    cache.write_text(cache.read_text().replace("1", "2", 1))
    assert Page(report.write(run).read_text(encoding="utf-8")).curves == before
    weights = run / "checkpoints" / "step-00000100" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    cache.unlink()
    with pytest.raises(UserError, match=r"step-00000100/model\.safetensors: content differs"):
        report.write(run)


def test_a_long_run_is_thinned_and_keeps_its_spike(tmp_path):
    (tmp_path / "run.toml").write_text("")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 5001):
            norm = 9.0 if step == SPIKE_STEP else 1.0
            file.write(json.dumps({"step": step, "loss": float(step), "gradient_norm": norm}) + "\n")
    metrics = Page(report.write(tmp_path).read_text(encoding="utf-8")).curves[0]["metrics"]
    assert len(metrics["step"]) == math.ceil(5000 / 3) and metrics["step"][-1] == 5000
    assert metrics["loss"][0] == 2.0 and max(metrics["gradient_norm"]) == 9.0


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run\.toml here"):
        report.write(tmp_path)


def test_damaged_records_are_refused_with_the_way_to_find_them(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("not json\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: 9 bytes, .* recorded in the ledger"):
        report.write(tmp_path / "run")


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Open a page in a browser and return its document and what it logged."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    profile = tmp_path_factory.mktemp("profile")

    def run(page):
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", f"--user-data-dir={profile}", "--virtual-time-budget=2000",
            "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    return run


def test_the_script_draws_every_curve_in_a_browser(runs, tmp_path, browse):
    done = browse(report.write(list(runs), tmp_path / "page.html"))
    # Held-out, loss, learning rate, gradient norm, throughput, memory; no MFU was recorded.
    assert re.search(r'<html[^>]*data-drawn="6"', done.stdout)
    assert "FFN 0 at step 400: norm" in done.stdout
    assert "CONSOLE" not in done.stderr


ACT = """<script>
const ends = () => plots.map((plot) => [plot.scales.x.min, plot.scales.x.max]);
const told = [];
plots[1].setScale("x", { min: 100, max: 200 });
setTimeout(() => {
  told.push(ends());
  plots[0].over.dispatchEvent(new MouseEvent("dblclick"));
  setTimeout(() => {
    told.push(ends());
    document.querySelector('button[data-x="tokens"]').click();
    document.querySelector("#subset").value = "code";
    document.querySelector("#subset").onchange();
    told.push(plots[0].series.map((series) => series.label), ends()[0][1]);
    document.body.append("told" + JSON.stringify(told) + "told");
  }, 50);
}, 50);
</script>"""


def test_zoom_of_one_curve_zooms_all_and_the_choices_redraw(runs, tmp_path, browse):
    page = report.write(runs[0], tmp_path / "page.html")
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", ACT + "</body>"), encoding="utf-8")
    zoomed, all_seen, labels, last_tokens = json.loads(browse(page).stdout.split("told")[-2])
    assert zoomed == [[100, 200]] * 6
    assert all_seen == [[0, STEPS]] * 6
    assert labels == ["tokens", "code", "xz -9", "zstd -19"]
    assert last_tokens == STEPS * 4096
