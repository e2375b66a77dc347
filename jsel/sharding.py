"""The mesh, padding to it, and kernels over it."""

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsel.kernels.reduce import LEAVES

DATA_AXIS = "data"
PARAMETER_AXIS = "fsdp"
Rules = Sequence[tuple[str, Sequence[str | None]]]  # of `parameter_sharding`
ALIGNMENT = 64  # bytes, of what XLA on CPU works on
SMALL_PARAMETER = 2**14  # entries below which gathering costs more than holding


def make_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
  """Lays ``devices`` (all of them if None) out as one axis named ``"data"``.

  With ``fsdp`` above 1 as two, ``"data"`` and ``"fsdp"``: rows are split over
  both, parameters over the second (`parameter_sharding`).

  Raises:
    ValueError: if their number is not a power of two up to 512, or ``fsdp`` does
      not divide it.

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
  if fsdp < 1 or count % fsdp:
    raise ValueError(
      f"sharding.fsdp={fsdp} does not divide {count} devices: choose a power of two up to {count}"
    )
  if fsdp == 1:
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))
  return Mesh(
    np.asarray(devices).reshape(-1, fsdp),
    (DATA_AXIS, PARAMETER_AXIS),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def row_axes(mesh: Mesh) -> str | tuple[str, ...]:
  """The mesh axis, or axes, that rows are split over: all of them.

  >>> row_axes(make_mesh(jax.devices()[:1]))
  'data'
  """
  return mesh.axis_names[0] if len(mesh.axis_names) == 1 else mesh.axis_names


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
  """Rows split over all devices."""
  return NamedSharding(mesh, P(row_axes(mesh)))


def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """``x``, which every process has, as one array over the mesh; each reads its own part of it."""
  with jax.transfer_guard_host_to_device("allow"):  # JAX counts it as one that nobody asked for
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def place_rows(x: np.ndarray, sharding: NamedSharding, fill: Any = 0) -> jax.Array:
  """``x``, which every process has, padded as by `pad_rows` and placed as by `place`: a copy.

  On CPU it is the only one, in NumPy's memory. That is of large pages where Linux gives them to who
  asks, as NumPy does from 4 MiB on and XLA does not: in small ones a batch of rows from here and
  there takes up to ten times as long.

  >>> place_rows(np.arange(3), rows_sharding(make_mesh(jax.devices()[:1]))).shape
  (512,)
  """
  rows = padded_size(x.shape[0])

  def part(index: tuple[slice, ...]) -> np.ndarray:
    first, end, _ = index[0].indices(rows)
    own = x[first:end]
    padded = _aligned((end - first, *x.shape[1:]), x.dtype)
    padded[: len(own)], padded[len(own) :] = own, fill
    return padded

  with jax.transfer_guard_host_to_device("allow"):  # as in `place`
    return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array not yet written to, from an address on that JAX on CPU takes as its own."""
  size = math.prod(shape) * dtype.itemsize
  held = np.empty(size + ALIGNMENT, np.uint8)
  start = -held.ctypes.data % ALIGNMENT
  return held[start : start + size].view(dtype).reshape(shape)


def rows_of_processes(sharding: NamedSharding, rows: int) -> list[tuple[int, int]]:
  """Of ``rows`` that are split, those of each process's devices: from the first up to the second.

  Where a process's devices do not follow each other in the mesh, with what is between them.

  >>> rows_of_processes(rows_sharding(make_mesh(jax.devices()[:1])), 512)
  [(0, 512)]
  """
  spans: dict[int, tuple[int, int]] = {}
  for device, (index, *_) in sharding.devices_indices_map((rows,)).items():
    first, end, _ = index.indices(rows)
    known = spans.get(device.process_index, (first, end))
    spans[device.process_index] = min(known[0], first), max(known[1], end)
  return [spans[process] for process in sorted(spans)]


def place_own(x: np.ndarray, sharding: NamedSharding, rows: int) -> jax.Array:
  """One array of ``rows`` rows over the mesh, of which ``x`` is what `rows_of_processes` says."""
  start = rows_of_processes(sharding, rows)[jax.process_index()][0]

  def part(index: tuple[slice, ...]) -> np.ndarray:
    first, end, _ = index[0].indices(rows)
    return x[first - start : end - start]

  with jax.transfer_guard_host_to_device("allow"):  # as in `place`
    return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)


def on_every_host(tree: Any) -> Any:
  """The arrays of ``tree``, whole, on the host of every process: each has to call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def join_hosts(*, timeout: int = 100) -> None:
  """Makes one job of the processes of several hosts; does nothing where there is one.

  Told by JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID), or
  by a TPU that lists more than one worker. Before anything else is asked of JAX.

  Args:
    timeout: seconds after which JAX ends all processes if one has been silent.

  Raises:
    ValueError: if a variable is missing or no number, or ``timeout`` is less than a second.
  """
  if timeout < 1:
    raise ValueError(f"host_timeout must be at least 1 second, got {timeout}")
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  if address:
    numbers = [os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    if not all(number.isdecimal() for number in numbers):
      raise ValueError(
        f"JAX_COORDINATOR_ADDRESS={address} wants JAX_NUM_PROCESSES and JAX_PROCESS_ID beside it,"
        f" got {numbers[0] or 'none'} and {numbers[1] or 'none'}"
      )
    jax.distributed.initialize(
      address, int(numbers[0]), int(numbers[1]), heartbeat_timeout_seconds=timeout
    )
  elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
    jax.distributed.initialize(heartbeat_timeout_seconds=timeout)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, P())


def parameter_sharding(tree: Any, mesh: Mesh, rules: Rules = ()) -> Any:
  """How a mesh holds parameters, or whatever has their names and shapes (an optimizer's state).

  Without a second mesh axis every device has all of them. With one, the first of
  ``rules`` whose pattern is found in a leaf's name says what its axes are split
  over; a leaf that none names is split along the largest of its axes that
  divides, or held by every device if none does or it has fewer than 2**14 entries.

  Args:
    tree: arrays, or anything with a shape.
    mesh: the mesh.
    rules: ``(pattern, axes)``: a regular expression, and for each axis of the
      array ``"fsdp"`` or None.

  Raises:
    ValueError: if a rule does not fit an array that it names.

  >>> mesh = make_mesh(jax.devices()[:1])
  >>> parameter_sharding({"kernel": np.zeros((8, 4))}, mesh)["kernel"].is_fully_replicated
  True
  """
  parts = dict(mesh.shape).get(PARAMETER_AXIS, 1)

  def spec_of(path, leaf) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    shape = np.shape(leaf)
    if parts == 1:
      return replicated(mesh)
    for pattern, axes in rules:
      if not re.search(pattern, name):
        continue
      odd = [i for i, axis in enumerate(axes) if axis and (i >= len(shape) or shape[i] % parts)]
      if odd or any(axis not in (None, PARAMETER_AXIS) for axis in axes):
        raise ValueError(
          f"sharding.rules: {pattern!r} asks for {tuple(axes)} of {name} of shape {shape}: name"
          f" {PARAMETER_AXIS!r} or None for axes that {parts} divides"
        )
      return NamedSharding(mesh, P(*axes))
    divides = [i for i, length in enumerate(shape) if length % parts == 0]
    if not divides or math.prod(shape) < SMALL_PARAMETER:
      return replicated(mesh)
    largest = max(divides, key=lambda i: shape[i])
    return NamedSharding(mesh, P(*(None,) * largest, PARAMETER_AXIS))

  return jax.tree_util.tree_map_with_path(spec_of, tree)


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
