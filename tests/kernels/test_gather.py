"""Rows by global index against NumPy's, for every dtype and device count, bit by bit."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel.kernels.gather import gather

DTYPES = [
  np.bool_,
  np.uint8,
  np.int8,
  np.uint16,
  np.int16,
  np.int32,
  np.uint32,
  np.float16,
  ml_dtypes.bfloat16,
  ml_dtypes.float8_e4m3fn,
  np.float32,
]


def pool_of(rng, dtype, shape=(1024, 6)):
  """Every bit pattern that the dtype has, NaN and -0.0 among them."""
  if dtype == np.bool_:
    return rng.random(shape) < 0.5
  size = np.dtype(dtype).itemsize
  pool = rng.integers(0, 256, (*shape, size), np.uint8).view(dtype).reshape(shape)
  pool[0], pool[-1] = np.zeros(shape[1:], dtype), -np.ones(shape[1:]).astype(dtype)
  return pool


def raw(x):
  return np.ascontiguousarray(np.asarray(x)).view(np.uint8)


def sharded(devices, split):
  mesh = jsel.make_mesh(jax.devices()[:devices])
  local = lambda x, index: gather(x, index, split=split, axis_name="data")
  out = P("data") if split else P()
  return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P()), out_specs=out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_rows_arrive_bit_by_bit(rng, dtype, split, devices):
  pool = pool_of(rng, dtype)
  index = rng.integers(0, 1024, 24).astype(np.int32)
  index[:4] = 0, 1023, 7, 7  # the ends, and one row twice
  got = sharded(devices, split)(pool, index)
  assert got.dtype == dtype
  assert (raw(got) == raw(pool[index])).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_device_is_a_take(rng, dtype):
  pool = pool_of(rng, dtype, (50, 2, 3))
  index = rng.integers(0, 50, 20).astype(np.int32)
  assert (raw(gather(pool, index)) == raw(pool[index])).all()
  assert (raw(jax.jit(gather)(pool, index)) == raw(pool[index])).all()
  assert (raw(gather(pool, index, split=True)) == raw(pool[index])).all()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_minus_zero_and_nan_payloads_survive(devices):
  pool = np.full(512, 1, np.float32)
  pool[3] = -0.0
  pool.view(np.uint32)[4] = 0xFFC12345
  got = sharded(devices, split=False)(pool, np.array([3, 4], np.int32))
  assert np.asarray(got).view(np.uint32).tolist() == [0x80000000, 0xFFC12345]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_an_index_outside_gives_zeros(rng, devices):
  pool = rng.standard_normal((512, 2)).astype(np.float32)
  index = np.array([-1, 511, 512, -(2**31), 2**31 - 1, -512], np.int32)
  want = np.where((index == 511)[:, None], pool[511], 0)
  assert (np.asarray(sharded(devices, split=False)(pool, index)) == want).all()
  assert (np.asarray(gather(pool, index)) == want).all()


def test_jsel_shard_supplies_the_specs(rng):
  pool = rng.integers(0, 256, (1024, 5), np.uint8)
  index = jnp.arange(1000, 1010, dtype=jnp.int32)
  got = jsel.shard(gather, jsel.make_mesh(jax.devices()[:4]))(pool, index)
  assert (np.asarray(got) == pool[1000:1010]).all()


def test_the_pool_stays_where_it_is(rng):
  pool = rng.integers(0, 256, (1024, 16), np.uint8)
  text = sharded(8, split=False).lower(pool, jnp.zeros(4, jnp.int32)).compile().as_text()
  assert "all-reduce" in text
  assert "all-gather" not in text


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: gather(jnp.ones(4), jnp.ones(2)), r"index must be int32 \[b\], got float32"),
    (lambda: gather(jnp.ones(4), jnp.int32(2)), r"index must be int32 \[b\], got int32 \(\)"),
    (lambda: gather(jnp.ones(4, jnp.complex64), jnp.arange(2)), "real dtype or bool, got complex"),
    (lambda: sharded(4, True)(jnp.ones(512), jnp.arange(6)), "6 rows do not split over 4 devices"),
  ],
)
def test_what_cannot_be_gathered_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
