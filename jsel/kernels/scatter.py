"""Writing to rows that are split over devices, by global row id."""

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels.rows import check_valid, row_count, rows


def local_positions(
  index: jax.Array, size: int, *, axis_name: str | tuple[str, ...] | None = None
) -> jax.Array:
  """Where global ids lie among this device's own rows; ``size`` for those that it does not hold.

  Use with ``.at[...].set(..., mode="drop")``.

  Args:
    index: ``[b]`` int32 global row ids, the same on every device.
    size: rows that each device holds.
    axis_name: mesh axis (or axes) that rows are split over.

  Returns:
    ``[b]`` int32 in ``[0, size]``.

  >>> local_positions(jax.numpy.array([3, 9, -1]), 8)
  Array([3, 8, 8], dtype=int32)
  """
  row_count(size, axis_name)  # not too many
  offset = 0 if axis_name is None else jax.lax.axis_index(axis_name).astype(jnp.int32) * size
  position = index - offset
  return jnp.where((position >= 0) & (position < size), position, size)


@rows("x", out=True)
def scatter(
  x: jax.Array,
  index: jax.Array,
  values: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  """``x`` with ``values`` written to the rows ``index``: no collective, each device takes its own.

  Of equal ids the last one wins on CPU; elsewhere the order is XLA's, fixed
  under ``--xla_gpu_deterministic_ops``.

  Args:
    x: ``[n, ...]`` rows.
    index: ``[b]`` int32 global row ids, the same on every device; an id
      outside of ``[0, n)`` writes nothing.
    values: ``[b, ...]`` of the dtype of ``x``, or a scalar.
    valid: ``[b]`` bool, False where nothing is to be written.
    axis_name: mesh axis (or axes) that the rows of ``x`` are split over.

  Raises:
    ValueError: if ``index`` is not ``int32[b]``, ``values`` are of another dtype or
      shape, or ``valid`` is not bool.

  >>> scatter(jax.numpy.zeros(4), jax.numpy.array([2, 7]), jax.numpy.array([1.0, 5.0]))
  Array([0., 0., 1., 0.], dtype=float32)
  """
  position = _positions(x, index, values, valid, axis_name)
  return jnp.asarray(x).at[position].set(values, mode="drop")


@rows("x", out=True)
def scatter_add(
  x: jax.Array,
  index: jax.Array,
  values: jax.Array | int,
  *,
  valid: jax.Array | None = None,
  axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
  """As `scatter`, adding; equal ids add up. Give integers where the order must not matter.

  Raises:
    ValueError: as `scatter`, or if ``x`` is bool.

  >>> scatter_add(jax.numpy.zeros(4, int), jax.numpy.array([2, 2, 0]), 1)
  Array([1, 0, 2, 0], dtype=int32)
  """
  if x.dtype == jnp.bool_:
    raise ValueError(f"x must be numbers to add to, got bool {x.shape}: use scatter")
  position = _positions(x, index, values, valid, axis_name)
  return jnp.asarray(x).at[position].add(values, mode="drop")


def _positions(x, index, values, valid, axis_name):
  if index.ndim != 1 or index.dtype != jnp.int32:
    raise ValueError(f"index must be int32 [b], got {index.dtype} {index.shape}")
  if getattr(values, "dtype", x.dtype) != x.dtype:
    raise ValueError(f"values must be {x.dtype} as x is, got {values.dtype}: cast them")
  written = index.shape + x.shape[1:]
  if not _fits(np.shape(values), written):
    raise ValueError(f"values must be of shape {written} or a scalar, got {np.shape(values)}")
  check_valid(valid, index.shape[0], "index has")
  position = local_positions(index, x.shape[0], axis_name=axis_name)
  return position if valid is None else jnp.where(valid, position, x.shape[0])


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
  try:
    return np.broadcast_shapes(shape, whole) == whole
  except ValueError:
    return False
