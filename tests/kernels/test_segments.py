"""Sums by label against float64, which holds them exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import segments
from jsel.kernels.segments import segment_sum


def sums_oracle(x, labels, count, weights):
  values = (weights[:, None] * x).astype(np.float32).astype(np.float64)
  return np.stack([values[labels == label].sum(0) for label in range(count)])


@pytest.fixture
def case(rng):
  x = rng.standard_normal((40960, 5)) * [1, 1e-30, 1e30, 1e-3, 0] + [0, 0, 0, 1e4, 0]
  return x.astype("f4"), rng.integers(-1, 8, 40960, dtype=np.int32), rng.random(40960, "f4")


@pytest.mark.parametrize("n", [0, 1, 700, 40960])
def test_matches_float64(case, n):
  x, labels, weights = (array[:n] for array in case)
  want = sums_oracle(x, labels, 7, weights)
  got = segment_sum(x, labels, 7, weights=weights)
  # Half a unit of float32, and n roundings at 2**-33 of the largest that a column holds.
  bound = 2.0**-24 * np.abs(want) + np.abs(x).max(0, initial=0) * n**0.5 * 2.0**-31
  assert (np.abs(np.asarray(got, np.float64) - want) <= bound).all()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_bitwise_the_same_in_any_order_and_on_any_device_count(case, rng, devices):
  x, labels, weights = case
  want = segment_sum(x, labels, 7, weights=weights)
  order = rng.permutation(40960)
  kernel = jsel.shard(segment_sum, jsel.make_mesh(jax.devices()[:devices]))
  got = kernel(x[order], labels[order], 7, weights=weights[order])
  np.testing.assert_array_equal(got, want)


def test_whole_numbers_add_up_exactly():
  got = segment_sum(jnp.ones((100_000, 1)), jnp.zeros(100_000, jnp.int32), 2)
  assert got.tolist() == [[100_000], [0]]


def test_nan_stays_in_its_column_and_left_out_rows_do_not_count():
  x = jnp.array([[jnp.nan, 1.0], [1.0, jnp.inf], [1.0, 2.0]])
  got = segment_sum(x, jnp.array([0, -1, 1]), 2)
  assert np.isnan(got[:, 0]).all()
  assert got[:, 1].tolist() == [1, 2]


def test_float_labels_are_refused():
  with pytest.raises(ValueError, match=r"labels must be int32 \[2\], got float32"):
    segment_sum(jnp.ones((2, 2)), jnp.ones(2), 2)


def test_eager_calls_share_a_program():
  before = segments._segment_sum._cache_size()
  for factor in (1, 2, 3):
    segment_sum(jnp.full((37, 3), float(factor)), jnp.zeros(37, jnp.int32), 5)
  assert segments._segment_sum._cache_size() == before + 1
