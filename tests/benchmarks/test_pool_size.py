"""The cases of the benchmark at small sizes, with every check that it makes."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pool_size
from jsel.kernels.nth import count_tiles

SIZE = 5_000  # and 120 padded rows


@pytest.mark.parametrize("name", ["rs2", "loss", "rep_div_plain"])
def test_every_selector_is_measured(name):
  result = pool_size.measure(name, SIZE, seconds=0.0)
  assert result["plan_rows"] == SIZE // 2
  assert 0 < result["plan"]["least"] <= result["plan"]["seconds"] <= result["plan"]["most"]
  # What a row takes: 4 for the count of its plans, 1 in the pool's mask, some bits of the plan.
  a_row = {"rs2": 5, "loss": 10, "rep_div_plain": 13}[name]
  assert a_row * SIZE < result["state_bytes"] < 1.5 * a_row * SIZE + 2**15
  assert name in pool_size.table([result])


def test_the_mask_that_a_plan_has(rng):
  mask = rng.random(5_120) < 0.3
  np.testing.assert_array_equal(pool_size.unpacked(count_tiles(jnp.asarray(mask)), 5_120), mask)


def test_a_size_that_does_not_fit_is_refused():
  class Memory:
    argument_size_in_bytes, temp_size_in_bytes = 2**50, 0

  with pytest.raises(ValueError, match=r"1,000 rows takes 1048576\.0 GiB .* leave that size out"):
    pool_size.check_room("rs2", 1000, Memory())


def test_exponents_are_slopes_on_logarithmic_axes():
  results = [{"size": n, "plan": {"seconds": 3e-9 * n**1.5}} for n in (100, 1000, 5000)]
  np.testing.assert_allclose(pool_size.exponents(results, "plan")[1:], 1.5)
