"""kMQ: k-means clusters give rows in proportion to their size, drawn by quality."""

from typing import Literal

import jax
import numpy as np

from jsel.selectors.cells import cluster, cluster_cost, lottery, sizes, take_turns
from jsel.selectors.finite import check_finite
from jsel.selectors.parts import Method, Task, whole

Quotas = Literal["size", "equal"]


def kmq(
  *,
  clusters: int = 1024,
  temperature: float = 1.0,
  quotas: Quotas = "size",
  iterations: int = 50,
  refinements: int = 1,
  silhouette: tuple[int, ...] = (),
) -> Method:
  """Diverse by cluster, good within it.

  Within a cluster rows are drawn without replacement, with probability proportional to
  ``exp(score / temperature)``; a score that is not finite comes last.

  Args:
    clusters: of k-means; at most a row each.
    temperature: of the draw; 0 takes the highest scores.
    quotas: ``"size"`` in proportion to the clusters' rows (the paper), or ``"equal"`` (the
      authors' code). Exact for any budget (`cells.take_turns`).
    iterations: of k-means on its sample.
    refinements: times that the centers are moved to the means of the whole pool.
    silhouette: numbers of clusters to choose from in place of ``clusters``: the one whose clusters
      of the sample have the highest mean silhouette is taken.

  Raises:
    ValueError: if an option is out of range.

  Source: Yu et al., *Diversify and Conquer*, 2024, arXiv 2409.11378.

  >>> kmq().needs
  ('score',)
  """
  if any(type(k) is not int or k < 2 for k in silhouette):
    raise ValueError(f"kmq.silhouette must be numbers of at least 2 clusters, got {silhouette}")
  return by_cluster("kmq", clusters, temperature, quotas, iterations, refinements, silhouette)


def by_cluster(
  name: str,
  clusters: int,
  temperature: float | None,
  quotas: Quotas,
  iterations: int,
  refinements: int,
  silhouette: tuple[int, ...] = (),
) -> Method:
  """`kmq`; with ``temperature`` None, rows within a cluster are drawn uniformly."""
  check_finite(name, clusters=clusters, temperature=temperature)
  check_finite(name, iterations=iterations, refinements=refinements)
  if clusters < 1 or iterations < 0 or refinements < 0 or (temperature or 0) < 0:
    raise ValueError(
      f"{name}: clusters must be at least 1, the others not negative, got {clusters=},"
      f" {temperature=}, {iterations=}, {refinements=}"
    )
  if quotas not in ("size", "equal"):
    raise ValueError(f'{name}.quotas must be "size" or "equal", got {quotas!r}')
  options = {"iterations": iterations, "refinements": refinements, "candidates": silhouette}

  def rank(key: jax.Array, task: Task, count: int):
    del count
    cells_key, draw_key = jax.random.split(key)
    k = min(clusters, int(task.eligible.sum()))
    cells = yield from cluster(cells_key, task, k, **options)
    score = np.zeros(task.size)
    if temperature is not None:
      assert task.score is not None
      score = np.where(np.isfinite(task.score), task.score, -np.inf)
    precedence = score if temperature == 0 else lottery(draw_key, score / (temperature or 1.0))
    size = sizes(cells.labels, len(cells.centers))
    index = take_turns(cells.labels, precedence, size if quotas == "size" else np.sign(size))
    yield whole(index, score[index], cluster=cells.labels[index])

  return Method(
    () if temperature is None else ("score",),
    False,
    lambda task, count: cluster_cost(task, min(clusters, task.size), **options),
    rank,
  )
