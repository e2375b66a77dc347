"""The contract between a selector and whatever trains with it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax


class Columns(NamedTuple):
  """Arrays of a pool, a fit or a selector's state, by how a mesh holds them."""

  rows: dict[str, jax.Array]  # each [n, ...], n a multiple of 512, split over the data axis
  shared: dict[str, jax.Array]  # any shape, the same on every device


class Pool(NamedTuple):
  """The examples to choose from."""

  rows: dict[str, jax.Array]  # each [n, ...]: "labels" and whatever else a selector needs
  valid: jax.Array  # [n] bool, False for the rows that pad n to a multiple of 512


class Plan(NamedTuple):
  """Rows to train on next, in any order; the step shuffles them."""

  index: jax.Array  # [m] int32 global row ids, distinct; entries past `count` are 0
  weight: jax.Array  # [m] float32 weight of the row's loss, mean 1 in expectation over a pass
  count: jax.Array  # [] int32, how many entries hold


class Batch(NamedTuple):
  """What one step trained on."""

  index: jax.Array  # [b] int32 global row ids
  weight: jax.Array  # [b] float32
  valid: jax.Array  # [b] bool


class Candidates(NamedTuple):
  """Rows on offer to a selector of scope "candidates"."""

  ids: jax.Array  # [s] int32 global row ids
  outputs: dict[str, jax.Array]  # the feedback of those rows, each [s, ...]


class Selector(NamedTuple):
  """Pure functions; everything that a selector carries is in its state.

  All of them run inside `jax.shard_map` (or on one device with ``axis_name``
  None): what is in ``rows`` is the device's own part, ids are global, and what
  they return outside of ``rows`` is the same on every device.
  """

  needs: tuple[str, ...]  # pool columns
  feedback: tuple[str, ...]  # per-row outputs of the loss function that `update` reads
  scope: Literal["pool", "candidates"]
  capacity: int  # m, rows that a plan has room for
  least: int  # rows that a plan has at the least
  fit: Callable[[jax.Array, jax.Array, Pool], Columns] | None  # (key, features, pool) -> fit
  init: Callable[[jax.Array, Pool, Columns | None], Columns]  # (key, pool, fit) -> state
  select: Callable[
    [jax.Array, Columns, Pool, Candidates | None, jax.Array],
    tuple[Columns, Plan, dict[str, jax.Array]],
  ]  # (key, state, pool, candidates, step) -> (state, plan, info)
  update: Callable[[Columns, Batch, dict[str, jax.Array]], Columns]  # (state, batch, feedback)


def with_fit(state: Columns, fit: Columns) -> Columns:
  """``state`` ranking by ``fit`` from now on: counts stay, the fit's columns are replaced.

  The state that ``init`` makes without a fit has the columns of one, so that
  neither shapes nor compiled programs change.
  """
  replace: Callable[[Any, Any], Any] = lambda old, new: {
    **old,
    **{name: new[name].astype(old[name].dtype) for name in new},
  }
  return Columns(replace(state.rows, fit.rows), replace(state.shared, fit.shared))
