"""SIGKILL at random moments of every verb that writes: the same command then ends with the same bytes.

The short form kills each verb once. ``MOBILLAMA_KILLS=25`` kills each 25 times, 100 in all
(docs/reliability.md has the figures).
"""

import os
import random
import signal
import time
from contextlib import suppress

from chain_of_verbs import LONGEST_S, chain, nothing_half_written_is_taken_for_whole

from mobillama.lineage.verify import check

KILLS = int(os.environ.get("MOBILLAMA_KILLS", "1"))


def test_killed_at_random_moments_the_same_command_ends_with_the_same_bytes(tmp_path):
    for verb in chain(tmp_path):
        source = random.Random(f"{verb.name} {KILLS}")
        undisturbed_run = verb.start()
        started_at = time.monotonic()
        assert undisturbed_run.wait(LONGEST_S) == 0, verb.name
        work_s = time.monotonic() - started_at
        undisturbed = verb.bytes()
        assert undisturbed, verb.name
        killed = 0
        for _ in range(KILLS):
            verb.clear()
            process = verb.start()
            time.sleep(source.uniform(0, work_s))
            killed += process.poll() is None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            nothing_half_written_is_taken_for_whole(verb, undisturbed)
            again = verb.run()
            assert again.returncode == 0, again.stderr[-2000:]
            assert verb.bytes() == undisturbed, verb.name
            assert check(verb.outputs[0]).problems == []
        print(f"{verb.name}: {killed} of {KILLS} killed while at work, {work_s:.1f} s long")
