"""Arrays written to a device that is always full tell of it, with the number that means so."""

import errno
from pathlib import Path

import numpy as np
import pytest

from mobillama.export.writing import written


@pytest.mark.parametrize("values", [10, 100_000])
def test_a_full_device_is_an_error_with_its_number(values):
    with pytest.raises(OSError) as error, Path("/dev/full").open("wb") as file:
        written(np.zeros(values, np.float32)).tofile(file)
    assert error.value.errno == errno.ENOSPC


def test_the_bytes_are_those_of_the_array(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with (tmp_path / "values").open("wb") as file:
        written(values).tofile(file)
    assert (tmp_path / "values").read_bytes() == values.tobytes()
