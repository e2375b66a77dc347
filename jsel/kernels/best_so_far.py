"""The best rows of each query among those seen so far, and rows that wait to be compared."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jsel.kernels import bits
from jsel.kernels.highest import sorted_top_k
from jsel.kernels.keys import LOWEST

ROOM = 4096  # rows that can wait for each query,
ROOM_OF_ALL = 2**20  # but no more than so many for all, if that is room for as many as the best
FEW, MANY = 128, 1024  # rows of a tile that join them at once; the latter at the least


class Best(NamedTuple):
  """The best rows of each of q queries, by descending key, ties by id."""

  keys: jax.Array  # [q, count] int32, `LOWEST` where there is none
  ids: jax.Array  # [q, count] int32


class Waiting(NamedTuple):
  """Rows that were better than the last of the best when they came, in the order of their ids."""

  keys: jax.Array  # [q, room] int32, `LOWEST` where there is none
  ids: jax.Array  # [q, room] int32
  filled: jax.Array  # [q] int32


def no_waiting(best: Best) -> Waiting:
  """Room that nothing is in yet."""
  q, count = best.keys.shape
  room = max(min(ROOM, ROOM_OF_ALL // q), count, FEW)
  nothing = best.keys[:, :1] & 0  # laid out over devices as the best are
  keys = jnp.broadcast_to(nothing + LOWEST, (q, room))
  return Waiting(keys, jnp.broadcast_to(nothing, (q, room)), nothing[:, 0])


def merge(best: Best, keys: jax.Array, ids: jax.Array) -> Best:
  """The best and rows of higher ids.

  Args:
    best: so far.
    keys: ``[q, m]`` int32.
    ids: ``[q, m]`` or, where all queries have the same rows, ``[1, m]``.

  >>> best = Best(jnp.array([[5, 3]]), jnp.array([[0, 1]]))
  >>> merge(best, jnp.array([[3, 4]]), jnp.array([[2, 3]])).ids.tolist()
  [[0, 3]]
  """
  count = best.keys.shape[1]
  # The best so far come first: of lower ids, they win ties by their position.
  top, position = sorted_top_k(jnp.concatenate([best.keys, keys], axis=1), count)
  old = jnp.take_along_axis(best.ids, jnp.minimum(position, count - 1), axis=1)
  place = jnp.maximum(position - count, 0)
  new = ids[0][place] if ids.shape[0] == 1 else jnp.take_along_axis(ids, place, axis=1)
  return Best(top, jnp.where(position < count, old, new))


def add_to_waiting(
  best: Best, waiting: Waiting, keys: jax.Array, ids: jax.Array
) -> tuple[Best, Waiting]:
  """The best and those that wait, after rows of higher ids have come.

  Where few of a tile's rows are better than the last of the best, they wait: a merge costs more
  for the best, which it sorts again, than for the rows that join them.

  Args:
    best, waiting: so far.
    keys: ``[q, m]`` int32.
    ids: ``[m]`` int32, ascending.
  """
  q, room = waiting.keys.shape
  better = keys > best.keys[:, -1:]
  words = bits.pack(jnp.pad(better, [(0, 0), (0, -better.shape[1] % bits.WORD)]))
  joining = bits.count(words).sum(1, dtype=jnp.int32)
  most = jnp.max(joining)
  many = min(max(MANY, best.keys.shape[1] // 2), room)

  def merged(best: Best, waiting: Waiting) -> tuple[Best, Waiting]:
    return merge(best, waiting.keys, waiting.ids), no_waiting(best)

  def merged_with_all(best: Best, waiting: Waiting) -> tuple[Best, Waiting]:
    every = jnp.broadcast_to(ids[None], keys.shape)
    columns = (waiting.keys, keys), (waiting.ids, every)
    return merge(best, *(jnp.concatenate(part, axis=1) for part in columns)), no_waiting(best)

  def joined(size: int, best: Best, waiting: Waiting) -> tuple[Best, Waiting]:
    row = jnp.arange(q, dtype=jnp.int32)[:, None]
    slot = jnp.arange(size, dtype=jnp.int32)[None]
    place, _ = jax.vmap(lambda words: bits.places(words, size))(words)
    place = jnp.minimum(place, keys.shape[1] - 1)
    to = jnp.where(slot < joining[:, None], waiting.filled[:, None] + slot, room)
    put = lambda old, new: old.at[row, to].set(new, mode="drop")
    new = put(waiting.keys, jnp.take_along_axis(keys, place, axis=1)), put(waiting.ids, ids[place])
    return best, Waiting(*new, waiting.filled + joining)

  fits = jnp.max(waiting.filled) + most <= room
  same = lambda best, waiting: (best, waiting)
  best, waiting = lax.cond(fits | (most > many), same, merged, best, waiting)
  which = sum((most > bound).astype(jnp.int32) for bound in (0, FEW, many))
  branches = (
    same,
    lambda *state: joined(FEW, *state),
    lambda *state: joined(many, *state),
    merged_with_all,
  )
  return lax.switch(which, branches, best, waiting)
