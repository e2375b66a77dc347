"""Rows of the host on the devices of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel import sharding


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(
  ("dtype", "fill"), [(np.uint8, 7), (np.float32, np.nan), (jnp.bfloat16, 0), (bool, False)]
)
def test_rows_are_padded_and_placed(rng, devices, dtype, fill):
  split = sharding.rows_sharding(jsel.make_mesh(jax.devices()[:devices]))
  for shape in ((1797, 3, 5), (1,), (1024, 2), (700, 0)):
    x = (rng.standard_normal(shape) * 100).astype(dtype)
    got = sharding.place_rows(x, split, fill)
    want = sharding.place(jsel.pad_rows(x, fill), split)
    assert got.sharding == want.sharding
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_what_is_placed_is_a_copy_and_the_only_one(rng, monkeypatch):
  split = sharding.rows_sharding(jsel.make_mesh(jax.devices()[:1]))
  made, aligned = [], sharding._aligned
  monkeypatch.setattr(sharding, "_aligned", lambda *of: made.append(aligned(*of)) or made[-1])
  x = rng.random((1024, 3), np.float32)  # no padding is missing
  placed, before = sharding.place_rows(x, split), x.copy()
  (memory,) = made
  assert placed.addressable_shards[0].data.unsafe_buffer_pointer() == memory.ctypes.data
  x[:] = 0
  np.testing.assert_array_equal(placed, before)
