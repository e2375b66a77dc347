"""Sensitivity sampling: rows drawn by a bound on their loss, weighted so that sums are unbiased."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import sampling
from jsel.kernels.random import row_bits
from jsel.selectors.cells import assigner, cluster, cluster_cost
from jsel.selectors.finite import check_finite
from jsel.selectors.parts import Cost, Method, Pass, Ranking, Take, Task, whole

Draws = Literal["priority", "systematic", "replacement"]
Proxy = Literal["center", "known"]


def sensitivity(
  *,
  clusters: int = 256,
  power: int = 2,
  slope: float = -1.0,
  quantile: float = 0.95,
  floor: float = 0.05,
  draws: Draws = "priority",
  proxy: Proxy = "center",
  iterations: int = 50,
  refinements: int = 1,
) -> Method:
  r"""Draws rows with :math:`p_i \propto \ell(c) + \Lambda_c \lVert x_i - c \rVert^z`.

  c is the row nearest to the center of i's cluster, and its loss is all that the bound
  reads. ``"priority"`` gives each row the rank of p / u, u uniform: exactly as many distinct
  rows as asked for, nested, and :math:`w_i = \max(1, \tau / p_i)` with tau the first rank not
  taken makes :math:`\sum w_i \ell_i` an unbiased sum over the pool. ``"systematic"`` takes as many
  distinct rows with :math:`\pi_i = \min(1, \tau p_i)` and w = 1 / pi, at equal strides of the rows
  cluster by cluster: unbiased and nearer, for other rows at another budget. ``"replacement"`` is
  the paper's: w = 1 / (s p) a draw, added up where a row is drawn more than once.

  With ``proxy="known"`` c is the nearest of all rows whose loss is known: for adaptive rounds, in
  which the losses of the rows that were drawn are put into the scores, and the next round's
  bounds are made of them.

  Args:
    clusters: of k-means; at most a row each.
    power: z, 1 or 2.
    slope: Lambda; negative takes, in each cluster, the ``quantile`` of
      ``|loss - loss(c)| / distance^z`` over its rows with a loss (of all rows, below 3 of them).
    quantile: see ``slope``.
    floor: share of the probability that is spread evenly.
    draws: see above.
    proxy: see above; compares the pool with every row of a known loss.
    iterations: of k-means on its sample.
    refinements: times that the centers are moved to the means of the whole pool.

  Raises:
    ValueError: if an option is out of range, a loss is negative, or, without a ``floor``, fewer
      rows than are wanted have a bound above 0.

  Source: Axiotis et al., *Data-Efficient Learning via Clustering-Based Sensitivity
  Sampling*, 2024, arXiv 2402.17327; Duffield, Lund, Thorup, *Priority sampling for
  estimation of arbitrary subset sums*, 2007; Madow, *On the theory of systematic
  sampling, II*, 1949.

  >>> sensitivity().needs, sensitivity().weighted
  (('score',), True)
  """
  check_finite("sensitivity", power=power, slope=slope, quantile=quantile, floor=floor)
  check_finite("sensitivity", clusters=clusters, iterations=iterations, refinements=refinements)
  if clusters < 1 or power not in (1, 2) or not 0 <= quantile <= 1 or not 0 <= floor <= 1:
    raise ValueError(
      "sensitivity: clusters must be at least 1, power 1 or 2, quantile and floor in [0, 1], got"
      f" {clusters=}, {power=}, {quantile=}, {floor=}"
    )
  if min(iterations, refinements) < 0:
    raise ValueError(f"sensitivity: negative option: {iterations=}, {refinements=}")
  if draws not in get_args(Draws):
    raise ValueError(f"sensitivity.draws must be one of {get_args(Draws)}, got {draws!r}")
  if proxy not in ("center", "known"):
    raise ValueError(f'sensitivity.proxy must be "center" or "known", got {proxy!r}')
  options = {"iterations": iterations, "refinements": refinements}

  def rank(key: jax.Array, task: Task, count: int):
    assert task.score is not None
    loss = task.score
    if (loss[task.eligible] < 0).any():
      row = int(np.flatnonzero(task.eligible & (loss < 0))[0])
      raise ValueError(f"sensitivity: the loss of row {row} is {loss[row]}: losses are at least 0")
    cells_key, draw_key = jax.random.split(key)
    k = min(clusters, int(task.eligible.sum()))
    cells = yield from cluster(cells_key, task, k, **options)
    center = nearest(cells.labels, np.where(np.isfinite(loss), cells.distance2, np.nan))
    if not center.size:
      raise ValueError("sensitivity: no row has a finite score: give the losses of some")
    rows = yield Take(center)
    _, found = yield Pass("distances", (), jnp.asarray(rows), assigner(task.axis_name))
    distance = found["distance2"].astype(np.float64) ** (power / 2)
    slopes = slopes_of(found["label"], distance, loss, loss[center], slope=slope, quantile=quantile)
    if proxy == "center":
      bound = bounds(found["label"], distance, loss[center], slopes[found["label"]])
    else:
      known = np.flatnonzero(task.eligible & np.isfinite(loss))
      rows = yield Take(known)
      _, near = yield Pass("distances to known", (), jnp.asarray(rows), assigner(task.axis_name))
      distance = near["distance2"].astype(np.float64) ** (power / 2)
      bound = bounds(near["label"], distance, loss[known], slopes[found["label"]])
    p = probabilities(bound, task.eligible, floor)
    while True:
      check_chances("sensitivity", p, count, draws)
      count = yield DRAWS[draws](draw_key, p, found["label"], count)

  def cost(task: Task, count: int) -> Cost:
    k = min(clusters, task.size)
    of = cluster_cost(task, k, **options)
    again = 2.0 * task.size * k * task.width
    if proxy == "known" and task.score is not None:
      known = float(np.isfinite(task.score).sum())
      again += 2.0 * task.size * known * task.width
      of = of._replace(passes=of.passes + 2, held_bytes=of.held_bytes + 8.0 * known * task.width)
    return Cost(of.passes + 2, of.flops + again, of.held_bytes + 40.0 * task.size)

  return Method(("score",), True, cost, rank)


def nearest(labels: np.ndarray, distance2: np.ndarray) -> np.ndarray:
  """The row nearest to each center, of those whose distance is a number.

  >>> nearest(np.array([0, 0, 1]), np.array([4.0, 1.0, np.nan])).tolist()
  [1]
  """
  rows = np.flatnonzero((labels >= 0) & np.isfinite(distance2))
  rows = rows[np.lexsort((rows, distance2[rows], labels[rows]))]
  return rows[np.flatnonzero(np.diff(labels[rows], prepend=-1))]


def slopes_of(
  labels: np.ndarray,
  distance: np.ndarray,
  loss: np.ndarray,
  center_loss: np.ndarray,
  *,
  slope: float,
  quantile: float,
) -> np.ndarray:
  """``[k]`` Lambda of each cluster: ``slope``, or the quantile of the ratios if it is negative."""
  slopes = np.full(len(center_loss), slope)
  if slope >= 0:
    return slopes
  at = np.maximum(labels, 0)
  seen = np.flatnonzero((labels >= 0) & np.isfinite(loss) & (distance > 0))
  ratio = np.abs(loss[seen] - center_loss[at[seen]]) / distance[seen]
  slopes[:] = np.quantile(ratio, quantile) if seen.size else 0.0
  order = np.argsort(at[seen], kind="stable")
  cells, starts = np.unique(at[seen][order], return_index=True)
  for cell, part in zip(cells, np.split(ratio[order], starts[1:]), strict=False):
    if part.size >= 3:
      slopes[cell] = np.quantile(part, quantile)
  return slopes


def bounds(
  labels: np.ndarray, distance: np.ndarray, proxy_loss: np.ndarray, slopes: np.ndarray
) -> np.ndarray:
  """``[n]`` the loss of a row's proxy plus its slope times the distance; 0 where the label is -1.

  Args:
    labels: ``[n]``, which proxy is a row's.
    distance: ``[n]``, to it, to the power z.
    proxy_loss: ``[k]``.
    slopes: ``[n]``.
  """
  inside = labels >= 0
  bound = proxy_loss[np.maximum(labels, 0)] + slopes * np.where(inside, distance, 0)
  return np.where(inside, bound, 0)


def probabilities(bound: np.ndarray, eligible: np.ndarray, floor: float) -> np.ndarray:
  """``[n]`` float64 that sum to 1: in proportion to ``bound``, ``floor`` of it spread evenly."""
  even = eligible / eligible.sum()
  bound = np.where(eligible, bound, 0)
  total = bound.sum()
  return even if total == 0 else (1 - floor) * bound / total + floor * even


def check_chances(name: str, p: np.ndarray, count: int, draws: Draws) -> None:
  """Raises a ValueError if fewer than ``count`` rows can be drawn, where each is drawn once.

  Draws with replacement give fewer rows as it is.
  """
  rows = np.count_nonzero(p > 0)
  if draws != "replacement" and rows < count:
    raise ValueError(
      f"{name}: only {rows} rows have a chance above 0, the budget is {count}: raise"
      f" --config.method.{name}.floor above 0, which gives one to every row, or lower the budget"
    )


def by_priority(key: jax.Array, p: np.ndarray, labels: np.ndarray, count: int) -> Ranking:
  """The ``count`` rows of highest ``p / u``."""
  # Compiled as one: its loop would be compiled anew at every call.
  bits = np.asarray(jax.jit(row_bits)(key, jnp.arange(len(p), dtype=jnp.int32)))
  # 53 bits, and never 0.
  u = ((bits[:, 0].astype(np.uint64) << 21 | bits[:, 1] >> 11).astype(np.float64) + 0.5) * 2.0**-53
  rows = np.flatnonzero(p > 0)
  rows = rows[np.argsort(-p[rows] / u[rows], kind="stable")]
  threshold = p[rows[count]] / u[rows[count]] if count < rows.size else 0.0
  index = rows[:count]
  return whole(index, p[index], weight=np.maximum(1, threshold / p[index]), cluster=labels[index])


def by_systematic(key: jax.Array, p: np.ndarray, labels: np.ndarray, count: int) -> Ranking:
  """``count`` rows at equal strides of p, those of a cluster in the order of p; highest p first."""
  rows = np.flatnonzero(p > 0)
  rows = rows[np.lexsort((rows, p[rows], labels[rows]))]
  found = sampling.systematic(key, jnp.asarray(p[rows] / p.max(), jnp.float32), count)
  index, weight = rows[np.asarray(found.indices)], np.asarray(found.weights, np.float64)
  order = np.lexsort((index, -p[index]))
  index = index[order]
  return whole(index, p[index], weight=weight[order], cluster=labels[index])


def with_replacement(key: jax.Array, p: np.ndarray, labels: np.ndarray, count: int) -> Ranking:
  """``count`` draws, rows by their first."""
  seed = np.asarray(jax.random.key_data(key), np.uint32).tolist()
  cumulative = np.cumsum(p)
  at = np.random.default_rng(seed).random(count) * cumulative[-1]
  drawn = np.searchsorted(cumulative, at, side="right")
  index, first, times = np.unique(drawn, return_index=True, return_counts=True)
  order = np.argsort(first)
  index, times = index[order], times[order]
  return whole(index, p[index], weight=times / (count * p[index]), cluster=labels[index])


DRAWS = {"priority": by_priority, "systematic": by_systematic, "replacement": with_replacement}
