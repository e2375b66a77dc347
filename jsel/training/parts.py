"""Work on parts of a batch, the same parts on any number of devices, added in a fixed order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jsel.kernels.reduce import over_devices, rounded
from jsel.sharding import row_axes


def sum_of_parts(
  function: Callable[..., tuple[Any, Any]], *, parts: int, mesh: Mesh, unroll: bool
) -> Callable[..., tuple[Any, Any]]:
  """``function`` of each of ``parts`` of the rows, its first results added in one fixed tree.

  Every part has the same shape on any mesh and is worked out by one device, and sums are
  elementwise, a pair at a time: as far as the compiler makes the same of the same shapes, the
  results are bitwise those of any other mesh.

  Sharding: rows are split over all devices of the mesh, of which there are at most ``parts``; costs
  what `jsel.kernels.reduce.fixed_tree_sum` does for each result that is summed: twice what an
  all-reduce sends for large ones.

  Args:
    function: ``(same, rows) -> (summed, per_row)`` of a part of the rows; ``summed`` a pytree of
      float32, ``per_row`` one of arrays with the part's rows first.
    parts: a power of two that divides the rows.
    mesh: the mesh.
    unroll: a copy of ``function`` in the program for each part of a device, instead of one in a
      loop: convolutions in a loop are slow on CPU.

  Returns:
    ``(same, rows) -> (summed, per_row)`` of all rows; ``rows`` are arrays of as many rows,
    ``per_row`` is split as they are.

  Example:
    >>> import numpy as np
    >>> from jsel.sharding import make_mesh
    >>> double = lambda by, x: (jnp.sum(by * x), by * x)
    >>> mapped = sum_of_parts(double, parts=2, mesh=make_mesh(jax.devices()[:1]), unroll=False)
    >>> summed, per_row = mapped(np.float32(2), np.arange(4, dtype=np.float32))
    >>> summed.item(), per_row.tolist()
    (12.0, [0.0, 2.0, 4.0, 6.0])
  """
  axis_name, own = row_axes(mesh), parts // mesh.size
  to_varying = lambda x: jax.lax.pcast(x, axis_name, to="varying")

  def alone(same, part):
    """``function``, compiled alike on any mesh: in a loop, or in a branch that is always taken.

    Beside other work the compiler contracts products and sums as it happens to fuse them.
    """
    if own > 1 or unroll:
      return function(same, part)
    zeros = lambda shape: to_varying(jnp.zeros(shape.shape, shape.dtype))
    shapes = jax.eval_shape(function, same, part)
    never = lambda same, part: jax.tree.map(zeros, shapes)
    return jax.lax.cond(jax.lax.axis_index(axis_name) >= 0, function, never, same, part)

  def on_a_device(same, rows):
    # Else a gradient by what all devices have in common would be summed over them, in any order.
    same = jax.tree.map(to_varying, same)
    split = jax.tree.map(lambda x: x.reshape(own, x.shape[0] // own, *x.shape[1:]), rows)

    def subtree(size: int, index: jax.Array) -> tuple[Any, Any]:
      if size == 1:
        part = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), split)
        # Together, so that nothing of `same` alone is worked out ahead of the loop.
        summed, per_row = alone(*jax.lax.optimization_barrier((same, part)))
        return jax.tree.map(rounded, summed), per_row
      child = lambda _, half: (None, subtree(size // 2, 2 * index + half))
      halves = jnp.arange(2, dtype=jnp.int32)
      _, (pair, per_row) = jax.lax.scan(child, None, halves, unroll=unroll)
      joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), per_row)
      return jax.tree.map(lambda x: x[0] + x[1], pair), joined

    summed, per_row = subtree(own, jnp.int32(0))
    return jax.tree.map(lambda x: over_devices(x, axis_name), summed), per_row

  return jax.shard_map(
    on_a_device,
    mesh=mesh,
    in_specs=(P(), P(axis_name)),
    out_specs=(P(), P(axis_name)),
  )
