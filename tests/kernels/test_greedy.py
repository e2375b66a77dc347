"""Greedy picks against loops in float64, on small integers whose distances are exact and tie."""

import jax
import numpy as np
import pytest

import jsel
from jsel.kernels.greedy import diversity_filter, k_center
from tests import oracles

N = 1024


@pytest.fixture
def pool(rng):
  x = rng.integers(-3, 4, (N, 6)).astype("f4")
  x[600:700] = x[500:600]
  x[[3, 900], 2] = np.nan
  return x, rng.integers(0, 60, N).astype("f4"), np.arange(N) < 1000


def on(devices, kernel):
  return jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices])) if devices else kernel


@pytest.mark.parametrize("devices", [0, 1, 2, 4, 8])
def test_picks_are_those_of_a_loop(pool, devices):
  x, scores, valid = pool
  with np.errstate(invalid="ignore"):
    for initial in (None, x[:3]):
      got = on(devices, k_center)(x, 50, initial=initial, valid=valid)
      assert got.indices.tolist() == oracles.k_center(x, 50, initial, valid)
    got = on(devices, diversity_filter)(x, scores, 300, threshold=14.0, valid=valid)
    assert got.indices.tolist() == oracles.diversity_filter(x, scores, 300, 14.0, valid)


def test_all_rows_and_then_none(pool):
  x, scores, _ = pool
  x, scores = x[:40], scores[:40]
  assert k_center(x, 40).indices.tolist() == oracles.k_center(x, 40)
  got = diversity_filter(x, scores, 40, threshold=1e9)
  assert got.indices.tolist() == oracles.diversity_filter(x, scores, 40, 1e9)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: k_center(x, 4), r"k must be .* \[1, 3\]"),
    (lambda x: k_center(x, 1, initial=x[:, :1]), r"initial must be \[q, 2\]"),
    (lambda x: diversity_filter(x, x, 1, threshold=0.9), r"scores must be float32\[3\]"),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.ones((3, 2), np.float32))
