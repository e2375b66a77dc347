"""Random projection of per-example gradients, leaf by leaf, that are never one matrix."""

import functools
import math
from typing import Any

import jax

from jsel.kernels import precision as products
from jsel.kernels import projection
from jsel.kernels.precision import Precision
from jsel.kernels.rows import AxisName, rows


@rows("gradients", out=True)
def project_tree(
  key: jax.Array,
  gradients: Any,
  dim: int,
  *,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> jax.Array:
  r"""Projects a pytree of rows, as per-example gradients are, to ``dim`` columns.

  .. math:: y = \sum_l x_l R_l / \sqrt{\mathrm{dim}}

  with a matrix of random signs :math:`R_l` for each leaf: that of
  `jsel.kernels.projection.rademacher`, of the key ``fold_in(key, l)``, where l is
  the position of the leaf in the order of ``jax.tree.leaves``. So this is the
  projection of the leaves side by side, which are never put there: what is held
  beside them is the result and 16 MB of signs. Two trees are comparable where
  they are of the same structure; a new leaf gives those after it other signs.

  Sharding: as `rademacher`; rows may be split over ``axis_name``, costs nothing
  over it, and is bitwise the same on any device count.

  Args:
    key: typed PRNG key.
    gradients: pytree of ``[n, ...]`` arrays of any real dtype, one row an
      example; None counts as no leaf.
    dim: columns of the result, static.
    precision: of the products; see `rademacher`.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    ``float32[n, dim]``. A NaN in a leaf makes its own row NaN.

  Raises:
    ValueError: if there is no leaf, one has other rows than the first or none, and
      as `rademacher`.

  Example:
    >>> ones = jax.numpy.ones
    >>> gradients = {"b": ones((3, 4)), "w": ones((3, 5, 4))}
    >>> y = project_tree(jax.random.key(0), gradients, 8)
    >>> keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(2)]
    >>> b, w = (projection.rademacher(key, ones((3, d)), 8) for key, d in zip(keys, (4, 20)))
    >>> bool(jax.numpy.allclose(y, b + w, atol=1e-6))
    True

  References:
    Park et al., *TRAK: Attributing Model Behavior at Scale*, 2023, arXiv 2303.14186;
    Xia et al., *LESS: Selecting Influential Data for Targeted Instruction Tuning*,
    2024, arXiv 2402.04333.
  """
  leaves = jax.tree_util.tree_leaves_with_path(gradients)
  if not leaves:
    raise ValueError("gradients have no leaf: give a pytree of [n, ...] arrays")
  count = None
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path) or "gradients"
    if not leaf.ndim:
      raise ValueError(f"{name} has no rows, it is a scalar: give a gradient an example, [n, ...]")
    count = leaf.shape[0] if count is None else count
    if leaf.shape[0] != count:
      raise ValueError(
        f"{name} has {leaf.shape[0]} rows, the first leaf {count}: all need one an example"
      )
  projection.check_dim(dim)
  products.check(precision)
  arrays = tuple(leaf for _, leaf in leaves)
  return _project(key, arrays, dim=int(dim), precision=precision, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("dim", "precision", "axis_name"))
def _project(key, leaves, *, dim, precision, axis_name):
  total = None
  for position, leaf in enumerate(leaves):
    x = leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))
    part = projection.rademacher(
      jax.random.fold_in(key, position), x, dim, precision=precision, axis_name=axis_name
    )
    total = part if total is None else total + part
  return total
