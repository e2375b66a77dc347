"""The mesh, padding to it, and kernels over it."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsel.kernels.reduce import LEAVES

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Lays ``devices`` (all of them if None) out as one axis named ``"data"``.

  Raises:
    ValueError: if their number is not a power of two up to 512.

  >>> dict(make_mesh(jax.devices()[:1]).shape)
  {'data': 1}
  """
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
  if count < 1 or count > LEAVES or count & (count - 1):
    raise ValueError(
      f"a mesh needs a power of two of devices up to {LEAVES}, got {count}: pass fewer, e.g. "
      f"jax.devices()[:{1 << (max(count, 1).bit_length() - 1)}]"
    )
  return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def padded_size(rows: int) -> int:
  """The next multiple of 512 (never of the mesh, so that every mesh pads alike).

  >>> padded_size(1797)
  2048
  """
  if rows < 1:
    raise ValueError(f"a pool needs at least one row, got {rows}")
  if rows > 2**31 - LEAVES:
    raise ValueError(f"row ids are int32: {rows} rows are too many, split the pool")
  return -(-rows // LEAVES) * LEAVES


def pad_rows(x: np.ndarray, fill: Any = 0) -> np.ndarray:
  """``x`` with rows of ``fill`` appended up to `padded_size`."""
  extra = padded_size(x.shape[0]) - x.shape[0]
  return np.concatenate([x, np.full((extra, *x.shape[1:]), fill, x.dtype)]) if extra else x


def rows_sharding(mesh: Mesh) -> NamedSharding:
  """Rows split over the data axis."""
  return NamedSharding(mesh, P(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, P())


def shard(
  kernel: Callable[..., Any], mesh: Mesh, axis_name: str | tuple[str, ...] = DATA_AXIS
) -> Callable[..., Any]:
  """``kernel`` with its rows split over ``mesh``: the same call, the same result.

  Plain ``jit`` on a sharded array gathers it whole before a top-k or a sort;
  this leaves every row where it is and supplies the specs and the axis name.
  Row arguments need a multiple of 512 rows (`pad_rows` and ``valid``).

  Args:
    kernel: a function of `jsel.kernels`.
    mesh: the mesh.
    axis_name: the axis (or axes) that rows are split over.

  Returns:
    A function with the kernel's own signature, less ``axis_name``; options that
    are not arrays are static and hashable. Compiled once for each of them.

  Raises:
    ValueError: if ``kernel`` does not say which of its arguments are rows.

  >>> import jax, jsel
  >>> from jsel.kernels import topk
  >>> mesh = jsel.make_mesh(jax.devices()[:1])
  >>> jsel.shard(topk.top_k, mesh)(jax.numpy.arange(512.0), 2).indices
  Array([510, 511], dtype=int32)
  """
  if not hasattr(kernel, "row_arguments"):
    raise ValueError(f"{kernel} is no kernel of jsel: it does not declare its row arguments")
  signature = inspect.signature(kernel)
  to_spec = lambda is_rows: P(axis_name) if is_rows else P()

  @functools.cache
  def mapped(names: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(
      jax.shard_map(
        lambda arrays: kernel(**arrays, **dict(options), axis_name=axis_name),
        mesh=mesh,
        in_specs=({name: to_spec(name in kernel.row_arguments) for name in names},),  # pyrefly: ignore
        out_specs=jax.tree.map(to_spec, kernel.row_results),  # pyrefly: ignore
      )
    )

  def call(*args: Any, **kwargs: Any) -> Any:
    bound = signature.bind(*args, **kwargs).arguments
    arrays = {name: value for name, value in bound.items() if _is_arrays(value)}
    options = tuple((name, value) for name, value in bound.items() if name not in arrays)
    return mapped(tuple(arrays), options)(arrays)

  return call


def _is_arrays(value: Any) -> bool:
  leaves = jax.tree.leaves(value)
  return bool(leaves) and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)
