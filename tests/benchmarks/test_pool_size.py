"""The cases of the benchmark at small sizes: every check it makes, and that checks can fail."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pool_size
from jsel.kernels.nth import count_tiles
from jsel.selectors.factors import SHARE_BITS

SIZE = 5_000  # and 120 padded rows


@pytest.mark.parametrize("name", ["rs2", "loss", "rep_div_plain", "rep_div"])
def test_every_selector_is_measured(name):
  result = pool_size.measure(name, SIZE, seconds=0.0)
  assert result["plan_rows"] == SIZE // 2
  assert 0 < result["plan"]["least"] <= result["plan"]["seconds"] <= result["plan"]["most"]
  # What a row takes: 4 for the count of its plans, 1 in the pool's mask, some bits of the plan.
  a_row = {"rs2": 5, "loss": 10, "rep_div_plain": 13, "rep_div": 77}[name]
  assert a_row * SIZE < result["state_bytes"] < 1.5 * a_row * SIZE + 2**15
  assert ("plan_new_exponent" in result) == (name == "rep_div")
  assert name in pool_size.table([result])


def test_the_least_that_a_plan_does_is_measured():
  result = pool_size.measure("increment", SIZE, seconds=0.0)
  assert result["plan"]["repeats"] == pool_size.LEAST_REPEATS


def test_the_mask_that_a_plan_has(rng):
  mask = rng.random(5_120) < 0.3
  np.testing.assert_array_equal(pool_size.unpacked(count_tiles(jnp.asarray(mask)), 5_120), mask)


def test_a_plan_with_padded_rows_is_found_out():
  plans = pool_size.Plans("rs2", SIZE)
  plans.pool = plans.pool._replace(valid=jnp.ones_like(plans.pool.valid))
  with pytest.raises(AssertionError):
    plans.check()


def test_a_size_that_does_not_fit_is_refused():
  class Memory:
    argument_size_in_bytes, temp_size_in_bytes = 2**50, 0

  with pytest.raises(ValueError, match=r"1,000 rows takes 1048576\.0 GiB .* leave that size out"):
    pool_size.check_room("rs2", 1000, Memory())


def test_made_up_factors_are_as_common_as_the_fit_says():
  fit = pool_size.made_up_fit("rep_div", 100_000)
  share = np.asarray(fit.rows["factor_share"])
  assert (share.sum(1) == 2**SHARE_BITS).all()
  found = np.bincount(np.asarray(fit.rows["factor_index"]).ravel(), minlength=pool_size.LATENTS)
  told = np.asarray(fit.shared["factor_count"])
  # Five deviations of a Poisson count.
  assert (np.abs(found - told) < 5 * np.sqrt(told)).all()


def test_exponents_are_slopes_on_logarithmic_axes():
  results = [{"size": n, "plan": {"seconds": 3e-9 * n**1.5}} for n in (100, 1000, 5000)]
  np.testing.assert_allclose(pool_size.exponents(results, "plan")[1:], 1.5)
