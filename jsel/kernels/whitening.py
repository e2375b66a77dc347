"""Whitening by principal components."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel import native
from jsel.kernels import moments
from jsel.kernels import precision as products
from jsel.kernels.precision import Precision
from jsel.kernels.rows import AxisName, axis_size, check_valid, rows
from jsel.kernels.tiles import map_tiles

Method = Literal["eigh", "subspace"]
OVERSAMPLING = 8  # extra directions of the subspace iteration, which speed its last ones up


class Whitening(NamedTuple):
  """A linear map to uncorrelated coordinates of unit variance."""

  mean: jax.Array  # [d] float32
  components: jax.Array  # [rank, d] float32, orthonormal rows, by descending variance
  scale: jax.Array  # [rank] float32, 1 / standard deviation, 0 for a direction without variance


@rows("x", "valid", out=Whitening(False, False, False))
def fit(
  x: jax.Array,
  *,
  rank: int,
  eps: float = 1e-6,
  shrinkage: float = 0.0,
  method: Method = "eigh",
  steps: int = 8,
  precision: Precision = "float32",
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Whitening:
  r"""Fits the whitening of the ``rank`` principal components of ``x``.

  .. math:: y = \Lambda^{-1/2} V^\top (x - \mu), \quad V \Lambda V^\top = \mathrm{cov}(x)

  with the covariance of a sample (divided by n - 1), as scikit-learn's
  ``PCA(whiten=True)``. It is formed from centred rows; the usual
  :math:`X^\top X - n \mu \mu^\top` cancels where the mean is large.

  Sharding: rows may be split over ``axis_name``; costs a ``[d, d]`` sum, and
  every device decomposes it. The covariance is bitwise the same on any device
  count, for n a multiple of 512, as `moments.update` says; ``x`` is never held
  in float32 whole.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    rank: components to keep, at most n - 1 and d. Far below d is usual: the
      last components are noise, which whitening amplifies.
    eps: components of a variance of at most ``eps`` times the largest get
      scale 0: float32 cannot tell them from none.
    shrinkage: this share of the mean variance (over all d directions) is added
      to each before the root.
    method: ``"eigh"`` decomposes the covariance, exactly; ``"subspace"`` takes
      ``steps`` steps of block power iteration, and decomposes ``rank + 8``
      square only: for large d, and where compiling a large eigh is slow (TPU).
      It is exact if the spectrum decays fast after ``rank``.
    steps: of ``"subspace"``.
    precision: of the covariance's products, as `moments.update` has it.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    A `Whitening`. The entry of a component of largest magnitude (the first, on
    ties) is positive. A NaN or an infinity in a valid row makes all of it NaN.

  Raises:
    ValueError: if ``rank`` is below 1 or above d or n - 1 (of valid rows, where
      ``valid`` is not traced; else the surplus gets scale 0), ``eps``,
      ``shrinkage`` or ``steps`` is negative, or ``method`` or ``precision`` is
      unknown.

  Example:
    >>> x = jnp.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> fit(x, rank=2).components.tolist()
    [[1.0, 0.0], [0.0, 1.0]]

  References:
    Halko, Martinsson, Tropp, *Finding structure with randomness*, 2011,
    arXiv:0909.4061 (the subspace iteration).
  """
  if x.ndim != 2 or not x.shape[1]:
    raise ValueError(f"x must be a matrix [n, d] with columns, got shape {x.shape}")
  check_valid(valid, x.shape[0])
  known = x.shape[0] * axis_size(axis_name)
  if valid is not None and not isinstance(valid, jax.core.Tracer):
    known = int(valid.sum())
  if rank >= known:
    raise ValueError(f"{known} rows span at most {known - 1} components, got rank={rank}: lower it")
  start = moments.init(x.shape[1], covariance=True)
  options = {"valid": valid, "precision": precision, "axis_name": axis_name}
  seen = moments.update(start, x, **options)
  return from_moments(seen, rank=rank, eps=eps, shrinkage=shrinkage, method=method, steps=steps)


def from_moments(
  seen: moments.Moments,
  *,
  rank: int,
  eps: float = 1e-6,
  shrinkage: float = 0.0,
  method: Method = "eigh",
  steps: int = 8,
) -> Whitening:
  """The whitening of rows that came in parts; options are those of `fit`.

  Args:
    seen: moments of ``init(d, covariance=True)``, updated with the parts.

  >>> x = jnp.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
  >>> seen = moments.init(2, covariance=True)
  >>> for part in (x[:1], x[1:]):
  ...   seen = moments.update(seen, part)
  >>> from_moments(seen, rank=1).components.tolist()
  [[1.0, 0.0]]
  """
  d = seen.mean.shape[0]
  if seen.scatter.ndim != 2:
    raise ValueError("moments have no covariance: begin with moments.init(d, covariance=True)")
  if not 1 <= rank <= d:
    raise ValueError(f"rank must be in [1, {d}] for rows of {d} columns, got {rank}")
  if min(eps, shrinkage, steps) < 0:
    raise ValueError(f"negative option: {eps=}, {shrinkage=}, {steps=}")
  mean, covariance = moments.finish(seen, ddof=1)
  if method == "eigh":
    variances, vectors = jnp.linalg.eigh(covariance)
  elif method == "subspace":
    variances, vectors = _subspace_eigh(covariance, width=min(rank + OVERSAMPLING, d), steps=steps)
  else:
    raise ValueError(f'method must be "eigh" or "subspace", got {method!r}')

  variances = variances[::-1][:rank]
  components = vectors[:, ::-1][:, :rank].T
  largest = jnp.argmax(jnp.abs(components), axis=1)
  negative = jnp.take_along_axis(components, largest[:, None], axis=1) < 0
  ridge = shrinkage * jnp.trace(covariance) / d
  # "Is negligible", not "is large enough": a NaN has to stay visible.
  scale = jnp.where(variances <= eps * variances[0], 0, 1 / jnp.sqrt(variances + ridge))
  return Whitening(mean, jnp.where(negative, -components, components), scale)


@rows("x", "valid", out=True)
def apply(
  whitening: Whitening,
  x: jax.Array,
  *,
  valid: jax.Array | None = None,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> jax.Array:
  """Whitens rows: ``((x - mean) @ components.T) * scale``.

  Sharding: rows may be split over ``axis_name``; nothing is exchanged. Bitwise
  the same on any device count, for n a multiple of 512: rows are projected
  n / 512 or fewer at a time. Other n are cut into fewer and larger tiles.

  Args:
    whitening: what `fit` returned, the same on every device.
    x: ``[n, d]`` rows of any real dtype, of the pool that was fitted or not.
    valid: ``[n]`` bool, False for padded rows, which become 0.
    precision: of the products, as `jsel.kernels.precision.matmul` has it.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    ``[n, rank]`` float32. A NaN makes its own row NaN.

  Raises:
    ValueError: if ``x`` is not ``[n, d]``, ``valid`` has another length, or
      ``precision`` is unknown.

  Example:
    >>> x = jnp.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> jnp.cov(apply(fit(x, rank=2), x).T).round(5).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  d = whitening.mean.shape[0]
  if x.ndim != 2 or x.shape[1] != d:
    raise ValueError(f"x must be [n, {d}] as the rows of the fit, got {x.shape}")
  check_valid(valid, x.shape[0])
  products.check(precision)
  return _apply(whitening, x, valid, precision=precision, axis_name=axis_name)


