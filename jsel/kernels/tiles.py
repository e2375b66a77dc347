"""Rows mapped tile by tile, tiles that are the same on any number of devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsel.kernels.reduce import LEAVES
from jsel.kernels.rows import AxisName, axis_size

TILE = 2**22  # floats that a tile may take


def map_tiles(
  function: Callable[[Any], Any], arrays: Any, *, width: int, axis_name: AxisName
) -> Any:
  """``function`` of tiles of rows, whose shape depends on the global n and ``width`` alone.

  Rows that could be split over an axis are cut as they would be there. Others are cut into fewer
  and larger tiles, where they lie: padding them would copy all of them.
  """
  count = jax.tree.leaves(arrays)[0].shape[0]
  if axis_name is None and count % LEAVES:
    return _map_blocks(function, arrays, blocks(count, max(TILE // max(width, 1), 1), None))
  leaves = LEAVES // axis_size(axis_name)
  if count % leaves:
    raise ValueError(_undivided(count * axis_size(axis_name)))
  leaf = count // leaves
  parts = -(-leaf * width // TILE) or 1
  tile = -(-leaf // parts)

  def cut(array: jax.Array) -> jax.Array:
    split = array.reshape(leaves, leaf, *array.shape[1:])
    split = _pad(split, 1, parts * tile - leaf)
    return split.reshape(leaves * parts, tile, *array.shape[1:])

  def join(array: jax.Array) -> jax.Array:
    split = array.reshape(leaves, parts * tile, *array.shape[2:])[:, :leaf]
    return split.reshape(count, *array.shape[2:])

  return jax.tree.map(join, jax.lax.map(function, jax.tree.map(cut, arrays)))


def _map_blocks(function: Callable[[Any], Any], arrays: Any, cut: "Blocks") -> Any:
  """Rows that two blocks share are worked out in both, alike."""

  def part(index: jax.Array) -> tuple[jax.Array, Any]:
    row, _ = cut.span(index)
    take = lambda array: jax.lax.dynamic_slice_in_dim(array, row, cut.size)
    return row, function(jax.tree.map(take, arrays))

  def one(index: jax.Array, results: Any) -> Any:
    row, new = part(index)
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, row, axis=0)
    return jax.tree.map(put, results, new)

  _, shapes = jax.eval_shape(part, jnp.int32(0))
  empty = lambda shape: jnp.zeros((cut.leaf, *shape.shape[1:]), shape.dtype)
  return jax.lax.fori_loop(0, cut.count, one, jax.tree.map(empty, shapes))


class Blocks(NamedTuple):
  """How `blocks` cuts the rows of one device."""

  size: int  # rows of every block
  count: int  # blocks
  leaf: int  # rows that are cut on their own
  per_leaf: int  # blocks

  def span(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where block ``index`` starts, and the first of its rows that no block before it has."""
    index = jnp.asarray(index, jnp.int32)  # a loop's counter has 64 bits under jax_enable_x64
    start = index // self.per_leaf * self.leaf
    first = index % self.per_leaf * self.size
    return start + jnp.minimum(first, self.leaf - self.size), start + first


def blocks(count: int, most: int, axis_name: AxisName) -> Blocks:
  """Cuts ``count`` rows into equal blocks of at most ``most``, without padding.

  Where they do not divide, the last block begins earlier and overlaps the one
  before. Over an axis each of 512 leaves is cut on its own, so that blocks are
  the same rows on any number of devices.

  >>> cut = blocks(10, 4, None)
  >>> [tuple(map(int, cut.span(jnp.int32(i)))) for i in range(cut.count)]
  [(0, 0), (4, 4), (6, 8)]
  """
  devices = axis_size(axis_name)
  if axis_name is not None and count * devices % LEAVES:
    raise ValueError(_undivided(count * devices))
  leaves = 1 if axis_name is None else LEAVES // devices
  leaf = count // leaves
  per_leaf = -(-leaf // most)
  size = -(-leaf // per_leaf) if per_leaf else 0
  return Blocks(size, leaves * per_leaf, leaf, per_leaf)


def pad_to_leaves(arrays: Any, axis_name: AxisName) -> Any:
  """``arrays`` with rows of zeros up to a multiple of 512."""
  count = jax.tree.leaves(arrays)[0].shape[0]
  if axis_name is not None and count * axis_size(axis_name) % LEAVES:
    raise ValueError(_undivided(count * axis_size(axis_name)))
  extra = -count % LEAVES if axis_name is None else 0
  return jax.tree.map(lambda array: _pad(array, 0, extra), arrays)


def _pad(array: jax.Array, axis: int, extra: int) -> jax.Array:
  widths = [(0, extra if dimension == axis else 0) for dimension in range(array.ndim)]
  return jnp.pad(array, widths) if extra else jnp.asarray(array)


def _undivided(count: int) -> str:
  return f"{count} rows do not split into {LEAVES} leaves: pad them with jsel.pad_rows"
