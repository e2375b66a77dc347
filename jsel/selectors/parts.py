"""The contract of methods that choose a subset of a pool which comes in parts.

A `Selector` has its pool on the devices. A pool of embeddings may be larger than all memory, so a
`Method` sees it in blocks only: it is a generator that asks for walks over the pool and is sent
what they found, until it can say in which order it would take the rows.

    def rank(key, task, count):
      moments, _ = yield Pass("moments", state, shared, update)  # update of every block, in order
      some = yield Take(ids)  # rows themselves, few enough to hold
      while True:
        count = yield Ranking(index, score)  # sent a larger count if need be

What is carried from block to block (`Pass.state`) is a monoid or has `init` and `update`, as
`jsel.kernels.moments`, `jsel.kernels.kmeans` and `jsel.selectors.rds` have; what a block says of
its own rows comes back whole, on the host. The method decides nothing that the answers and its key
do not determine: a driver may stop between two blocks, keep the answers, and later send the same
ones to a new generator.

Rankings are nested: what is taken of a smaller budget is in that of a larger one, unless the method
says otherwise. Caps, floors, budgets of tokens and files are the driver's (`jsel.selection`).
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import numpy as np

from jsel.kernels.rows import AxisName


class Block(NamedTuple):
  """Rows that follow each other in a pool; of one size, the last one padded."""

  x: jax.Array  # [b, d] float32, b a multiple of 512
  valid: jax.Array  # [b] bool, False where padded, or where the row may not be taken
  start: jax.Array  # [] int32, the pool's row that is first in the block


class Pass(NamedTuple):
  """A request: one walk over all blocks, in order.

  ``update`` is called inside `jax.shard_map`, the block split over `Task.axis_name`. Programs are
  kept by it: it has to be the same function for the same work, and to hold no arrays. The answer is
  the last state, and the blocks' rows on the host as one.
  """

  name: str  # of what it does, as people are told
  state: Any  # arrays before the first block
  shared: Any  # arrays that ``update`` reads, the same at every block
  update: Callable[
    [Any, Any, Block], tuple[Any, dict[str, jax.Array]]
  ]  # (state, shared, block) -> (state, rows), each of the rows [b, ...]


class Take(NamedTuple):
  """A request for rows themselves; the answer is float32 ``[m, d]`` on the host."""

  index: np.ndarray  # [m] rows of the pool, in any order


class Note(NamedTuple):
  """Something that a method found on its way and people want to know; there is no answer."""

  name: str
  text: str  # a line
  facts: dict[str, Any]  # as JSON holds it


class Ranking(NamedTuple):
  """An offer: rows in the order in which they would be taken. The answer is a larger count."""

  index: np.ndarray  # [m] int32 rows of the pool, distinct
  score: np.ndarray  # [m] float32, what the method ranks by
  weight: np.ndarray | None = None  # [m] float32 of the row's loss; None: all are 1
  query: np.ndarray | None = None  # [m] int32, the query that picked the row
  similarity: np.ndarray | None = None  # [m] float32, to that query
  cluster: np.ndarray | None = None  # [m] int32, the cluster that it was picked from
  task: np.ndarray | None = None  # [m] int32, the set of queries whose turn it was


class Task(NamedTuple):
  """What a method is told of a pool; what is not given is None."""

  size: int
  width: int  # columns of an embedding
  eligible: np.ndarray  # [n] bool, rows that may be taken
  axis_name: AxisName = None  # that blocks are split over
  queries: np.ndarray | None = None  # [q, d] float32
  score: np.ndarray | None = None  # [n] float64
  length: np.ndarray | None = None  # [n] int64


class Cost(NamedTuple):
  """What a ranking takes, by rough account, before it is begun."""

  passes: float  # walks over the pool
  flops: float  # of all of them together
  held_bytes: float  # beside a block


class Method(NamedTuple):
  """How to rank a pool."""

  needs: tuple[str, ...]  # fields of `Task` that must be given: "queries", "score", "length"
  weighted: bool  # whether rankings have weights, which hold for the count that was asked for
  cost: Callable[[Task, int], Cost]  # (task, count)
  rank: Callable[[jax.Array, Task, int], Generator[Pass | Take | Note | Ranking, Any, None]]


def whole(index: np.ndarray, score: np.ndarray, **why: np.ndarray) -> Ranking:
  """A ranking of rows ``index`` with the dtypes of one."""
  kinds = {"weight": np.float32, "similarity": np.float32, "query": np.int32, "cluster": np.int32}
  columns = {name: column.astype(kinds[name]) for name, column in why.items()}
  return Ranking(index.astype(np.int32), score.astype(np.float32), **columns)
