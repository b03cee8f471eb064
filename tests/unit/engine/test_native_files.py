"""What the native engine does with files: good, damaged and foreign ones, and its own saved prefixes."""

import threading
from pathlib import Path

import numpy as np
import pytest
from native_reference import ModelFile, TinyShape

from mobillama.core.errors import UserError
from mobillama.engine import native

TOKENS = np.arange(40, dtype=np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ModelFile.random(TinyShape(), types="mixed").write(tmp_path_factory.mktemp("model") / "m.gguf")


def test_the_shape_and_the_metadata_are_the_file_s(path: Path) -> None:
    model = native.Model(path, threads=1)
    assert model.config["hidden_size"] == 64
    assert model.config["num_key_value_heads"] == 2
    assert model.config["ffn_of_layer"] == [0, 0, 0]
    assert model.metadata["general.architecture"] == "mobillama"
    assert model.metadata["mobillama.ffn_of_layer"] == [0, 0, 0]
    assert model.metadata["mobillama.rope.freq_base"] == 10000.0
    assert model.isa == native.available_isas()[0]
    assert model.threads == 1


def test_a_shared_ffn_takes_memory_once(tmp_path: Path) -> None:
    def weights_bytes(ffn_of_layer: tuple[int, ...]) -> int:
        file = ModelFile.random(TinyShape(intermediate_size=128, ffn_of_layer=ffn_of_layer), types="q8_0")
        return native.Model(file.write(tmp_path / "m.gguf"), threads=1).memory["weights_bytes"]

    one_ffn = 3 * 64 * 128 * 34 // 32
    assert weights_bytes((0, 1, 2)) - weights_bytes((0, 0, 0)) == 2 * one_ffn


def test_a_long_context_takes_memory_only_as_it_fills(path: Path) -> None:
    session = native.Model(path).session()
    assert session.kv_bytes == 0
    session.forward(TOKENS)
    first = session.kv_bytes
    session.forward(np.tile(TOKENS, 6))
    assert session.kv_bytes == 2 * first


def test_truncating_forgets(path: Path) -> None:
    session = native.Model(path).session()
    expected = session.forward(TOKENS)
    session.truncate(10)
    session.forward(TOKENS[::-1])
    session.truncate(10)
    assert session.position == 10
    assert np.array_equal(session.forward(TOKENS[10:]), expected)
    session.reset()
    assert np.array_equal(session.forward(TOKENS), expected)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_saved_prefix_goes_on_in_another_model_of_the_same_file(
    path: Path, tmp_path: Path, kv_type: native.KvType
) -> None:
    session = native.Model(path, kv_type=kv_type).session()
    session.forward(TOKENS)
    session.save(tmp_path / "prefix")
    expected = session.forward(TOKENS)
    other = native.Model(path, kv_type=kv_type).session()
    other.load(tmp_path / "prefix")
    assert other.position == TOKENS.size
    assert np.array_equal(other.forward(TOKENS), expected)


def test_a_prefix_that_does_not_belong_is_refused(path: Path, tmp_path: Path) -> None:
    session = native.Model(path).session()
    session.forward(TOKENS)
    prefix = tmp_path / "prefix"
    session.save(prefix)
    with pytest.raises(UserError, match="another kv_type"):
        native.Model(path, kv_type="f16").session().load(prefix)
    stranger = ModelFile.random(TinyShape(), types="mixed", seed=1).write(tmp_path / "stranger.gguf")
    with pytest.raises(UserError, match="another model"):
        native.Model(stranger).session().load(prefix)
    with pytest.raises(UserError, match="context is 16"):
        native.Model(path, context=16).session().load(prefix)
    damaged = bytearray(prefix.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    prefix.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        session.load(prefix)
    assert session.position == 0
    prefix.write_bytes(damaged[:-9])
    with pytest.raises(UserError, match="truncated"):
        session.load(prefix)
    with pytest.raises(UserError, match="cannot open"):
        session.load(tmp_path / "absent")


def test_damaged_files_give_one_line_that_names_the_file(path: Path, tmp_path: Path) -> None:
    good = path.read_bytes()
    bad = tmp_path / "bad.gguf"
    for size in (0, 3, 8, 100, 1000, len(good) // 2, len(good) - 40):
        bad.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"bad\.gguf") as error:
            native.Model(bad)
        assert "\n" not in str(error.value)
    for at in range(0, 3000, 7):
        damaged = bytearray(good)
        damaged[at] ^= 1 << at % 8
        bad.write_bytes(damaged)
        try:
            native.Model(bad, threads=1)
        except UserError as error:
            assert "bad.gguf" in str(error)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    file = ModelFile.random(TinyShape(), types="q4_0")
    del file.tensors["blk.1.attn_k.weight"]
    with pytest.raises(UserError, match=r"'blk.1.attn_k.weight' is missing"):
        native.Model(file.write(tmp_path / "m.gguf"))
    with pytest.raises(UserError, match="cannot open"):
        native.Model(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="not a regular file"):
        native.Model(tmp_path)


def test_requests_that_cannot_be_met_are_refused(path: Path) -> None:
    for options, message in (
        ({"isa": "sse9"}, "'sse9' is not usable"),
        ({"kv_type": "q2"}, "kv_type 'q2' is unknown"),
        ({"threads": 0}, "threads is 0"),
        ({"context": 0}, "context is 0"),
        ({"context": 513}, "at most 512"),
    ):
        with pytest.raises(UserError, match=message):
            native.Model(path, **options)  # type: ignore[arg-type]
    session = native.Model(path, context=50).session()
    with pytest.raises(UserError, match="token 100 is not in the vocabulary"):
        session.forward(np.array([100], np.int32))
    with pytest.raises(UserError, match="token -1 is not in the vocabulary"):
        session.forward(np.array([-1], np.int32))
    with pytest.raises(UserError, match="the context is full: 0 of 50 positions"):
        session.forward(np.tile(TOKENS, 2), all_logits=True)
    with pytest.raises(UserError, match="no tokens"):
        session.forward(np.array([], np.int32))
    with pytest.raises(UserError, match="cannot truncate to 1"):
        session.truncate(1)
    with pytest.raises(UserError, match="hidden_size is 64"):
        session.forward_embeddings(np.zeros((2, 32), np.float32))


def test_sessions_may_run_in_several_threads(path: Path) -> None:
    model = native.Model(path)
    expected = model.session().forward(TOKENS)
    results: list[np.ndarray] = []

    def evaluate() -> None:
        results.extend(model.session().forward(TOKENS) for _ in range(10))

    threads = [threading.Thread(target=evaluate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 30
    assert all(np.array_equal(result, expected) for result in results)
