"""Sampling for least squares, against its definitions in float64."""

import jax
import numpy as np
import pytest

from jsel.selection import select
from jsel.selectors import sensitivity
from jsel.selectors import sensitivity_regression as regression


@pytest.fixture
def problem(rng):
  """Rows of unequal leverage, and targets whose deviations depend on the rows."""
  x = rng.standard_normal((900, 5)) * rng.choice([0.3, 3], (900, 1))
  y = x @ rng.standard_normal(5) + 2 + rng.standard_normal(900) * (0.2 + np.abs(x[:, 0]))
  return x.astype(np.float32), y


def solution(x, y, weights=None):
  root = np.sqrt(np.ones(len(x)) if weights is None else weights.astype(np.float64))
  design = np.column_stack([np.ones(len(x)), x.astype(np.float64)])
  return np.linalg.lstsq(root[:, None] * design, root * y, rcond=None)[0]


def losses(x, y, beta):
  return np.square(y - beta[0] - x.astype(np.float64) @ beta[1:])


def test_predictions_are_those_of_weighted_least_squares(problem, rng):
  x, y = problem
  weights = rng.random(900)
  beta = solution(x, y, weights)
  found = regression.predictions(x, y, weights, x[:9])
  np.testing.assert_allclose(found, beta[0] + x[:9].astype(np.float64) @ beta[1:], rtol=1e-9)


def test_bounds_are_their_definition(problem, rng):
  x, y = problem
  centers, targets = x[:40], y[:40]
  distance2 = ((x[:, None].astype(np.float64) - centers) ** 2).sum(2)
  labels = np.where(np.arange(900) % 50 == 49, -1, distance2.argmin(1)).astype(np.int32)
  residual = targets - regression.predictions(
    centers, targets, np.bincount(labels[labels >= 0], minlength=40), centers
  )
  ratios = []
  for c in range(40):
    d = ((centers[c].astype(np.float64) - centers) ** 2).sum(1)
    other = min((j for j in range(40) if j != c), key=lambda j: d[j])
    ratios.append((residual[c] - residual[other]) ** 2 / d[other])
  slope = np.quantile(ratios, 0.9)
  want = [0 if j < 0 else residual[j] ** 2 + slope * distance2[i, j] for i, j in enumerate(labels)]
  found = regression.bounds(
    centers, targets, labels, distance2[np.arange(900), labels], slope=-1, quantile=0.9
  )
  np.testing.assert_allclose(found, want, rtol=1e-6)


def test_probabilities_of_leverage_are_those_of_qr(problem):
  x, _ = problem
  found = select(x, "sensitivity_regression", 900, unit="rows", by="leverage", floor=0.1)
  q, _ = np.linalg.qr(np.column_stack([np.ones(900), x.astype(np.float64)]))
  want = 0.9 * np.square(q).sum(1) / 6 + 0.1 / 900
  np.testing.assert_allclose(found.score, want[found.index], rtol=1e-5)
  assert (found.weight == 1).all()


def test_targets_are_read_at_rows_that_have_one_next_to_centers(problem, monkeypatch):
  x, y = problem
  y = np.where(np.arange(900) % 3 == 0, y, np.nan)
  read = []
  bounds = regression.bounds
  keep = lambda centers, targets, *rest, **options: (
    read.append((centers, targets)) or bounds(centers, targets, *rest, **options)
  )
  monkeypatch.setattr(regression, "bounds", keep)
  columns = {"score": y}
  found = select(x, "sensitivity_regression", 90, unit="rows", clusters=30, columns=columns)
  assert len(set(found.index.tolist())) == 90
  assert np.isnan(y[found.index]).sum() > 30
  [(centers, targets)] = read
  assert 20 < len(targets) <= 30
  rows = [int(np.flatnonzero((x == center).all(1))[0]) for center in centers]
  np.testing.assert_array_equal(targets, y[rows])


@pytest.mark.parametrize("draws", ["priority", "systematic", "replacement"])
def test_weighted_sums_of_squares_are_unbiased_at_any_beta(problem, draws):
  x, y = problem
  labels = np.arange(900, dtype=np.int32) % 30
  distance2 = ((x - x[labels]) ** 2).sum(1)
  bound = regression.bounds(x[:30], y[:30], labels, distance2, slope=-1, quantile=0.95)
  p = sensitivity.probabilities(bound, np.ones(900, bool), 0.05)
  draw = sensitivity.DRAWS[draws]
  best = solution(x, y)
  for beta in (best, 0 * best):
    loss, sums = losses(x, y, beta), []
    for seed in range(400):
      drawn = draw(jax.random.key(seed), p, labels, 80)
      sums.append((drawn.weight * loss[drawn.index]).sum())
    assert abs(np.mean(sums) - loss.sum()) < 4 * np.std(sums) / 20


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"by": "leverages"}, "by must be one of"),
    ({"clusters": 0}, "clusters must be at least 1"),
    ({"columns": {"score": np.full(900, np.nan)}}, "no row of the pool has a finite one"),
    ({}, "needs score"),
  ],
)
def test_mistakes_are_named(options, message, problem):
  with pytest.raises(ValueError, match=message):
    select(problem[0], "sensitivity_regression", 0.1, **options)
