"""Batches of the host on the devices of a mesh, and which part of them each process brings."""

import collections
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Sharding

from jsel.data.feed import Feed
from jsel.data.rows import Rows


def local_columns(
  sharding: Sharding, batch_size: int, devices: frozenset[jax.Device] | None = None
) -> np.ndarray:
  """The positions in a batch of those rows that a process reads for its own devices.

  With P("data"), process p of a mesh over its devices in order has the p-th part. Each process
  publishes ``ids[:, local_columns(...)]`` of the ids of all and puts what it reads together with
  `to_device`.

  Args:
    sharding: of the batch, its rows split over some axes of a mesh.
    batch_size: rows of the batch, of all processes together.
    devices: those of the process; if None, of this one.

  Returns:
    Ascending int64 positions in [0, batch_size). Devices that hold the same rows, for a mesh has
    other axes too, are brought them once; processes that do, both bring them.

  Raises:
    ValueError: if the rows do not divide among the devices.

  >>> mesh = jax.sharding.Mesh(jax.devices()[:1], "data")
  >>> local_columns(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")), 4)
  array([0, 1, 2, 3])
  """
  devices = frozenset(sharding.addressable_devices) if devices is None else devices
  try:
    places = sharding.devices_indices_map((batch_size,))
  except ValueError as error:
    raise ValueError(
      f"a batch of {batch_size} rows does not divide among the devices of its mesh: choose a"
      f" multiple of {sharding.num_devices}"
    ) from error
  parts = {places[device][0].indices(batch_size)[:2] for device in devices}
  return np.concatenate([np.arange(*part) for part in sorted(parts)])


def local_ids(ids: jax.Array) -> np.ndarray:
  """The columns of ``ids`` that lie on this process's devices: `local_columns` of them.

  Args:
    ids: ``[steps, b]``, columns split as the rows of a batch are. Waits for it.

  Returns:
    ``[steps, b_local]`` on the host.

  >>> local_ids(jax.device_put(np.array([[3, 1], [0, 2]], np.int32)))
  array([[3, 1],
         [0, 2]], dtype=int32)
  """
  parts = {shard.index[1].indices(ids.shape[1])[0]: shard.data for shard in ids.addressable_shards}
  return np.concatenate(jax.device_get([parts[start] for start in sorted(parts)]), axis=1)


def to_device(batch: dict[str, np.ndarray], sharding: Sharding) -> dict[str, jax.Array]:
  """The global arrays of which ``batch`` is this process's part; every process calls it.

  Args:
    batch: arrays ``[b_local, ...]``, the rows at `local_columns`.
    sharding: of their rows.

  Returns:
    Arrays ``[b, ...]`` with that sharding. Copying starts here and goes on in the background; on
    CPU there may be none, so the arrays of the batch must not be written to.
  """
  with jax.transfer_guard_host_to_device("allow"):  # JAX counts it as one that nobody asked for
    return jax.make_array_from_process_local_data(sharding, batch)


class DevicePrefetch:
  """The batches of ``feed`` on the devices, ``ahead`` of them under way or there.

  Moves only what is published, and waits where a batch is published but not yet read.

  >>> from jsel.data.rows import ArrayRows
  >>> rows = ArrayRows(np.zeros((4, 2), np.float32), np.array([5, 6, 7, 8]))
  >>> mesh = jax.sharding.Mesh(jax.devices()[:1], "data")
  >>> sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  >>> with Feed(rows, start=0, workers=0, threads=1, ahead=1) as feed:
  ...   batches = DevicePrefetch(feed, sharding, ahead=2)
  ...   feed.publish(0, np.array([[3, 1], [0, 2]], np.int32))
  ...   print(next(batches)["labels"], batches.step, feed.step)
  [8 6] 1 2
  """

  def __init__(self, feed: Feed, sharding: Sharding, *, ahead: int):
    if ahead < 1:
      raise ValueError(f"at least one batch must be on its way to the devices, got ahead={ahead}")
    self._feed, self._sharding, self._ahead = feed, sharding, ahead
    self._moving: collections.deque[dict[str, jax.Array]] = collections.deque()

  @property
  def step(self) -> int:
    """The step of the next batch."""
    return self._feed.step - len(self._moving)

  def __iter__(self) -> "DevicePrefetch":
    return self

  def __next__(self) -> dict[str, jax.Array]:
    """The batch of `step`; raises as the feed does."""
    while len(self._moving) < self._ahead and (
      not self._moving or self._feed.step < self._feed.published
    ):
      self._moving.append(to_device(next(self._feed), self._sharding))
    return self._moving.popleft()


def read_steps(
  rows: Rows, ids: np.ndarray, sharding: Sharding, *, threads: int, ahead: int
) -> Iterator[dict[str, jax.Array]]:
  """The batches that the rows ``ids[0], ids[1], ...`` make, on the devices, read ahead by threads.

  Args:
    rows: what to read from.
    ids: ``[steps, b]`` int32, the same on every process, each of which reads its own part.
    sharding: of a batch's rows.
    threads: that read.
    ahead: batches that wait, read.

  >>> from jsel.data.rows import ArrayRows
  >>> rows = ArrayRows(np.zeros((4, 2), np.float32), np.array([5, 6, 7, 8]))
  >>> mesh = jax.sharding.Mesh(jax.devices()[:1], "data")
  >>> sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  >>> ids = np.array([[3, 1], [0, 2]], np.int32)
  >>> [b["labels"].tolist() for b in read_steps(rows, ids, sharding, threads=1, ahead=1)]
  [[8, 6], [5, 7]]
  """
  with Feed(rows, start=0, workers=0, threads=threads, ahead=ahead) as feed:
    feed.publish(0, np.ascontiguousarray(ids[:, local_columns(sharding, ids.shape[1])]))
    batches = DevicePrefetch(feed, sharding, ahead=2)
    for _ in range(len(ids)):
      yield next(batches)
