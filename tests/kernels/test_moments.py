"""moments against NumPy in float64, in parts, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import moments
from jsel.kernels.reduce import two_limb


@jax.jit
def update(seen, x, valid=None):
  return moments.update(seen, x, valid=valid)


def of(x, valid=None, *, covariance=False):
  return update(moments.init(x.shape[1], covariance=covariance), x, valid)


def count_of(seen):
  return int(seen.count.high) * 2**32 + int(seen.count.low)


def assert_bitwise(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def pool(rng):
  x = (1e4 + rng.standard_normal((1024, 6)) @ rng.standard_normal((6, 6))).astype(np.float32)
  x[:, 3] = 0.1  # constant, and no float32
  return x, rng.random(1024) < 0.7


def test_mean_and_variance_match_float64(pool):
  x, valid = pool
  mean, variance = moments.finish(of(x, valid))
  exact = x[valid].astype(np.float64)
  np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)  # the nearest float32, or the next
  # 717 terms summed in float32: far below 1e-5. A one-pass formula is off by more than 1.
  np.testing.assert_allclose(variance, exact.var(0), rtol=1e-5, atol=1e-20)


def test_covariance_matches_float64(pool):
  x, valid = pool
  mean, covariance = moments.finish(of(x, valid, covariance=True), ddof=1)
  exact = x[valid].astype(np.float64)
  np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
  # Of the largest entry: products of columns may cancel to any degree.
  np.testing.assert_allclose(covariance, np.cov(exact.T), atol=1e-6 * np.cov(exact.T).max())


@pytest.mark.parametrize("covariance", [False, True])
def test_constant_column_has_no_variance_at_all(pool, covariance):
  x, valid = pool
  _, variance = moments.finish(of(x, valid, covariance=covariance))
  assert not np.any(variance[3])


def test_outlying_first_row_costs_no_accuracy(pool):
  x, _ = pool
  x[0] = 0.0  # 1e4 from all others, which are centred on it first
  _, variance = moments.finish(of(x))
  np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, bool])
def test_other_dtypes_are_those_values(rng, dtype):
  x = rng.integers(0, 2 if dtype is bool else 200, (100, 3)).astype(dtype)
  assert_bitwise(of(x), of(x.astype(np.float32)))


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_bitwise_same_on_any_device_count(pool, devices, covariance):
  x, valid = pool
  mesh = jsel.make_mesh(jax.devices()[:devices])
  start = moments.init(6, covariance=covariance)
  sharded = jax.jit(lambda x, valid: jsel.shard(moments.update, mesh)(start, x, valid=valid))
  assert_bitwise(sharded(x, valid), of(x, valid, covariance=covariance))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_bitwise_same_on_any_device_count_where_all_rows_count(pool, devices):
  x, _ = pool  # the count is then a constant of the program
  sharded = jsel.shard(moments.update, jsel.make_mesh(jax.devices()[:devices]))
  assert_bitwise(jax.jit(sharded)(moments.init(6), x), of(x))


@pytest.mark.parametrize("covariance", [False, True])
def test_padding_changes_nothing(pool, covariance):
  x, valid = pool[0][:700], np.arange(1024) < 700
  got = of(jsel.pad_rows(x, np.nan), valid, covariance=covariance)
  assert_bitwise(got, of(jsel.pad_rows(x, 7.0), valid, covariance=covariance))
  # Not bitwise: rows that are no multiple of 512 are cut into other tiles.
  plain = of(x, covariance=covariance)
  assert count_of(got) == count_of(plain) == 700
  np.testing.assert_allclose(got.mean, plain.mean, rtol=1e-6)
  np.testing.assert_allclose(got.scatter, plain.scatter, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("n", [512, 1100, 5000])
@pytest.mark.parametrize("d", [255, 256, 257, 700])
def test_covariance_in_strips_is_that_of_float64(rng, n, d):
  x = rng.standard_normal((n, d)).astype(np.float32) + 3
  scatter = np.asarray(of(x, covariance=True).scatter)
  centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
  # Entries of up to n, of n products that each round to 2**-24, added in any order.
  np.testing.assert_allclose(scatter, centred.T @ centred, rtol=1e-5, atol=n * 2.0**-21)
  np.testing.assert_array_equal(scatter, scatter.T)


@pytest.mark.parametrize(
  ("precision", "off"), [("float32", 2e-6), ("bfloat16_3x", 2**-15), ("bfloat16", 2**-7)]
)
@pytest.mark.parametrize("n", [700, 1024])
@pytest.mark.parametrize("devices", [1, 4])
def test_precision_of_products(rng, n, precision, off, devices):
  if n % 512 and devices > 1:
    pytest.skip("rows that do not split")
  x = rng.standard_normal((n, 40)).astype(np.float32) + 3
  update = moments.update
  if devices > 1:
    update = jsel.shard(update, jsel.make_mesh(jax.devices()[:devices]))
  got = np.asarray(update(moments.init(40, covariance=True), x, precision=precision).scatter)
  centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
  length = np.linalg.norm(centred, axis=0)
  error = np.abs(got - centred.T @ centred) / np.outer(length, length)
  assert error.max() < off
  if precision == "bfloat16" and n % 512 == 0:  # CPUs without bfloat16 may do better with others
    assert error.max() > 2**-15


@pytest.mark.parametrize("covariance", [False, True])
def test_parts_add_up(pool, covariance):
  x, valid = pool
  x[500:] += 3  # parts of different means
  whole = of(x, valid, covariance=covariance)
  parts = moments.init(6, covariance=covariance)
  for rows in (slice(0, 100), slice(100, 612), slice(612, 1024)):
    parts = update(parts, x[rows], valid[rows])
  assert count_of(parts) == count_of(whole) == valid.sum()
  np.testing.assert_allclose(parts.mean, whole.mean, rtol=2e-7)
  # The means that are merged are float32, off by 5e-4 at 1e4; that enters times their difference.
  np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-3, atol=1e-3)


def test_merging_with_nothing_is_exact(pool):
  x, valid = pool
  whole = of(x, valid)
  none = of(x, np.zeros(1024, bool))
  assert count_of(none) == 0
  assert_bitwise(moments.merge(whole, none), whole)
  assert_bitwise(moments.merge(none, whole), whole)
  assert_bitwise(moments.merge(moments.init(6), whole), whole)


def test_counts_pass_31_bits(pool):
  seen = of(pool[0])
  for _ in range(23):
    seen = moments.merge(seen, seen)
  assert count_of(seen) == 1024 * 2**23
  np.testing.assert_allclose(
    moments.finish(seen, ddof=1)[1], moments.finish(of(pool[0]))[1], rtol=1e-6
  )


def test_nan_stays_in_its_column(pool):
  x, _ = pool
  x[5, 1] = np.nan
  mean, variance = moments.finish(of(x))
  assert np.isnan(mean).tolist() == np.isnan(variance).tolist() == [i == 1 for i in range(6)]


def test_too_few_rows_have_no_variance():
  mean, variance = moments.finish(of(np.ones((1, 2), np.float32)), ddof=1)
  assert mean.tolist() == [1.0, 1.0]
  assert np.isnan(variance).all()
  assert moments.finish(moments.Moments(two_limb(2), mean, jnp.ones(2)), ddof=1)[1].tolist() == [
    1,
    1,
  ]


def test_pool_of_bytes_is_never_held_in_float(rng):
  x = rng.integers(0, 255, (2**14, 64)).astype(np.uint8)
  compiled = update.lower(moments.init(64, covariance=True), x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < x.size  # a float32 copy is four times that


def test_eager_equals_jit_and_compiles_once(pool):
  x, valid = pool
  eager = moments.update(moments.init(6), x, valid=valid)
  before = moments._of_rows._cache_size()
  assert_bitwise(moments.update(moments.init(6), x, valid=valid), eager)
  assert moments._of_rows._cache_size() == before
  assert_bitwise(of(x, valid), eager)


def test_mistakes_are_named():
  seen = moments.init(3)
  with pytest.raises(ValueError, match=r"\[n, 3\] as the moments, got \(4, 2\)"):
    moments.update(seen, jnp.ones((4, 2)))
  with pytest.raises(ValueError, match=r"valid has shape \(3,\), x has 4 rows"):
    moments.update(seen, jnp.ones((4, 3)), valid=jnp.ones(3, bool))
  with pytest.raises(ValueError, match="precision must be one of"):
    moments.update(moments.init(3), np.zeros((4, 3), np.float32), precision="float16")
  with pytest.raises(ValueError, match="do not merge"):
    moments.merge(seen, moments.init(3, covariance=True))