# One program: eagerly, every call would compile the loop over tiles again.
@functools.partial(jax.jit, static_argnames=("precision", "axis_name"))
def _apply(
  whitening: Whitening,
  x: jax.Array,
  valid: jax.Array | None,
  *,
  precision: Precision,
  axis_name: AxisName,
) -> jax.Array:
  mean, components, scale = jax.tree.map(lambda array: array.astype(jnp.float32), whitening)
  by_tiles = functools.partial(_project_by_tiles, precision=precision, axis_name=axis_name)
  at_once = functools.partial(_project_at_once, precision=precision)
  arrays = x, mean, components, scale
  if x.dtype == jnp.float32:
    y = native.on_cpu("project", at_once, by_tiles, *arrays)
  else:
    y = by_tiles(*arrays)
  return y if valid is None else jnp.where(valid[:, None], y, 0)


def _project_at_once(
  x: jax.Array,
  mean: jax.Array,
  components: jax.Array,
  scale: jax.Array,
  *,
  precision: Precision,
) -> jax.Array:
  shape = jax.ShapeDtypeStruct((x.shape[0], components.shape[0]), jnp.float32)
  parts = np.int64(products.PARTS[precision])
  return native.call("project", shape, x, mean, components, scale, parts=parts)


def _project_by_tiles(
  x: jax.Array,
  mean: jax.Array,
  components: jax.Array,
  scale: jax.Array,
  *,
  precision: Precision,
  axis_name: AxisName,
) -> jax.Array:
  def whiten(rows: jax.Array) -> jax.Array:
    centred = rows.astype(jnp.float32) - mean[None]
    y = products.matmul(centred, components, precision=precision, transpose_b=True)
    return y * scale[None]

  return map_tiles(whiten, x, width=x.shape[1], axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("width", "steps"))
def _subspace_eigh(matrix: jax.Array, *, width: int, steps: int) -> tuple[jax.Array, jax.Array]:
  """The ``width`` largest eigenvalues, ascending, and their vectors ``[d, width]``."""
  product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  start = jax.random.normal(jax.random.key(0), (matrix.shape[0], width), jnp.float32)
  power = lambda _, basis: jnp.linalg.qr(product(matrix, basis))[0]
  basis = jax.lax.fori_loop(0, steps + 1, power, start)
  values, rotation = jnp.linalg.eigh(product(basis.T, product(matrix, basis)))
  return values, product(basis, rotation)
