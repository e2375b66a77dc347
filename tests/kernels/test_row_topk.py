"""The largest entries of rows, against a sort in NumPy."""

import jax
import numpy as np
import pytest

from jsel.kernels.row_topk import row_top_k


@pytest.mark.parametrize("width", [16, 100, 512, 4096])  # some in groups, some not
@pytest.mark.parametrize("k", [1, 5, 16])
@pytest.mark.parametrize("values", [3, 10**6])  # nearly all tied, and hardly any
def test_is_a_stable_sort(rng, width, k, values):
  x = rng.integers(-values, values, (40, width)).astype(np.float32)
  x[0] = -np.inf
  order = np.argsort(-x, axis=1, kind="stable")[:, :k]
  for run in (row_top_k, jax.jit(row_top_k, static_argnums=1)):
    found, columns = run(x, k)
    np.testing.assert_array_equal(columns, order)
    np.testing.assert_array_equal(found, np.take_along_axis(x, order, axis=1))


def test_every_entry_of_a_row(rng):
  x = rng.standard_normal((3, 64)).astype(np.float32)
  np.testing.assert_array_equal(row_top_k(x, 64)[0], -np.sort(-x, axis=1))
