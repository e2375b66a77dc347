"""Facility location against every gain at every pick, on numbers whose sums are exact and tie."""

import jax
import numpy as np
import pytest

import jsel
from jsel.kernels.facility_location import facility_location

N = 1024


def oracle(x, k, quality, weight, valid):
  """Ids and gains in float64."""
  counts = valid & np.isfinite(x).all(1)
  wide = np.where(counts[:, None], x, 0).astype(np.float64)
  like, covered = wide @ wide.T, np.full(len(x), -1.0)
  open_, ids, gains = counts & ~np.isnan(quality), [], []
  for _ in range(k):
    more = np.maximum(like - covered[:, None], 0)[counts].sum(0)
    gain = np.where(open_, (1 - weight) * more + weight * quality, -np.inf)
    best = int(gain.argmax())
    found = open_.any()
    ids.append(best if found else -1)
    gains.append(gain[best])
    if found:
      open_[best] = False
      covered = np.maximum(covered, like[best])
  return ids, gains


@pytest.fixture
def pool(rng):
  # Eighths: products are multiples of 1/64, and sums of 1024 of them are exact in float32.
  x = rng.integers(-3, 4, (N, 5)).astype("f4") / 8
  x[600:700] = x[500:600]
  x[3, 2] = np.nan
  quality = rng.integers(0, 8, N).astype("f4")
  quality[9] = np.nan
  return x, quality, np.arange(N) < 1000


@pytest.mark.parametrize("devices", [0, 1, 2, 8])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_picks_are_those_of_all_gains_worked_out_anew(pool, devices, weight):
  x, quality, valid = pool
  kernel = facility_location
  if devices:
    kernel = jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))
  got = kernel(x, 60, quality=quality, quality_weight=weight, valid=valid)
  ids, gains = oracle(x, 60, quality, weight, valid)
  assert got.indices.tolist() == ids
  np.testing.assert_array_equal(got.values, gains)


def test_all_rows_and_then_none(pool):
  x, quality, _ = pool
  x, quality = x[:40], np.where(np.arange(40) < 35, quality[:40], np.nan).astype("f4")
  ids, _ = oracle(x, 40, quality, 0.5, np.ones(40, bool))
  assert facility_location(x, 40, quality=quality, quality_weight=0.5).indices.tolist() == ids
  assert ids[-1] == -1


def test_bad_input_is_named(pool):
  x, _, _ = pool
  with pytest.raises(ValueError, match=r"within \[1, 1024\] for 1024 rows, got 1025"):
    facility_location(x, 1025)
  with pytest.raises(ValueError, match=r"float32\[1024\], got int32"):
    facility_location(x, 5, quality=np.ones(N, "i4"))
