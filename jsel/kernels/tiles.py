"""Rows mapped tile by tile, tiles that are the same on any number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jsel.kernels.reduce import LEAVES
from jsel.kernels.rows import AxisName, axis_size

TILE = 2**22  # floats that a tile may take


def map_tiles(
  function: Callable[[Any], Any], arrays: Any, *, width: int, axis_name: AxisName
) -> Any:
  """``function`` of tiles of rows, whose shape depends on the global n and ``width`` alone."""
  count = jax.tree.leaves(arrays)[0].shape[0]
  arrays = pad_to_leaves(arrays, axis_name)
  padded = jax.tree.leaves(arrays)[0].shape[0]
  leaves = LEAVES // axis_size(axis_name)
  leaf = padded // leaves
  parts = -(-leaf * width // TILE) or 1
  tile = -(-leaf // parts)

  def cut(array: jax.Array) -> jax.Array:
    split = array.reshape(leaves, leaf, *array.shape[1:])
    split = _pad(split, 1, parts * tile - leaf)
    return split.reshape(leaves * parts, tile, *array.shape[1:])

  def join(array: jax.Array) -> jax.Array:
    split = array.reshape(leaves, parts * tile, *array.shape[2:])[:, :leaf]
    return split.reshape(padded, *array.shape[2:])[:count]

  return jax.tree.map(join, jax.lax.map(function, jax.tree.map(cut, arrays)))


def pad_to_leaves(arrays: Any, axis_name: AxisName) -> Any:
  """``arrays`` with rows of zeros up to a multiple of 512."""
  count = jax.tree.leaves(arrays)[0].shape[0]
  if axis_name is not None and count * axis_size(axis_name) % LEAVES:
    raise ValueError(
      f"{count * axis_size(axis_name)} rows do not split into {LEAVES} leaves: "
      "pad them with jsel.pad_rows"
    )
  extra = -count % LEAVES if axis_name is None else 0
  return jax.tree.map(lambda array: _pad(array, 0, extra), arrays)


def _pad(array: jax.Array, axis: int, extra: int) -> jax.Array:
  widths = [(0, extra if dimension == axis else 0) for dimension in range(array.ndim)]
  return jnp.pad(array, widths) if extra else jnp.asarray(array)
