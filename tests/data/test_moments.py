"""Moments in blocks against NumPy in one piece."""

import numpy as np
import pytest

from jsel.data import moments
from jsel.data.rows import ArrayRows


@pytest.mark.parametrize("cut", [[], [1], [3, 700, 701], list(range(100, 1000, 100))])
def test_blocks_add_up_to_the_whole(rng, cut):
  x = (1e4 + rng.standard_normal((1000, 5))).astype(np.float32)  # one pass would cancel
  x[:, 3] = np.float32(0.1)
  found = moments.empty((5,))
  for block in np.split(x, cut):
    found = moments.update(found, block)
  exact = x.astype(np.float64)
  np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-13)
  np.testing.assert_allclose(found.deviation, exact.std(0), rtol=1e-9)
  assert found.deviation[3] == 0  # a constant column is found as one


def test_levels_of_images_are_counted_exactly(rng):
  x = rng.integers(0, 256, (90, 3, 4, 2)).astype(np.uint8)
  x[..., 1] = 200
  found = moments.update(moments.update(moments.empty((3, 4, 2)), x[:50]), x[50:])
  exact = x.reshape(-1, 2).astype(np.float64)
  np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-14)
  np.testing.assert_allclose(found.deviation, exact.std(0), rtol=1e-13)
  assert found.deviation[1] == 0


def test_all_rows_are_read(rng):
  x = rng.standard_normal((3000, 2)).astype(np.float32)
  found = moments.of_rows(ArrayRows(x, np.zeros(3000, np.int32)))
  np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-12)
  assert found.count == 3000
