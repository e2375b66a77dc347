"""Mini-batch k-means: centers that follow a stream of rows."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jsel.kernels import precision as products
from jsel.kernels.kmeans_seeding import check_rows, in_units, influence, square_lengths
from jsel.kernels.nearest import MOST, nearest
from jsel.kernels.precision import Precision
from jsel.kernels.reduce import rounded
from jsel.kernels.rows import AxisName, rows
from jsel.kernels.segments import segment_sum


class MiniBatch(NamedTuple):
  """Centers, and how much each has seen."""

  centers: jax.Array  # [k, d] float32
  weight: jax.Array  # [k] float32, of the rows that were nearest to each


def init(centers: jax.Array) -> MiniBatch:
  """Centers that have seen nothing: the first rows of each replace it.

  Args:
    centers: ``[k, d]`` to start from, as of `jsel.kernels.kmeans.plus_plus` of the first rows.

  Raises:
    ValueError: if ``centers`` is no such matrix.

  >>> init(jnp.zeros((2, 3))).weight.tolist()
  [0.0, 0.0]
  """
  if centers.ndim != 2 or not 1 <= centers.shape[0] <= MOST:
    raise ValueError(f"centers must be [k, d], k from 1 to {MOST}, got shape {centers.shape}")
  return MiniBatch(centers.astype(jnp.float32), jnp.zeros(centers.shape[0], jnp.float32))


@rows("x", "weights", "valid", out=MiniBatch(False, False))  # pyrefly: ignore
def update(
  state: MiniBatch,
  x: jax.Array,
  *,
  weights: jax.Array | None = None,
  valid: jax.Array | None = None,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> MiniBatch:
  r"""Moves each center to the mean of all rows that were nearest to it, this batch's with them.

  .. math:: c_j \leftarrow c_j + \frac{W_j}{v_j + W_j} (\bar x_j - c_j),
    \quad v_j \leftarrow v_j + W_j

  with the batch's weight W and mean at center j. It is what the authors' row after row with
  steps 1 / v comes to, as the nearest centers are found before any moves. One center's steps
  shrink as its weight grows; to follow rows that change, lower ``weight``.

  Sharding: rows may be split over ``axis_name``; costs what `jsel.kernels.segments.segment_sum`
  does and a maximum of ``[k]``. Bitwise the same on any device count, for n a multiple of 512.

  Args:
    state: of `init` or `update`, the same on every device.
    x: ``[n, d]`` rows of any real dtype; fewer than there are centers, too.
    weights: ``[n]``; weight 2 counts as two rows, one below 1.2e-38 or not finite as none. All
      1 if None.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    precision: of the products that labels are found by, as in `jsel.kernels.kmeans.fit`.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    The new `MiniBatch`. Rows with a NaN, an infinity or a squared length of 2**125 and more
    move nothing. A center stays where no row is nearest to it, one that is not finite for ever.

  Raises:
    ValueError: if a shape or an option is another.

  Example:
    >>> state = init(jnp.array([[0.0], [9.0]]))
    >>> for batch in ([[1.0], [8.0]], [[3.0], [2.0]]):
    ...   state = update(state, jnp.array(batch))
    >>> state.centers.ravel().tolist(), state.weight.tolist()
    ([2.0, 8.0], [3.0, 1.0])

  References:
    Sculley, *Web-scale k-means clustering*, 2010.
  """
  check_rows(x, weights, valid)
  if state.centers.shape[1] != x.shape[1]:
    raise ValueError(f"x must be [n, {state.centers.shape[1]}] as the centers, got {x.shape}")
  products.check(precision)
  return _update(state, x, weights, valid, precision=precision, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("precision", "axis_name"))
def _update(state, x, weights, valid, *, precision, axis_name):
  centers, weight = state
  usable = jnp.isfinite(square_lengths(x, axis_name))
  usable = usable if valid is None else usable & valid
  labels = nearest(x, centers, usable, precision=precision, axis_name=axis_name)
  row_weight = influence(usable, weights)
  labels = jnp.where(row_weight > 0, labels, -1)
  unit, exponent = in_units(row_weight, labels, centers.shape[0], axis_name)
  total = functools.partial(
    segment_sum, labels=labels, count=centers.shape[0], weights=unit, axis_name=axis_name
  )
  units = total(jnp.ones((x.shape[0], 1), jnp.float32))[:, 0]
  mean = total(x) / jnp.where(units > 0, units, 1)[:, None]
  more = jnp.ldexp(units, exponent)
  seen = weight + more
  share = (more / jnp.where(seen > 0, seen, 1))[:, None]
  # Unfused, hence the same in every program.
  moved = centers + rounded(share * (mean - centers))
  moved = jnp.where((weight > 0)[:, None], moved, mean)
  return MiniBatch(jnp.where((more > 0)[:, None], moved, centers), seen)
