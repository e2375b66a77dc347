"""Random numbers of rows: the published cipher, its distribution, and the same bits anywhere."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel.kernels import projection
from jsel.kernels.random import row_bits, row_gumbel, row_lot, row_uniform, row_uniform_int
from jsel.kernels.rows import row_ids

ALL = [row_bits, row_uniform, row_uniform_int, row_gumbel, row_lot]


def ks_distance(sample, cdf):
  """The Kolmogorov-Smirnov distance of ``sample`` from ``cdf``."""
  sample = np.sort(sample.astype(np.float64))
  rank = np.arange(len(sample) + 1) / len(sample)
  return max(np.abs(cdf(sample) - rank[1:]).max(), np.abs(cdf(sample) - rank[:-1]).max())


def test_bits_are_threefry_of_the_counter(key):
  words = jax.random.bits(key, (2,), jnp.uint32)
  ids = jnp.array([0, 1, 2, 2**31 - 1], jnp.int32)
  for stream in (0, 5):
    counter = jnp.concatenate([jnp.full(4, stream, jnp.uint32), ids.astype(jnp.uint32)])
    want = jax.extend.random.threefry_2x32(words, counter).reshape(2, 4).T
    assert (row_bits(key, ids, stream=stream) == want).all()


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_bitwise_the_same_on_any_device_count(key, function, devices):
  n = 512 * 9  # 576 rows on 8 devices: 36 vectors of 16; the odd lengths follow below
  mesh = jsel.make_mesh(jax.devices()[:devices])
  local = lambda key: function(key, row_ids(n // devices, "data"))
  got = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P("data")))(key)
  alone = np.asarray(jax.jit(function)(key, jnp.arange(n)))
  assert (np.asarray(got).view(np.uint32) == alone.view(np.uint32)).all()


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("count", [1, 3, 17, 61, 1001])
def test_bitwise_the_same_in_the_remainder_of_a_vector(key, function, count):
  whole = np.asarray(jax.jit(function)(key, jnp.arange(4096)))
  part = np.asarray(jax.jit(function)(key, jnp.arange(7, 7 + count)))
  assert (part.view(np.uint32) == whole[7 : 7 + count].view(np.uint32)).all()


def test_any_key_works_and_keys_and_streams_differ(key):
  ids = jnp.arange(1000)
  draws = [
    row_uniform_int(key, ids),
    row_uniform_int(key, ids, stream=1),
    row_uniform_int(jax.random.key(1), ids),
    row_uniform_int(jax.random.key(0, impl="rbg"), ids),
    row_bits(key, ids)[:, 1],
  ]
  for i, a in enumerate(draws):
    for b in draws[:i]:
      assert (np.asarray(a) == np.asarray(b)).sum() <= 1


def test_uniform_is_uniform(key):
  u = np.asarray(row_uniform(key, jnp.arange(50_000)))
  assert u.min() >= 0
  assert u.max() < 1
  # The distance passes 1.95 / sqrt(n) with probability 1e-3; the key is fixed.
  assert ks_distance(u, lambda x: x) < 1.95 / np.sqrt(len(u))
  # Neighbours: the correlation of n pairs has standard deviation 1 / sqrt(n).
  assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 3.3 / np.sqrt(len(u))
  bits = np.asarray(row_uniform_int(key, jnp.arange(50_000)))
  ones = np.unpackbits(bits.view(np.uint8).reshape(-1, 4), axis=1).mean(0)
  assert np.abs(ones - 0.5).max() < 4 * 0.5 / np.sqrt(len(u))


def test_gumbel_is_gumbel_without_ties(key):
  g = np.asarray(row_gumbel(key, jnp.arange(50_000)))
  assert np.isfinite(g).all()
  assert ks_distance(g, lambda x: np.exp(-np.exp(-x))) < 1.95 / np.sqrt(len(g))
  top = np.sort(g)[-1000:]
  assert (np.diff(top) > 0).all()


def test_gumbel_maximum_follows_the_weights():
  weights = np.array([1.0, 2.0, 3.0, 4.0])
  keys = jax.random.split(jax.random.key(3), 4000)
  log_weights = jnp.log(jnp.asarray(weights, jnp.float32))
  draw = lambda key: jnp.argmax(log_weights + row_gumbel(key, jnp.arange(4)))
  counts = np.bincount(jax.jit(jax.vmap(draw))(keys), minlength=4)
  expected = 4000 * weights / weights.sum()
  assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees, 1e-3


def test_lots_are_fair_to_every_row_and_new_with_every_key(key):
  lots = jax.jit(jax.vmap(lambda key: row_lot(key, jnp.arange(512))))(jax.random.split(key, 2000))
  # Who wins among 512 rows: chi-square of 511 degrees has a standard deviation of 32.
  wins = np.bincount(np.asarray(lots).argmax(1), minlength=512)
  assert ((wins - 2000 / 512) ** 2 / (2000 / 512)).sum() < 511 + 4 * 32
  u = np.asarray(row_lot(key, jnp.arange(50_000))) / 2.0**32
  assert ks_distance(u, lambda x: x) < 1.95 / np.sqrt(len(u))
  assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 3.3 / np.sqrt(len(u))
  # Rows next to each other under one key, and one row under keys next to each other.
  across = np.asarray(lots)[:, 7] / 2.0**32
  assert ks_distance(across, lambda x: x) < 1.95 / np.sqrt(len(across))
  assert abs(np.corrcoef(across[1:], across[:-1])[0, 1]) < 3.3 / np.sqrt(len(across))


def test_ids_of_another_dtype_are_refused(key):
  with pytest.raises(ValueError, match="int32 or uint32, got float32"):
    row_bits(key, jnp.ones(3))
  with pytest.raises(ValueError, match="int32 or uint32, got float32"):
    row_lot(key, jnp.ones(3))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rows", [1, 70])
def test_words_cut_into_bits_within_a_loop_compile(key, rows):
  # With all rounds in one expression the compiler did not end for these shapes.
  cut = lambda start: projection.signs(key, start + jnp.arange(rows, dtype=jnp.uint32), 64)
  starts = jnp.arange(3, dtype=jnp.uint32) * rows
  _, parts = jax.jit(lambda starts: jax.lax.scan(lambda _, s: (None, cut(s)), None, starts))(starts)
  whole = projection.signs(key, jnp.arange(3 * rows, dtype=jnp.uint32), 64)
  np.testing.assert_array_equal(parts.reshape(-1, 64), whole)
