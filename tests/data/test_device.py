"""What a process brings, and batches on their way to the devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsel.data.device import DevicePrefetch, local_columns, local_ids, to_device
from jsel.data.feed import Feed
from jsel.data.rows import ArrayRows

IN_ORDER = list(range(8))
MIXED = [0, 4, 1, 5, 2, 6, 3, 7]  # as a mesh may lay out the devices of two hosts


def sharding_of(order, shape, names):
  return NamedSharding(Mesh(np.asarray(jax.devices())[order].reshape(shape), names), P("data"))


@pytest.mark.parametrize("order", [IN_ORDER, MIXED, MIXED[::-1]])
@pytest.mark.parametrize(
  ("shape", "names"), [((8,), ("data",)), ((4, 2), ("data", "model")), ((2, 4), ("model", "data"))]
)
def test_the_columns_of_two_processes_tile_the_batch(order, shape, names):
  sharding = sharding_of(order, shape, names)
  batch = np.arange(16, dtype=np.int32)
  whole = to_device({"x": batch}, sharding)["x"]
  seen = []
  for process in (jax.devices()[:4], jax.devices()[4:]):
    columns = local_columns(sharding, 16, frozenset(process))
    # Exactly the rows that its devices hold, in the order of the batch.
    held = {int(i) for s in whole.addressable_shards if s.device in process for i in s.data}
    assert columns.tolist() == sorted(held)
    seen.append(columns)
  assert sorted(set(np.concatenate(seen).tolist())) == batch.tolist()
  if shape == (8,) or (order == IN_ORDER and shape == (4, 2)):  # no replicas across processes
    assert len(np.concatenate(seen)) == 16


def test_the_columns_of_the_only_process_are_all():
  sharding = sharding_of(IN_ORDER, (8,), ("data",))
  assert local_columns(sharding, 24).tolist() == list(range(24))
  with pytest.raises(ValueError, match=r"a batch of 12 rows .* choose a multiple of 8"):
    local_columns(sharding, 12)


@pytest.mark.parametrize("order", [IN_ORDER, MIXED])
def test_ids_on_the_devices_come_back_in_their_order(order):
  ids = np.arange(48, dtype=np.int32).reshape(3, 16)
  mesh = sharding_of(order, (4, 2), ("data", "model")).mesh
  on_devices = jax.device_put(ids, NamedSharding(mesh, P(None, "data")))
  with jax.transfer_guard("disallow"):
    np.testing.assert_array_equal(local_ids(on_devices), ids)


@pytest.fixture
def rows(rng):
  return ArrayRows(rng.standard_normal((50, 3)).astype(np.float32), np.arange(50) % 7)


def test_batches_arrive_split_and_in_order_and_only_the_published_are_moved(rows, rng):
  ids = rng.integers(0, 50, (9, 16)).astype(np.int32)
  sharding = sharding_of(IN_ORDER, (8,), ("data",))
  with Feed(rows, start=4, workers=0, threads=2, ahead=3) as feed:
    batches = DevicePrefetch(feed, sharding, ahead=2)
    blocks = {4: ids[:1], 5: ids[1:5], 9: ids[5:]}
    for step in range(4, 13):
      if step in blocks:
        assert feed.step == step  # nothing was waited for that is not there
        feed.publish(step, blocks[step])
      assert batches.step == step
      with jax.transfer_guard("disallow"):
        batch = next(batches)
      assert feed.step == min(step + 2, feed.published)
      for name, column in {**rows.take(ids[step - 4]), "ids": ids[step - 4]}.items():
        np.testing.assert_array_equal(batch[name], column)
        assert batch[name].sharding == sharding
    with pytest.raises(ValueError, match="step 13 is not published"):
      next(batches)
    with pytest.raises(ValueError, match=r"at least one batch .* got ahead=0"):
      DevicePrefetch(feed, sharding, ahead=0)
