"""Leverage scores: how much each row decides by itself in a linear regression on all of them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jsel.kernels import moments
from jsel.kernels.rows import AxisName, check_valid, rows
from jsel.kernels.tiles import map_tiles


class Design(NamedTuple):
  """The map to coordinates of a regression's columns that are orthonormal over its rows."""

  mean: jax.Array  # [d] float32
  scale: jax.Array  # [d] float32, 1 / standard deviation of the column; 0 if it is constant
  basis: jax.Array  # [d, d] float32, columns of the map; 0 for directions without variance
  constant: jax.Array  # [] float32, 1 / rows: the leverage of the intercept


@rows("x", "valid", out=Design(False, False, False, False))  # pyrefly: ignore
def fit(
  x: jax.Array,
  *,
  eps: float = 1e-6,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Design:
  r"""The design of a regression on ``x`` and an intercept.

  .. math:: h_i = \tfrac 1 n + (x_i - \mu)^\top S^+ (x_i - \mu), \quad
    S = \sum_i (x_i - \mu) (x_i - \mu)^\top

  is the squared length of row i of Q in the QR decomposition of ``[1, x]``. S is decomposed after
  its columns are brought to variance 1, which changes no leverage and spares float32 the units.

  Sharding: rows may be split over ``axis_name``; costs a ``[d, d]`` sum, and every device
  decomposes it. Bitwise the same on any device count, for n a multiple of 512.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    eps: directions of at most this share of the largest variance are none, of columns scaled to 1.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    A `Design`. A NaN or an infinity in a valid row makes all of it NaN.

  Raises:
    ValueError: if a shape is another or ``eps`` is negative.

  Example:
    >>> x = jnp.array([[0.0], [0.0], [1.0], [1.0]])
    >>> apply(fit(x), x).round(2).tolist()
    [0.5, 0.5, 0.5, 0.5]

  References:
    Drineas, Magdon-Ismail, Mahoney and Woodruff, *Fast approximation of matrix coherence and
    statistical leverage*, 2012, arXiv 1109.3843.
  """
  if x.ndim != 2 or not x.size:
    raise ValueError(f"x must be a matrix [n, d], got shape {x.shape}")
  start = moments.init(x.shape[1], covariance=True)
  return from_moments(moments.update(start, x, valid=valid, axis_name=axis_name), eps=eps)


def from_moments(seen: moments.Moments, *, eps: float = 1e-6) -> Design:
  """The design of rows that came in parts.

  Args:
    seen: moments of ``init(d, covariance=True)``, updated with the parts.
    eps: of `fit`.

  Raises:
    ValueError: if the moments have no covariance, or ``eps`` is negative.

  >>> seen = moments.init(1, covariance=True)
  >>> for part in ([[0.0], [0.0]], [[1.0], [1.0]]):
  ...   seen = moments.update(seen, jnp.array(part))
  >>> apply(from_moments(seen), jnp.array([[0.0]])).round(2).tolist()
  [0.5]
  """
  if seen.scatter.ndim != 2:
    raise ValueError("moments have no covariance: begin with moments.init(d, covariance=True)")
  if not eps >= 0:
    raise ValueError(f"eps must be at least 0, got {eps}")
  mean, covariance = moments.finish(seen)
  variance = jnp.diagonal(covariance)
  size = jnp.where(variance <= 0, 0, 1 / jnp.sqrt(variance))
  values, vectors = jnp.linalg.eigh(covariance * size[:, None] * size[None])
  rows_seen = moments.two_limb_to_float(seen.count)
  # "Is none", not "is large enough": a NaN has to stay visible.
  root = jnp.where(values <= eps * values[-1], 0, 1 / jnp.sqrt(values * rows_seen))
  return Design(mean, size, vectors * root[None], 1 / jnp.maximum(rows_seen, 1))


@rows("x", "valid", out=True)
def apply(
  design: Design,
  x: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """Leverage of rows in a design; those of its own rows sum to its rank, intercept included.

  Sharding: rows may be split over ``axis_name``; nothing is exchanged. Bitwise the same on any
  device count, for n a multiple of 512.

  Args:
    design: of `fit` or `from_moments`, the same on every device.
    x: ``[n, d]`` rows of any real dtype.
    valid: ``[n]`` bool, False for padded rows, which have 0.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``[n]`` float32; NaN for a row with a NaN or an infinity.

  Raises:
    ValueError: if ``x`` is not ``[n, d]``, or ``valid`` has another length.

  Example:
    >>> x = jnp.eye(4)
    >>> apply(fit(x), x).sum().round(4).item()
    4.0
  """
  d = design.mean.shape[0]
  if x.ndim != 2 or x.shape[1] != d:
    raise ValueError(f"x must be [n, {d}] as the rows of the fit, got {x.shape}")
  check_valid(valid, x.shape[0])
  return _apply(design, x, valid, axis_name=axis_name)


# One program: eagerly, every call would compile the loop over tiles again.
@functools.partial(jax.jit, static_argnames="axis_name")
def _apply(
  design: Design, x: jax.Array, valid: jax.Array | None, *, axis_name: AxisName
) -> jax.Array:
  design = jax.tree.map(lambda array: array.astype(jnp.float32), design)

  def of_row(row: jax.Array) -> jax.Array:
    scaled = (row.astype(jnp.float32) - design.mean) * design.scale
    part = jnp.matmul(design.basis.T, scaled, precision=jax.lax.Precision.HIGHEST)
    return design.constant + jnp.sum(part * part)

  found = map_tiles(jax.vmap(of_row), x, width=2 * x.shape[1], axis_name=axis_name)
  return found if valid is None else jnp.where(valid, found, 0)
