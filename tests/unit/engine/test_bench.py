import sys
from pathlib import Path

import pytest

from mobillama.core.errors import UserError
from mobillama.engine import bench_machine, bench_process
from mobillama.engine.bench import Bench, Measurement, Settings, ratios, record
from mobillama.engine.bench_process import Contender, MemoryPeak, Worker

# A worker that pretends: every command takes 0.5 s, and opening takes 64 MB of memory.
PRETENDER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
sys.stdin.readline()
held = b"x" * (64 << 20)
print(json.dumps({"load_s": 0.25, "first_token_s": 0.5}), flush=True)
for line in sys.stdin:
    print(json.dumps({"elapsed_s": 0.5}), flush=True)
"""


@pytest.fixture
def pretenders(monkeypatch):
    """Two contenders whose processes run the pretender instead of an engine."""
    start = bench_process.subprocess.Popen
    monkeypatch.setattr(
        bench_process.subprocess,
        "Popen",
        lambda command, **rest: start([sys.executable, "-c", PRETENDER], **rest),
    )
    monkeypatch.setattr(bench_machine, "COPIED_BYTES", 1 << 16)
    return [Contender("ours", "mobillama", Path(__file__)), Contender("theirs", "llama.cpp", Path(__file__))]


def test_a_run_measures_every_figure_of_every_contender(pretenders):
    bench = Bench(pretenders, Settings(threads=(1, 2), context_length=2048, depths=(32, 100), pairs=2))
    done: list[float] = []
    bench.run(done.append)
    assert done == [*range(1, bench.parts + 1)]
    ours = {m.key: m for m in bench.measurements if m.contender == "ours"}
    assert ours["decode", 2, 100].samples == (32 / 0.5,) * 2
    assert ours["prefill", 1, 512].median == 1024
    assert ours["start to first token", 2, None].samples == (0.5, 0.5)
    assert ours["file size", None, None].median == Path(__file__).stat().st_size
    assert ours["peak memory", None, 100].median == pytest.approx(64 << 20, rel=0.3)
    values = record(bench)
    assert values["energy_method"] in (None, "measured")
    assert {ratio["median"] for ratio in values["ratios"] if ratio["what"] == "decode"} == {1.0}


def test_memory_is_split_into_anonymous_and_file_pages(pretenders):
    worker = Worker(pretenders[0], 1, 64)
    with MemoryPeak(worker) as watched:
        worker.start()
    worker.close()
    grown = [peak - before for peak, before in zip(watched.peak, watched.before, strict=True)]
    assert grown[0] >= 64 << 20 > 10 * grown[1]


def test_a_worker_that_dies_is_named_with_its_last_words(tmp_path):
    worker = Worker(Contender("ours", "mobillama", tmp_path / "absent.gguf", {"kv_type": "f16"}), 1, 64)
    with pytest.raises(UserError, match="absent"):
        worker.start()


def test_ratios_are_taken_within_each_repetition():
    ours = Measurement("ours", "decode", "tokens/s", (10.0, 40.0, 30.0), 1, 32)
    theirs = Measurement("theirs", "decode", "tokens/s", (5.0, 10.0, 10.0), 1, 32)
    other = Measurement("theirs", "decode", "tokens/s", (1.0,), 2, 32)
    (ratio,) = ratios([ours, theirs, other], "ours")
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 4.0)


def test_energy_is_read_from_the_counters_or_not_given(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_machine, "RAPL", tmp_path)
    assert bench_machine.energy_j() is None
    for number in range(2):
        (tmp_path / f"intel-rapl:{number}").mkdir()
        (tmp_path / f"intel-rapl:{number}" / "energy_uj").write_text("1500000\n")
    assert bench_machine.energy_j() == 3.0


def test_the_cache_is_no_larger_than_the_measurement_needs():
    assert Settings((1,), 100_000, (32,)).context < 1000
    assert Settings((1,), 256, (32,)).context == Settings((1,), 256, (32,)).prefill_tokens == 256
