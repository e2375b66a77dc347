"""Which arguments and results of a kernel have an entry a row: what `jsel.shard` splits."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

AxisName = str | tuple[str, ...] | None
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def rows(*arguments: str, out: Any) -> Callable[[Kernel], Kernel]:
  """Declares the row arguments and row results of a kernel.

  Args:
    *arguments: names of the parameters that are split by rows.
    out: True (split by rows), False (the same on every device), or a tuple of
      them that is a prefix of the kernel's result.

  >>> @rows("x", out=False)
  ... def total(x, *, axis_name=None): ...
  >>> total.row_arguments, total.row_results
  (('x',), False)
  """

  def declare(kernel: Kernel) -> Kernel:
    kernel.row_arguments = arguments  # pyrefly: ignore
    kernel.row_results = out  # pyrefly: ignore
    return kernel

  return declare


def check_valid(valid: jax.Array | None, count: int, of: str = "x has") -> None:
  """Raises a ValueError unless ``valid`` is None or has a bool for each of ``count`` rows.

  >>> check_valid(jnp.ones(3, bool), 3)
  """
  if valid is None:
    return
  if valid.shape != (count,):
    raise ValueError(f"valid has shape {valid.shape}, {of} {count} rows")
  if valid.dtype != jnp.bool_:
    raise ValueError(f"valid must be bool, got {valid.dtype}: compare it with something")


def axis_size(axis_name: AxisName) -> int:
  """Devices that rows are split over: 1 if ``axis_name`` is None.

  >>> axis_size(None)
  1
  """
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def row_count(count: int, axis_name: AxisName) -> int:
  """Rows on all devices, each of which holds ``count``.

  Raises:
    ValueError: if there are more of them than an int32 id can tell apart.

  >>> row_count(3, None)
  3
  """
  total = count * axis_size(axis_name)
  if total >= 2**31:
    raise ValueError(f"row ids are int32: {total} rows are too many, split the pool")
  return total


def row_ids(count: int, axis_name: AxisName) -> jax.Array:
  """Global ids ``int32[count]`` of the ``count`` rows that this device holds.

  >>> row_ids(3, None).tolist()
  [0, 1, 2]
  """
  return first_row(count, axis_name) + jnp.arange(count, dtype=jnp.int32)


def first_row(count: int, axis_name: AxisName) -> jax.Array:
  """The global id, int32, of the first of the ``count`` rows that this device holds.

  >>> first_row(3, None).item()
  0
  """
  row_count(count, axis_name)  # not too many
  return jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name) * count


def varying(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """``x`` typed as one that differs between devices, as the carry of a loop over rows must be.

  >>> varying(jnp.zeros(2), None).tolist()
  [0.0, 0.0]
  """
  return x if axis_name is None else jax.lax.pcast(x, axis_name, to="varying")
