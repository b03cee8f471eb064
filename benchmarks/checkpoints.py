"""Packing of checkpoints: ratio and speed on a run's own checkpoints, beside simpler ways to compress them.

    python benchmarks/checkpoints.py RUN [--dtype stored|bf16]

For each checkpoint after the first: the share of its bytes that remains as zstd of the file, as zstd of byte
planes, and as zstd of byte planes of the difference to the one before (XOR, and of integers as the store
does it). ``bf16`` rounds weights stored in float32 first, to see what a bf16 run would keep. Then the whole
run is packed and exported as ``mobillama checkpoint`` does, and every byte is compared.
"""

import argparse
import filecmp
import tempfile
import time
from pathlib import Path

import numpy as np
import zstandard

from mobillama.core.tensors import model_tensors
from mobillama.lineage.encoding import LEVEL, Bits, compressed, decode, difference, encode
from mobillama.lineage.store import OBJECTS, PACKED, Store, total_bytes

CODEC_VALUES = 16_000_000


def bits_of(folder: Path, dtype: str) -> dict[str, Bits]:
    """Return the bit patterns of a checkpoint's weights, rounded to bfloat16 where wished."""
    found: dict[str, Bits] = {}
    for name, file in model_tensors(folder).items():
        raw = np.asarray(file.raw(name)).reshape(-1)
        values = raw.view(f"<u{raw.itemsize}")
        if dtype == "bf16" and file.tensors[name].dtype == "F32":
            wide = values.astype(np.uint64)
            values = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)
        found[name] = values
    return found


def shares(old: dict[str, Bits], new: dict[str, Bits]) -> dict[str, float]:
    """Return the share of bytes that each way leaves of a checkpoint."""
    total = sum(values.nbytes for values in new.values())
    plain = zstandard.ZstdCompressor(level=LEVEL)
    sizes = {
        "zstd": sum(len(plain.compress(values.tobytes())) for values in new.values()),
        "planes": sum(sum(map(len, compressed(values))) for values in new.values()),
        "xor": sum(sum(map(len, compressed(values ^ old[name]))) for name, values in new.items()),
        "difference": sum(
            sum(map(len, compressed(difference(values, old[name])))) for name, values in new.items()
        ),
    }
    return {way: size / total for way, size in sizes.items()}


def pack_all(folders: list[Path], out: Path) -> None:
    """Pack and export, compare, and print ratio and speed by processor time."""
    store, before = Store(out / PACKED), None
    used = time.process_time()
    added = 0
    for folder in folders:
        added += store.add(folder, before)
        before = folder.name
    pack_s = time.process_time() - used
    size_bytes = sum(total_bytes(folder) for folder in folders)
    used = time.process_time()
    store = Store(out / PACKED)
    for folder in folders:
        exported = store.export(folder.name, out / "exported" / folder.name)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        assert filecmp.cmpfiles(folder, exported, names, shallow=False)[0] == names
    export_s = time.process_time() - used
    assert sum(path.stat().st_size for path in (out / PACKED / OBJECTS).rglob("*") if path.is_file()) == added
    sizes = f"{size_bytes / 1e6:.1f} MB -> {added / 1e6:.1f} MB"
    print(f"{len(folders)} checkpoints, {sizes} ({added / size_bytes:.3f})")
    print(
        f"pack {size_bytes / 1e6 / pack_s:.0f} MB/s, export {size_bytes / 1e6 / export_s:.0f} MB/s of a core"
    )


def codec_speed() -> None:
    """Print the codec's own speed on one large tensor: bf16 normal values, then changed by 1 %."""
    random = np.random.default_rng(0)
    first = random.normal(0, 0.02, CODEC_VALUES).astype(np.float32)
    later = first + random.normal(0, 2e-4, CODEC_VALUES).astype(np.float32)
    old, new = ((values.view(np.uint32) >> 16).astype(np.uint16) for values in (first, later))
    for title, base in (("alone", None), ("against the one before", old)):
        used = time.process_time()
        encoded = encode(new, base, "0" * 64)
        encode_s = time.process_time() - used
        assert np.array_equal(decode(encoded, base), new)
        decode_s = time.process_time() - used - encode_s
        rates = (
            f"encode {new.nbytes / 1e6 / encode_s:.0f} MB/s, decode {new.nbytes / 1e6 / decode_s:.0f} MB/s"
        )
        print(f"codec, {title}: {len(encoded) / new.nbytes:.3f}, {rates} of a core")


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--dtype", choices=["stored", "bf16"], default="stored")
    options = parser.parse_args()
    folders = sorted((options.run / "checkpoints").glob("step-*"))
    old = bits_of(folders[0], options.dtype)
    for folder in folders[1:]:
        new = bits_of(folder, options.dtype)
        row = "  ".join(f"{way} {share:.3f}" for way, share in shares(old, new).items())
        print(f"{folder.name}  {row}")
        old = new
    with tempfile.TemporaryDirectory() as name:
        pack_all(folders, Path(name))
    codec_speed()


if __name__ == "__main__":
    main()
