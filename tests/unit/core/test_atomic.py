import signal
import subprocess
import sys

import pytest

from mobillama.core import atomic
from mobillama.core.errors import UserError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    atomic.write_text(target, "old")
    with pytest.raises(RuntimeError), atomic.atomic_file(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_is_whole_or_absent(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(RuntimeError), atomic.atomic_directory(target) as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert not target.exists()
    for text in ("first", "second"):
        with atomic.atomic_directory(target) as partial:
            (partial / "a").write_text(text)
        assert (target / "a").read_text() == text
    assert list(tmp_path.iterdir()) == [target]


HOLD = """
import sys, time
from pathlib import Path
from mobillama.core import atomic
with atomic.exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} is working here"), atomic.exclusive(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with atomic.exclusive(tmp_path):
        pass
