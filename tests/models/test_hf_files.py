"""Files of tensors: safetensors reads the tensors that are written one by one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ixjax.models.hf_files import write_tensors

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
def test_safetensors_reads_what_is_written(tmp_path_factory, shapes, dtype, seed):
    rng = np.random.default_rng(seed)
    tensors = {f"tensor.{i}": rng.normal(size=s).astype(dtype) for i, s in enumerate(shapes)}
    folder = tmp_path_factory.mktemp("files")
    values = iter(tensors.values())
    write_tensors(folder / "ours", {n: t.shape for n, t in tensors.items()}, dtype, values)
    found = load_file(folder / "ours")
    assert found.keys() == tensors.keys()
    save_file(tensors, folder / "theirs")
    for name, theirs in load_file(folder / "theirs").items():
        assert found[name].dtype == theirs.dtype
        np.testing.assert_array_equal(found[name], theirs)


def test_no_more_tensors_are_taken_than_the_file_holds(tmp_path):
    values = iter(np.ones((3, 2), np.float32))
    write_tensors(tmp_path / "file", {"a": (2,), "b": (2,)}, np.dtype(np.float32), values)
    assert len(list(values)) == 1


def test_a_file_that_is_cut_off_leaves_the_one_before(tmp_path):
    file, shapes = tmp_path / "file", {"a": (2,)}
    write_tensors(file, shapes, np.dtype(np.float32), iter([np.ones(2, np.float32)]))

    def failing():
        raise OSError("no more")
        yield

    with pytest.raises(OSError, match="no more"):
        write_tensors(file, shapes, np.dtype(np.float32), failing())
    np.testing.assert_array_equal(load_file(file)["a"], np.ones(2))
