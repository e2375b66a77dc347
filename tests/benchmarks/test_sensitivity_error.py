"""Estimates of a total by weighted samples, on a small made-up pool."""

import numpy as np
import pytest

from benchmarks import sensitivity_error
from jsel.selection import select


@pytest.fixture(scope="module")
def pool():
  """Clusters whose losses differ a hundredfold, and vary with the place within."""
  rng = np.random.default_rng(0)
  middles = 4 * rng.standard_normal((8, 6))
  cluster = rng.integers(0, 8, 2048)
  x = (middles[cluster] + 0.3 * rng.standard_normal((2048, 6))).astype(np.float32)
  loss = 0.1 * 2.0**cluster + 0.2 * np.square(x - middles[cluster]).sum(1)
  return x, loss.astype(np.float64)


@pytest.fixture(scope="module")
def found(pool):
  return sensitivity_error.design(*pool, known=1.0, clusters=16, quantile=0.95)


def test_the_design_is_the_method_s(pool, found):
  x, loss = pool
  # Given its centers rows are drawn by the same; k-means is seeded otherwise.
  call = select(x, "sensitivity", 2048, unit="rows", columns={"score": loss}, clusters=16)
  p = np.empty(2048)
  p[call.index] = call.score
  assert p.sum() == pytest.approx(1, abs=1e-3)
  assert np.corrcoef(p, found.p)[0, 1] > 0.9
  assert found.p.sum() == pytest.approx(1)
  assert found.correlation > 0.9


def test_sensitivity_is_unbiased_and_nearer(pool, found):
  _, loss = pool
  runs = sensitivity_error.compare(found, loss, (60, 300), draws=100)
  assert [run["kind"] for run in runs] == [*sensitivity_error.KINDS] * 2
  for run in runs:
    assert abs(run["uniform"]["bias_sigmas"]) < 4
    if run["kind"] != "ratio":
      assert abs(run["sensitivity"]["bias_sigmas"]) < 4
    if run["kind"] != "priority":
      assert run["uniform"]["rms"] > 2 * run["sensitivity"]["rms"]
    else:
      # The sum of a priority sample's weights varies by 1 / sqrt(size), whatever p is.
      assert run["sensitivity"]["rms"] == pytest.approx(run["size"] ** -0.5, rel=0.4)


def test_what_errors_are():
  assert sensitivity_error.errors(np.array([3.0, 5.0]), 4.0) == {"rms": 0.25, "bias_sigmas": 0.0}


def test_epsilon_solves_the_bound_of_bernstein():
  for size in (100, 10_000):
    eps = sensitivity_error.epsilon(size, 0.1, 0.05)
    assert 0.95 * size == pytest.approx((2 + 2 * eps / 3) * np.log(20) / eps**2)


def test_the_bound_is_kept_and_a_tighter_one_is_not(pool):
  x, loss = pool
  true = sensitivity_error.design(x, loss, known=1.0, clusters=16, quantile=1.0)
  runs = sensitivity_error.misses(true, loss, (60, 300), draws=200)
  assert all(run["missed"] <= sensitivity_error.DELTA for run in runs)
  tight = sensitivity_error.misses(true._replace(slack=-0.48 * loss.sum()), loss, (300,), 200)
  assert tight[0]["missed"] > sensitivity_error.DELTA


def test_the_tables(pool, found):
  _, loss = pool
  sizes = sensitivity_error.compare(found, loss, (60,), draws=10)
  row = {"known": 0.05, "clusters": 16, "correlation": 0.5, "sizes": sizes}
  lines = sensitivity_error.table([row]).splitlines()
  assert len(lines) == 2 + len(sensitivity_error.KINDS)
  assert lines[2].startswith("| 5 % | 16 | 0.50 | priority | 60 |")
  runs = sensitivity_error.misses(found, loss, (60,), draws=10)
  assert sensitivity_error.bound_table(runs).splitlines()[2].startswith("| 60 | 10 | ")
