"""RDS+: queries take turns to pick the rows most similar to them."""

import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel.kernels import similarity
from jsel.kernels.rows import AxisName, axis_size
from jsel.kernels.similarity import Duplicates, Matches
from jsel.selectors.parts import Block, Cost, Method, Pass, Ranking, Task, whole

Transform = Callable[[Any, jax.Array, AxisName], jax.Array]  # (shared, [n, d], axis) -> [n, e]


def rds(*, duplicates: Duplicates = "next_best") -> Method:
  """Each query in turn picks the pool's row of largest cosine that is not yet taken.

  Only the best ``b`` rows of each query are kept while the pool streams by, at first
  ``b = 2 count / q``. Where longer lists could have changed the picks, the walk is
  done again with twice as many: the result is exact.

  Args:
    duplicates: what a query whose best row is taken does: ``"next_best"`` picks its
      next that is free; ``"lose_turn"`` picks none in this round, as the authors' code.

  Source: Ivison et al., *Large-Scale Data Selection for Instruction Tuning*, 2025,
  arXiv 2503.01807.

  >>> rds().needs
  ('queries',)
  """

  def rank(key: jax.Array, task: Task, count: int):
    del key
    yield from by_turns(task, count, duplicates=duplicates, shared=(), transform=_unchanged)

  return Method(("queries",), False, lambda task, count: matching_cost(task, count, 0), rank)


def by_turns(
  task: Task, count: int, *, duplicates: Duplicates, shared: Any, transform: Transform
) -> Generator[Pass | Ranking, Any, None]:
  """The ranking of `rds` after ``transform`` of rows and queries alike.

  Args:
    task: with queries.
    count: rows to rank.
    duplicates: of `jsel.kernels.similarity.round_robin`.
    shared: arrays that ``transform`` reads.
    transform: of rows to the space where their directions are compared; a function that is the
      same for the same work (`Pass.update`).
  """
  assert task.queries is not None
  eligible = int(task.eligible.sum())
  update = _matcher(task.axis_name, transform)
  transformed = jax.jit(transform, static_argnums=2)(shared, jnp.asarray(task.queries), None)
  queries, _ = directions(transformed)
  q = queries.shape[0]
  length = min(2 * -(-count // q), eligible)
  while True:
    start = Matches(jnp.full((q, length), -jnp.inf), jnp.full((q, length), -1, jnp.int32))
    matches, _ = yield Pass("matching", start, (queries, shared), update)
    matches = jax.tree.map(jnp.asarray, matches)
    picks = similarity.round_robin(matches, min(count, q * length), duplicates=duplicates)
    found = np.asarray(picks.indices) >= 0
    if length < eligible and (not picks.complete or found.sum() < count):
      length = min(2 * length, eligible)
      continue
    index, values = np.asarray(picks.indices)[found], np.asarray(picks.values)[found]
    count = yield whole(index, values, query=np.asarray(picks.queries)[found], similarity=values)
    length = min(max(length, 2 * -(-count // q)), eligible)


def directions(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rows of length 1, and which rows have a direction.

  >>> directions(jnp.array([[3.0, 4.0], [0.0, 0.0]]))[1].tolist()
  [True, False]
  """
  # Divided by the largest entry first, so that no square is lost or infinite.
  largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
  scaled = x / jnp.where(largest > 0, largest, 1)
  norm = jnp.sqrt(jnp.sum(scaled * scaled, axis=1, keepdims=True))
  return scaled / jnp.where(norm > 0, norm, 1), largest[:, 0] > 0


def matching_cost(task: Task, count: int, flops_a_row: float) -> Cost:
  """Of one walk that matches, after ``flops_a_row`` of a transform; rarely there is a second."""
  assert task.queries is not None
  q = len(task.queries)
  lists = 8.0 * q * min(2 * -(-count // q), task.size)
  return Cost(1, task.size * (2.0 * q * task.width + flops_a_row), 4 * lists)


def merge(best: Matches, more: Matches) -> Matches:
  """The best of both, as many as ``best`` has; on ties the rows of ``best`` come first.

  >>> a = Matches(jnp.array([[2.0, 1.0]]), jnp.array([[0, 1]]))
  >>> b = Matches(jnp.array([[3.0, 1.0]]), jnp.array([[8, 9]]))
  >>> merge(a, b).indices.tolist()
  [[8, 0]]
  """
  join = lambda a, b: jnp.concatenate([a, b], axis=1)
  values, place = lax.top_k(join(best.values, more.values), best.values.shape[1])
  return Matches(values, jnp.take_along_axis(join(best.indices, more.indices), place, axis=1))


def _unchanged(shared: Any, x: jax.Array, axis: AxisName) -> jax.Array:
  del shared, axis
  return x


@functools.lru_cache(maxsize=64)
def _matcher(axis_name: AxisName, transform: Transform) -> Callable[..., Any]:
  def update(best: Matches, shared, block: Block):
    queries, of_transform = shared
    rows, directed = directions(transform(of_transform, block.x, axis_name))
    most = min(best.values.shape[1], rows.shape[0] * axis_size(axis_name))
    found = similarity.best_matches(
      rows, queries, most, valid=block.valid & directed, axis_name=axis_name
    )
    place = jnp.where(found.indices >= 0, found.indices + block.start, -1)
    return merge(best, Matches(found.values, place)), {}

  return update
