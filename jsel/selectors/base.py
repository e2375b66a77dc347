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
  """Rows to train on next; the step shuffles them.

  A mask and not a list of ids: it is split as the pool is, so that nothing of
  the pool's length is on every device.
  """

  mask: jax.Array  # [n] bool, never set where the pool is not valid
  weight: jax.Array | None  # [n] float32 weight of the row's loss where planned; None: all are 1


class Batch(NamedTuple):
  """What one step trained on."""

  index: jax.Array  # [b] int32 global row ids
  weight: jax.Array  # [b] float32
  valid: jax.Array  # [b] bool


class Candidates(NamedTuple):
  """Rows on offer at one step, the same on every device."""

  ids: jax.Array  # [s] int32 global row ids, distinct
  outputs: dict[str, jax.Array]  # the selector's feedback on those rows before the step, each [s]


class Picks(NamedTuple):
  """What a step takes of its candidates."""

  position: jax.Array  # [b] int32 places among the candidates, distinct
  weight: jax.Array  # [b] float32


class Selector(NamedTuple):
  """Pure functions; everything that a selector carries is in its state.

  All of them run inside `jax.shard_map` (or on one device with ``axis_name``
  None): what is in ``rows`` is the device's own part, ids are global, and what
  they return outside of ``rows`` is the same on every device.
  """

  needs: tuple[str, ...]  # pool columns
  feedback: tuple[str, ...]  # per-row outputs of the loss function that `update` and `pick` read
  scope: tuple[Literal["pool", "candidates"], ...]  # plans over the pool, picks among candidates
  least: int  # rows that a plan has at the least
  most: int  # and at the most; equal to `least` where every plan has as many
  weighted: bool  # whether plans have weights
  fit: Callable[[jax.Array, jax.Array, Pool], Columns] | None  # (key, features, pool) -> fit
  init: Callable[[jax.Array, Pool, Columns | None], Columns]  # (key, pool, fit) -> state
  select: Callable[
    [jax.Array, Columns, Pool, jax.Array], tuple[Columns, Plan, dict[str, jax.Array]]
  ]  # (key, state, pool, step) -> (state, plan, info)
  pick: (
    Callable[[jax.Array, Columns, Pool, Candidates, int, jax.Array], tuple[Columns, Picks]] | None
  )  # (key, state, pool, candidates, count, step) -> (state, picks); None outside of its scope
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
