"""The n-th row of a mask that is split over devices, for any n, without a list of its rows."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel import native
from jsel.kernels import bits
from jsel.kernels.reduce import LEAVES
from jsel.kernels.rows import AxisName, axis_size, first_row, rows
from jsel.kernels.threshold import count_before
from jsel.kernels.tiles import pad_to_leaves

TILE = 128  # rows a count
WORDS = TILE // bits.WORD


class Tiles(NamedTuple):
  """A mask in tiles of 128 rows: t = n / 512 / 128, rounded up, for each of 512 leaves of rows.

  All fields are split as the rows are; together they take 3/16 of a byte a row.
  """

  words: jax.Array  # [512 t * 4] uint32, the bits of each tile
  ends: jax.Array  # [512 t] int32, rows that are set in all tiles up to and with this one
  first: jax.Array  # [512 t] int32, the global id of the tile's first row


class Selected(NamedTuple):
  """Result of `select`."""

  indices: jax.Array  # [b] int32 global row ids, -1 where there is no such row
  values: jax.Array | None  # [b] float32, 0 where there is no such row; None if none were given


@rows("mask", out=True)
def count_tiles(mask: jax.Array, *, axis_name: AxisName = None) -> Tiles:
  """Cuts ``mask`` into tiles and counts them, once, so that `select` can look rows up.

  Sharding: bitwise the same anywhere; costs one read of the mask and an
  all-gather of one integer a device.

  Args:
    mask: ``[n]`` bool. With ``axis_name`` the global n is a multiple of 512;
      without, any n.
    axis_name: mesh axis (or axes) that the rows are split over; None on one device.

  Returns:
    `Tiles`, split as the rows are.

  Raises:
    ValueError: if ``mask`` is not ``bool[n]``, or n no multiple of 512 over an axis.

  Example:
    >>> count_tiles(jnp.ones(1024, bool)).ends[-2:].tolist()
    [1022, 1024]
  """
  if mask.ndim != 1 or mask.dtype != jnp.bool_ or not mask.size:
    raise ValueError(f"mask must be bool [n], got {mask.dtype} {mask.shape}")
  return _count_tiles(mask, axis_name=axis_name)


@rows("tiles", out=False)
def total(tiles: Tiles, *, axis_name: AxisName = None) -> jax.Array:
  """How many rows of the mask are set, as ``int32[]``; one integer all-reduce over ``axis_name``.

  >>> total(count_tiles(jnp.array([True, False, True]))).item()
  2
  """
  count = tiles.ends[-1]
  return count if axis_name is None else jax.lax.pmax(count, axis_name)


@rows("tiles", "values", out=False)
def select(
  tiles: Tiles,
  positions: jax.Array,
  *,
  values: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Selected:
  """The rows ``flatnonzero(mask)[positions]``, and what ``values`` has for them.

  A binary search of the counts and a look at the bits of one tile: O(b log n)
  of work, the memory of a few arrays of ``b``.

  Sharding: ``tiles`` and ``values`` are split by rows, ``positions`` the same on
  every device. Costs one sum of ``b`` integers over the axis, of 2 b with
  ``values``. Bitwise the same on any device count.

  Args:
    tiles: of `count_tiles`, over the same axis.
    positions: ``[b]`` int32, which of the set rows, from 0 and in the order of
      ids; in any order, repeats allowed.
    values: ``[n]`` float32; NaN and -0.0 arrive as they were.
    axis_name: mesh axis (or axes) that the rows are split over; None on one device.

  Returns:
    `Selected`, the same on every device. A position outside of [0, rows that
    are set) has index -1 and value 0.

  Raises:
    ValueError: if ``positions`` is not ``int32[b]``, or ``values`` not float32 of
      as many rows as ``tiles``.

  Example:
    >>> tiles = count_tiles(jnp.array([False, True, False, True]))
    >>> select(tiles, jnp.array([1, 0, 2])).indices.tolist()
    [3, 1, -1]

  References:
    Jacobson, *Space-efficient static trees and graphs*, 1989: rank and select.
  """
  if positions.ndim != 1 or positions.dtype != jnp.int32:
    raise ValueError(f"positions must be int32 [b], got {positions.dtype} {positions.shape}")
  if values is not None:
    per_leaf = tiles.ends.shape[0] // (LEAVES // axis_size(axis_name))
    most = per_leaf * TILE * LEAVES // axis_size(axis_name)
    least = most - TILE * LEAVES // axis_size(axis_name)
    if values.dtype != jnp.float32 or values.ndim != 1 or not least < values.shape[0] <= most:
      raise ValueError(
        f"values must be float32 of the {least + 1} to {most} rows that the tiles can be of,"
        f" got {values.dtype} {values.shape}"
      )
  return _select(tiles, positions, values, axis_name=axis_name)


# Both are compiled even when called eagerly: one dispatch.
@functools.partial(jax.jit, static_argnames="axis_name")
def _count_tiles(mask: jax.Array, *, axis_name: AxisName) -> Tiles:
  leaves = LEAVES // axis_size(axis_name)
  mask = pad_to_leaves(mask, axis_name)
  leaf = mask.shape[0] // leaves
  words, ends = _cut(mask, leaves)
  starts = np.add.outer(np.arange(leaves) * leaf, np.arange(0, leaf, TILE)).astype(np.int32)
  first = first_row(mask.shape[0], axis_name) + starts
  return Tiles(words, count_before(ends[-1], axis_name) + ends, first.ravel())


def _cut(mask: jax.Array, leaves: int) -> tuple[jax.Array, jax.Array]:
  """The words of a device's tiles, and how many of its rows are set up to the end of each."""
  by_words = lambda mask: _by_words(mask, leaves)
  if not native.available("count_tiles"):
    return by_words(mask)
  tiles = -(-mask.shape[0] // leaves // TILE) * leaves
  shapes = (
    jax.ShapeDtypeStruct((tiles * WORDS,), jnp.uint32),
    jax.ShapeDtypeStruct((tiles,), jnp.int32),
  )
  on_cpu = lambda mask: native.call("count_tiles", shapes, mask, leaves=np.int64(leaves))
  return jax.lax.platform_dependent(mask, cpu=on_cpu, default=by_words)


def _by_words(mask: jax.Array, leaves: int) -> tuple[jax.Array, jax.Array]:
  """`_cut` by XLA."""
  leaf = mask.shape[0] // leaves
  cut = jnp.pad(mask.reshape(leaves, leaf), [(0, 0), (0, -leaf % TILE)])
  words = bits.pack(cut)
  counts = bits.count(words).reshape(leaves, -1, WORDS).sum(-1, dtype=jnp.int32)
  # Twice, of leaves and of tiles within: half the time of one prefix sum over all.
  within = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
  until = jnp.cumsum(within[:, -1], dtype=jnp.int32)
  return words.ravel(), ((until - within[:, -1])[:, None] + within).ravel()


@functools.partial(jax.jit, static_argnames="axis_name")
def _select(
  tiles: Tiles, positions: jax.Array, values: jax.Array | None, *, axis_name: AxisName
) -> Selected:
  tile = _first_above(tiles.ends, positions)
  words = [_at(tiles.words, tile * WORDS + i) for i in range(WORDS)]
  counts = [bits.count(word) for word in words]
  # Of this device's first tile, the count before it is on the device before.
  before = _at(tiles.ends, tile) - sum(counts)
  found = (positions >= before) & (positions < tiles.ends[-1])
  rank = positions - before
  word, start, place = words[0], jnp.zeros_like(rank), jnp.zeros_like(rank)
  until = jnp.zeros_like(rank)
  for i in range(1, WORDS):
    until = until + counts[i - 1]
    beyond = rank >= until
    word = jnp.where(beyond, words[i], word)
    start = jnp.where(beyond, until, start)
    place = jnp.where(beyond, i * bits.WORD, place)
  index = _at(tiles.first, tile) + place + bits.nth_set(word, rank - start)

  # One more than the index, so that the sum over devices is 0 where nobody found the row. Ids and
  # values both read it, and without a barrier the search would be fused into each of them.
  found_id = jax.lax.optimization_barrier(jnp.where(found, index + 1, 0))
  columns = [found_id]
  if values is not None:
    offset = 1 if axis_name is None else jax.lax.axis_index(axis_name) * values.shape[0] + 1
    value = _at(values, jnp.where(found_id > 0, found_id - offset, 0))
    value = jax.lax.bitcast_convert_type(value, jnp.int32)
    columns.append(jnp.where(found_id > 0, value, 0))
  if axis_name is not None:
    columns = jax.lax.psum(jnp.stack(columns), axis_name)
  return Selected(
    columns[0] - 1,
    None if values is None else jax.lax.bitcast_convert_type(columns[1], jnp.float32),
  )


def _first_above(ends: jax.Array, positions: jax.Array) -> jax.Array:
  """The first entry of the ascending ``ends`` that is above each position, else the last entry."""
  base, length = jnp.zeros_like(positions), ends.shape[0]
  # Unrolled, as an iteration of a loop costs more than a step of the search.
  while length > 1:
    half = length // 2
    base = jnp.where(_at(ends, base + (half - 1)) <= positions, base + half, base)
    length -= half
  return base


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
  return x.at[index].get(mode="promise_in_bounds")
