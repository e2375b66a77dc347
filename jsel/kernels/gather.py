"""Rows of a sharded pool by global index."""

import jax
import jax.numpy as jnp

from jsel.kernels.rows import AxisName, axis_size, rows


@rows("x", out=False)
def gather(
  x: jax.Array,
  index: jax.Array,
  *,
  split: bool = False,
  axis_name: AxisName = None,
) -> jax.Array:
  """The rows ``x[index]``, wherever they are.

  Each device takes those that it holds and zeros for the others; as integers
  of the same bits they are then summed, so NaN and -0.0 arrive as they were.

  Sharding: rows of ``x`` may be split over ``axis_name``, ``index`` is the same
  on every device. Costs one all-reduce of the ``b`` rows, with ``split`` one
  reduce-scatter. Bitwise the same on any device count.

  Args:
    x: ``[n, ...]`` rows of any real dtype or bool.
    index: ``int32[b]`` global row ids. Outside of [0, n) the row is zeros.
    split: give each device its b / D consecutive rows only, instead of all.
      This is for use inside a ``jax.shard_map`` of one's own, with
      ``out_specs`` that split the rows; it is no option of ``jsel.shard``.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    ``[b, ...]`` of the dtype of ``x``, or ``[b / D, ...]`` with ``split``.

  Raises:
    ValueError: if ``index`` is not int32 of one axis, or, with ``split``, does
      not divide among the devices.

  Example:
    >>> gather(jnp.array([[1, 2], [3, 4]]), jnp.array([1, -1])).tolist()
    [[3, 4], [0, 0]]
  """
  if index.ndim != 1 or index.dtype != jnp.int32:
    raise ValueError(f"index must be int32 [b], got {index.dtype} {index.shape}")
  if not x.ndim or jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise ValueError(f"x must be rows of a real dtype or bool, got {x.dtype} {x.shape}")
  devices = axis_size(axis_name)
  if split and index.shape[0] % devices:
    raise ValueError(
      f"{index.shape[0]} rows do not split over {devices} devices: take a multiple, or split=False"
    )
  count = x.shape[0]
  local = index if axis_name is None else index - jax.lax.axis_index(axis_name) * count
  here = (local >= 0) & (local < count)
  taken = jnp.take(x, jnp.clip(local, 0, count - 1), axis=0, mode="clip")
  taken = jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), taken, jnp.zeros((), x.dtype))
  if axis_name is None:
    return taken
  words = _to_words(taken)
  if split:
    words = jax.lax.psum_scatter(words, axis_name, scatter_dimension=0, tiled=True)
  else:
    words = jax.lax.psum(words, axis_name)
  return _from_words(words, x.dtype)


def _to_words(x: jax.Array) -> jax.Array:
  """The bits of ``x`` as uint8 or uint32, which every backend can sum over devices."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint8)
  return jax.lax.bitcast_convert_type(x, jnp.uint8 if x.dtype.itemsize < 4 else jnp.uint32)


def _from_words(words: jax.Array, dtype: jnp.dtype) -> jax.Array:
  if dtype == jnp.bool_:
    return words.astype(jnp.bool_)
  return jax.lax.bitcast_convert_type(words, dtype)
