"""The n-th set row against np.flatnonzero, whatever the mask, the size and the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel.compiled.collectives import collectives
from jsel.kernels import bits, nth

DEVICES = pytest.mark.parametrize("devices", [1, 2, 4, 8])
EXTREMES = [-1, -(2**31), 2**31 - 1]


def oracle(mask, positions, values=None):
  ids = np.flatnonzero(mask)
  inside = (positions >= 0) & (positions < len(ids))
  indices = np.full(len(positions), -1, np.int32)
  indices[inside] = ids[positions[inside]]
  if values is None:
    return indices
  return indices, np.where(inside, values[indices], np.float32(0))


def masks(rng, n):
  half, sparse, last = rng.random(n) < 0.5, rng.random(n) < 3 / n, np.zeros(n, bool)
  last[-1] = True
  runs = np.arange(n) // 97 % 3 == 1
  first_part = np.arange(n) < n // 8
  return {
    "half": half,
    "sparse": sparse,
    "runs": runs,
    "one device's": first_part,
    "other device's": ~first_part,
    "last": last,
    "full": np.ones(n, bool),
    "empty": np.zeros(n, bool),
  }


def positions_for(rng, mask):
  total = int(mask.sum())
  inside = rng.integers(0, max(total, 1), 300)
  ends = [0, total - 1, total, *EXTREMES]
  return np.concatenate([inside, ends, inside[:3]]).astype(np.int32)


@functools.cache
def sharded(kernel, devices):
  return jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))


def on(devices, mask, positions, values=None):
  tiles = sharded(nth.count_tiles, devices)(mask)
  return sharded(nth.select, devices)(tiles, positions, values=values)


@pytest.mark.parametrize("n", [512, 1024, 512 * 131, 512 * 300])
@DEVICES
def test_is_flatnonzero(rng, n, devices):
  values = rng.standard_normal(n).astype(np.float32)
  for name, mask in masks(rng, n).items():
    positions = positions_for(rng, mask)
    got = on(devices, mask, positions, values)
    indices, of_values = oracle(mask, positions, values)
    np.testing.assert_array_equal(got.indices, indices, name)
    np.testing.assert_array_equal(got.values, of_values, name)


@pytest.mark.parametrize("n", [1, 31, 32, 129, 511, 513, 5000, 100_001])
def test_any_size_on_one_device(rng, n):
  for name, mask in masks(rng, n).items():
    tiles = nth.count_tiles(jnp.asarray(mask))
    assert nth.total(tiles) == mask.sum(), name
    every = np.arange(-1, n + 1, dtype=np.int32)
    np.testing.assert_array_equal(nth.select(tiles, every).indices, oracle(mask, every), name)


@pytest.mark.parametrize("n", [512, 512 * 131])
@DEVICES
def test_tiles_are_the_same_on_any_device_count(rng, n, devices):
  mask = rng.random(n) < 0.5
  split = sharded(nth.count_tiles, devices)(mask)
  jax.tree.map(np.testing.assert_array_equal, split, nth.count_tiles(jnp.asarray(mask)))
  assert {part.sharding.shard_shape(part.shape)[0] * devices for part in split} == {
    part.shape[0] for part in split
  }
  assert [part.shape for part in nth.count_tiles(jnp.zeros(n, bool))] == [p.shape for p in split]


@DEVICES
def test_bits_of_values_arrive_as_they_were(rng, devices):
  values = rng.integers(0, 2**32, 1024, np.uint32)
  values[:3] = 0xFFC12345, 0x80000000, 1  # a NaN's payload, -0.0, a subnormal
  got = on(devices, np.ones(1024, bool), np.arange(1024, dtype=np.int32), values.view(np.float32))
  np.testing.assert_array_equal(np.asarray(got.values).view(np.uint32), values)


@DEVICES
def test_jit_is_eager_and_another_mask_compiles_nothing(rng, devices):
  mesh = jsel.make_mesh(jax.devices()[:devices])
  traced = []

  def lookup(mask, positions):
    traced.append(1)
    return nth.select(nth.count_tiles(mask, axis_name="data"), positions, axis_name="data").indices

  eager = jax.shard_map(lookup, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
  jitted = jax.jit(eager)
  for mask in masks(rng, 1536).values():
    positions = positions_for(rng, mask)
    np.testing.assert_array_equal(jitted(mask, positions), oracle(mask, positions))
  assert len(traced) == 1
  np.testing.assert_array_equal(jitted(mask, positions), eager(mask, positions))


def test_an_axis_may_be_two(rng):
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  mask = rng.random(2048) < 0.3
  positions = positions_for(rng, mask)
  tiles = jsel.shard(nth.count_tiles, mesh, ("a", "b"))(mask)
  got = jsel.shard(nth.select, mesh, ("a", "b"))(tiles, positions)
  np.testing.assert_array_equal(got.indices, oracle(mask, positions))


def test_one_sum_of_b_integers_and_nothing_else_moves():
  mesh = jsel.make_mesh(jax.devices()[:8])
  tiles = jax.eval_shape(nth.count_tiles, jax.ShapeDtypeStruct((2**20,), bool))
  split = jax.tree.map(lambda part: P("data"), tiles)
  values = jax.ShapeDtypeStruct((2**20,), jnp.float32)
  lookup = jax.shard_map(
    lambda tiles, positions, values: nth.select(
      tiles, positions, values=values, axis_name="data"
    ),
    mesh=mesh,
    in_specs=(split, P(), P("data")),
    out_specs=P(),
  )  # fmt: skip
  positions = jax.ShapeDtypeStruct((64,), jnp.int32)
  text = jax.jit(lookup).lower(tiles, positions, values).compile().as_text()
  (moved,) = collectives(text, devices=8)
  assert (moved.kind, moved.operand_bytes, moved.in_loop) == ("all-reduce", 2 * 4 * 64, False)


def test_words_keep_every_bit(rng):
  mask = rng.random((3, 96)) < 0.5
  words = np.asarray(bits.pack(jnp.asarray(mask)))
  unpacked = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
  np.testing.assert_array_equal(unpacked.reshape(3, 96), mask)
  np.testing.assert_array_equal(bits.count(jnp.asarray(words)), unpacked.sum(-1))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: nth.count_tiles(jnp.ones(4)), r"mask must be bool \[n\], got float32 \(4,\)"),
    (lambda: nth.count_tiles(jnp.ones((4, 2), bool)), r"got bool \(4, 2\)"),
    (lambda: nth.select(some_tiles(), jnp.ones(2)), r"positions must be int32 \[b\], got float32"),
    (
      lambda: nth.select(some_tiles(), jnp.int32(2)),
      r"positions must be int32 \[b\], got int32 \(\)",
    ),
    (
      lambda: nth.select(some_tiles(), jnp.arange(2), values=jnp.ones(2**17)),
      r"float32 of the 1 to 65536 rows that the tiles can be of, got float32 \(131072,\)",
    ),
    (lambda: nth.select(some_tiles(), jnp.arange(2), values=jnp.arange(512)), "must be float32"),
    (lambda: on(2, np.ones(768, bool), np.arange(2)), "768 rows do not split into 512 leaves"),
  ],
)
def test_what_cannot_be_looked_up_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def some_tiles():
  return nth.count_tiles(jnp.ones(512, bool))
