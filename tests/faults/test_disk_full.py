"""A disk that fills at a random byte: one clear line, nothing lost, and the same command goes on with room.

Each verb writes to a small file system in memory. ``MOBILLAMA_FULL_DISKS=10`` fills it ten times a verb.
"""

import os
import random
import subprocess

import pytest
from chain_of_verbs import chain, nothing_half_written_is_taken_for_whole

from mobillama.lineage.verify import check

TIMES = int(os.environ.get("MOBILLAMA_FULL_DISKS", "1"))
LARGE_BYTES = 256 << 20
PAGE_BYTES = 4096


def mount(folder, size_bytes, *options):
    what = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size_bytes}"]), "tmpfs", str(folder)]
    return subprocess.run(what, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if (done := mount(folder, LARGE_BYTES)).returncode:
        pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def used_bytes(folder):
    numbers = os.statvfs(folder)
    return (numbers.f_blocks - numbers.f_bfree) * numbers.f_frsize


def test_a_full_disk_is_said_in_one_line_and_the_same_command_goes_on_with_room(disk):
    for verb in chain(disk):
        source = random.Random(f"{verb.name} {TIMES}")
        before = used_bytes(disk)
        assert verb.run().returncode == 0
        undisturbed, needed = verb.bytes(), used_bytes(disk) - before
        for _ in range(TIMES):
            verb.clear()
            # The file system's size is in whole pages, rounded up.
            room = source.randrange(PAGE_BYTES, needed - PAGE_BYTES)
            assert mount(disk, before + room, "remount").returncode == 0
            full = verb.run()
            assert full.returncode == 2, (verb.name, full.stderr[-2000:])
            assert "no space left" in full.stderr.splitlines()[-1] and "Traceback" not in full.stderr
            nothing_half_written_is_taken_for_whole(verb, undisturbed)
            assert mount(disk, LARGE_BYTES, "remount").returncode == 0
            again = verb.run()
            assert again.returncode == 0, (verb.name, again.stderr[-2000:])
            assert verb.bytes() == undisturbed, verb.name
            assert check(verb.outputs[0]).problems == [], verb.name
