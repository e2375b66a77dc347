"""Sensitivity sampling for least squares: few rows whose weighted fit is about that of all."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import leverage
from jsel.kernels.rows import AxisName
from jsel.selectors.cells import assigner, cluster, cluster_cost, sizes
from jsel.selectors.covariance import covariance
from jsel.selectors.finite import check_finite
from jsel.selectors.parts import Block, Cost, Method, Pass, Take, Task
from jsel.selectors.sensitivity import (
  DRAWS,
  Draws,
  check_chances,
  nearest,
  probabilities,
)

By = Literal["clusters", "leverage", "uniform"]


def sensitivity_regression(
  *,
  by: By = "clusters",
  clusters: int = 256,
  slope: float = -1.0,
  quantile: float = 0.95,
  floor: float = 0.05,
  draws: Draws = "priority",
  iterations: int = 50,
  refinements: int = 1,
) -> Method:
  r"""Draws rows for a linear regression, an intercept included, of the column score on the rows.

  :math:`\sum w_i (y_i - \beta x_i)^2` over the sample is unbiased for the sum over the pool, at
  every beta. ``by="clusters"`` reads the target of one row a cluster, the nearest to its center:

  .. math:: p_i \propto r(c)^2 + \Lambda \lVert x_i - c \rVert^2

  with r the residuals of a regression on those rows alone, each with the weight of its cluster.
  ``"leverage"`` (`jsel.kernels.leverage`) reads no target, and its guarantee holds for any;
  ``"uniform"`` is the baseline of both.

  Args:
    by: see above.
    clusters: of k-means; at most a row each. More than the width, or nothing is left over for r.
    slope: Lambda; negative takes the ``quantile`` over the centers of
      ``|r(c) - r(c')|^2 / |c - c'|^2`` with c' the center nearest to c.
    quantile: see ``slope``.
    floor: share of the probability that is spread evenly.
    draws: of `sensitivity`.
    iterations: of k-means on its sample.
    refinements: times that the centers are moved to the means of the whole pool.

  Raises:
    ValueError: if an option is out of range, or, without a ``floor``, fewer rows than are wanted
      have a bound above 0.

  Source: Axiotis et al., *Data-Efficient Learning via Clustering-Based Sensitivity
  Sampling*, 2024, arXiv 2402.17327, whose scores for regression were not to be had: these are
  this project's. Drineas, Mahoney, Muthukrishnan, *Sampling algorithms for l2 regression*, 2006.

  >>> sensitivity_regression().needs, sensitivity_regression(by="leverage").needs
  (('score',), ())
  """
  name = "sensitivity_regression"
  check_finite(name, slope=slope, quantile=quantile, floor=floor)
  check_finite(name, clusters=clusters, iterations=iterations, refinements=refinements)
  if by not in get_args(By) or draws not in DRAWS:
    raise ValueError(
      f"sensitivity_regression: by must be one of {get_args(By)}, draws of {tuple(DRAWS)}, got"
      f" {by=}, {draws=}"
    )
  if clusters < 1 or not 0 <= quantile <= 1 or not 0 <= floor <= 1:
    raise ValueError(
      "sensitivity_regression: clusters must be at least 1, quantile and floor in [0, 1], got"
      f" {clusters=}, {quantile=}, {floor=}"
    )
  if min(iterations, refinements) < 0:
    raise ValueError(f"sensitivity_regression: negative option: {iterations=}, {refinements=}")
  options = {"iterations": iterations, "refinements": refinements}

  def rank(key: jax.Array, task: Task, count: int):
    cells_key, draw_key = jax.random.split(key)
    labels, bound = np.zeros(task.size, np.int32), np.ones(task.size)
    if by == "leverage":
      bound = yield from _leverages(task)
    elif by == "clusters":
      assert task.score is not None
      k = min(clusters, int(task.eligible.sum()))
      cells = yield from cluster(cells_key, task, k, **options)
      center = nearest(cells.labels, np.where(np.isfinite(task.score), cells.distance2, np.nan))
      if not center.size:
        raise ValueError("sensitivity_regression: no row has a finite score: give some targets")
      rows = yield Take(center)
      update = assigner(task.axis_name)
      _, found = yield Pass("distances", (), jnp.asarray(rows), update)
      labels = found["label"]
      bound = bounds(
        rows,
        task.score[center],
        labels,
        found["distance2"],
        slope=slope,
        quantile=quantile,
      )
    p = probabilities(bound, task.eligible, floor)
    while True:
      check_chances(name, p, count, draws)
      count = yield DRAWS[draws](draw_key, p, labels, count)

  def cost(task: Task, count: int) -> Cost:
    del count
    held, d = 40.0 * task.size, task.width
    if by == "uniform":
      return Cost(0, 0.0, held)
    if by == "leverage":
      return Cost(2, 4.0 * task.size * d * d + 30.0 * d**3, held + 40.0 * d * d)
    k = min(clusters, task.size)
    of = cluster_cost(task, k, **options)
    return Cost(of.passes + 2, of.flops + 2.0 * task.size * k * d, of.held_bytes + held)

  return Method(("score",) if by == "clusters" else (), True, cost, rank)


def _leverages(task: Task):
  design = leverage.from_moments((yield from covariance(task)))
  _, found = yield Pass("leverage", (), design, _scorer(task.axis_name))
  return found["leverage"].astype(np.float64)


@functools.cache
def _scorer(axis_name: AxisName) -> Callable[..., Any]:
  def update(state: tuple[()], design: leverage.Design, block: Block):
    found = leverage.apply(design, block.x, valid=block.valid, axis_name=axis_name)
    return state, {"leverage": found}

  return update


def bounds(
  centers: np.ndarray,
  targets: np.ndarray,
  labels: np.ndarray,
  distance2: np.ndarray,
  *,
  slope: float,
  quantile: float,
) -> np.ndarray:
  """``[n]`` the squared residual at the center plus the slope times the squared distance.

  Args:
    centers: ``[k, d]`` rows of the pool.
    targets: ``[k]`` of those rows.
    labels: ``[n]`` the center that is nearest to each row, -1 for none; such a row has 0.
    distance2: ``[n]`` squared, to it.
    slope: of `sensitivity_regression`.
    quantile: likewise.

  >>> centers, targets = np.array([[0.0], [2.0], [4.0]]), np.array([0.0, 3.0, 0.0])
  >>> labels, distance2 = np.array([0, 1, 1, 2]), np.array([0.0, 0.0, 1.0, 0.0])
  >>> bounds(centers, targets, labels, distance2, slope=0.5, quantile=1).round(6).tolist()
  [2.25, 2.25, 2.75, 2.25]
  """
  x = centers.astype(np.float64)
  size = sizes(labels, len(x))
  residual = targets - predictions(x, targets, size, x)
  if slope < 0:
    square = np.square(x).sum(1)
    apart = np.maximum(square[:, None] + square[None] - 2 * x @ x.T, 0)
    np.fill_diagonal(apart, np.inf)
    other = apart.argmin(1)
    gap = apart[np.arange(len(x)), other]
    seen = (gap > 0) & (gap < np.inf)
    ratio = np.square(residual - residual[other])[seen] / gap[seen]
    slope = float(np.quantile(ratio, quantile)) if ratio.size else 0.0
  inside = labels >= 0
  at = np.where(inside, labels, 0)
  bound = np.square(residual)[at] + slope * np.where(inside, distance2, 0).astype(np.float64)
  return np.where(inside, bound, 0)


def predictions(
  x: np.ndarray, targets: np.ndarray, weights: np.ndarray, rows: np.ndarray
) -> np.ndarray:
  """What the weighted least squares of ``targets`` on ``x`` and an intercept says of ``rows``.

  In float64; of the solutions, where there are many, the shortest.

  >>> x = np.array([[0.0], [1.0], [2.0]])
  >>> predictions(x, np.array([1.0, 3.0, 9.0]), np.array([1.0, 1.0, 0.0]), x).round(6).tolist()
  [1.0, 3.0, 5.0]
  """
  root = np.sqrt(np.asarray(weights, np.float64))
  mean = np.average(x.astype(np.float64), axis=0, weights=weights)
  design = lambda x: np.column_stack([np.ones(len(x)), x - mean])
  solution = np.linalg.lstsq(root[:, None] * design(x), root * targets, rcond=None)[0]
  return design(rows) @ solution
