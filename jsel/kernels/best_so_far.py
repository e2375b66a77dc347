"""The highest keys of every query over tiles of rows, merged into the best so far."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsel.kernels.rows import AxisName, varying
from jsel.kernels.threshold import LOWEST, sorted_top_k
from jsel.kernels.tiles import TILE

GROUP = 16  # keys whose maximum stands for them; a reduction this short is one fused pass
LEAST = 32  # groups held back, at least, for that to be worth its passes

Tile = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def best_so_far(
  tile: Tile, steps: int, shape: tuple[int, int], axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  """The ``held`` highest keys of all tiles, descending, and their ids; ties to the lowest id.

  On a CPU, whose top-k sorts what it finds, groups of keys with one above the last of the best are
  held back until there are many. Elsewhere a tile is merged whole.

  Args:
    tile: gives the keys ``int32[q, m]`` of a step and ``int32[m]`` ids, which ascend over the steps
      and within one but where keys are `LOWEST`.
    steps: tiles there are, static.
    shape: ``(q, held)``.
    axis_name: mesh axis that the tiles vary over.

  Returns:
    ``int32[q, held]`` keys and ids; where the key is `LOWEST`, an id means nothing.

  Example:
    >>> keys, ids = jnp.array([[[3, 9], [8, 9]]]), jnp.array([[0, 1], [2, 3]])
    >>> best = best_so_far(lambda step: (keys[:, step], ids[step]), 2, (1, 3), None)
    >>> [part.tolist() for part in best]
    [[[9, 9, 8]], [[1, 3, 2]]]
  """
  q, held = shape
  whole = lambda: _whole_tiles(tile, steps, shape, axis_name)
  slots = min(held // 2, TILE // (GROUP * q))
  if slots < LEAST:
    return whole()
  return lax.platform_dependent(
    cpu=lambda: _held_back(tile, steps, shape, slots, axis_name), default=whole
  )


def _whole_tiles(
  tile: Tile, steps: int, shape: tuple[int, int], axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  def step(best: tuple[jax.Array, jax.Array], index: jax.Array):
    keys, ids = tile(index)
    rises = jnp.any(jnp.max(keys, axis=1) > best[0][:, -1])
    merge = lambda best: _merge(best, keys, lambda place: ids[place])
    return lax.cond(rises, merge, lambda best: best, best), None

  return lax.scan(step, _nothing(shape, axis_name), jnp.arange(steps, dtype=jnp.int32))[0]


def _held_back(
  tile: Tile, steps: int, shape: tuple[int, int], slots: int, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
  q, _ = shape
  capacities = (slots // 8, slots // 2)
  # What is appended may overhang what it fills by the larger capacity.
  width = (slots + capacities[-1]) * GROUP
  empty = _nothing((q, width), axis_name)
  of_each = lambda ids: lambda place: jnp.take_along_axis(ids, place, axis=1)
  none = varying(jnp.zeros(q, jnp.int32), axis_name)

  def step(carry, index: jax.Array):
    keys, ids = tile(index)
    pad = -keys.shape[1] % GROUP
    keys = jnp.pad(keys, ((0, 0), (0, pad)), constant_values=LOWEST).reshape(q, -1, GROUP)
    ids = jnp.pad(ids, (0, pad)).reshape(-1, GROUP)
    groups = ids.shape[0]
    highest = jnp.max(keys, axis=2)

    def merge_held(carry):
      best, (waiting, waiting_ids), _ = carry
      return _merge(best, waiting, of_each(waiting_ids)), empty, none

    def rises(carry) -> jax.Array:
      return highest > carry[0][0][:, -1:]

    def append(capacity: int, carry):
      best, (waiting, waiting_ids), used = carry
      rising = rises(carry)
      place = jnp.cumsum(rising, axis=1, dtype=jnp.int32) - 1
      chosen = jnp.full((q, capacity), groups, jnp.int32)
      chosen = chosen.at[
        jnp.arange(q, dtype=jnp.int32)[:, None], jnp.where(rising, place, capacity)
      ].set(jnp.arange(groups, dtype=jnp.int32)[None], mode="drop")
      new = jnp.take_along_axis(
        keys, chosen[:, :, None], axis=1, mode="fill", fill_value=int(LOWEST)
      )
      put = jax.vmap(lambda old, new, at: lax.dynamic_update_slice(old, new, (at * GROUP,)))
      waiting = put(waiting, new.reshape(q, -1), used)
      waiting_ids = put(waiting_ids, ids.at[chosen].get(mode="clip").reshape(q, -1), used)
      return best, (waiting, waiting_ids), used + jnp.sum(rising, axis=1, dtype=jnp.int32)

    def merge_all(carry):
      best, (waiting, waiting_ids), _ = carry
      of_tile = lambda place: ids.reshape(-1)[jnp.maximum(place - width, 0)]
      of_waiting = lambda place: of_each(waiting_ids)(jnp.minimum(place, width - 1))
      id_of = lambda place: jnp.where(place < width, of_waiting(place), of_tile(place))
      new = jnp.concatenate([waiting, keys.reshape(q, -1)], axis=1)
      return _merge(best, new, id_of), empty, none

    counts = lambda carry: jnp.sum(rises(carry), axis=1, dtype=jnp.int32)
    full = jnp.any(carry[2] + counts(carry) > slots)
    carry = lax.cond(full, merge_held, lambda carry: carry, carry)
    most = jnp.max(counts(carry))
    choices = [lambda carry: carry, *(functools.partial(append, c) for c in capacities), merge_all]
    return lax.switch(jnp.sum(most > jnp.array([0, *capacities])), choices, carry), None

  start = _nothing(shape, axis_name), empty, none
  (best, (waiting, ids), _), _ = lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))
  return _merge(best, waiting, of_each(ids))


def _merge(
  best: tuple[jax.Array, jax.Array], keys: jax.Array, id_of: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
  held = best[0].shape[1]
  # The best so far come first: of lower ids, they win ties by their position.
  top, position = sorted_top_k(jnp.concatenate([best[0], keys], axis=1), held)
  old = jnp.take_along_axis(best[1], jnp.minimum(position, held - 1), axis=1)
  return top, jnp.where(position < held, old, id_of(jnp.maximum(position - held, 0)))


def _nothing(shape: tuple[int, int], axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
  start = jnp.full(shape, LOWEST), jnp.full(shape, -1, jnp.int32)
  return varying(start[0], axis_name), varying(start[1], axis_name)
