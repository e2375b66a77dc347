"""The subsampled Hadamard transform against the whole matrix in float64, and what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

import jsel
from jsel.kernels import srht as module
from jsel.kernels.permutation import permute
from jsel.kernels.projection import signs
from jsel.kernels.srht import srht


@functools.partial(jax.jit, static_argnums=1)
def draws(key, columns):
  """The signs of the columns, and all coordinates in the order in which they are taken."""
  sign_key, coordinate_key = jax.random.split(key)
  size = 1 << (columns - 1).bit_length()
  column_signs = signs(sign_key, jnp.arange(columns), 1)[:, 0]
  return column_signs, permute(coordinate_key, jnp.arange(size), size)


def srht_oracle(key, x, dim):
  column_signs, coordinates = map(np.asarray, draws(key, x.shape[1]))
  rows = np.zeros((x.shape[0], len(coordinates)))
  rows[:, : x.shape[1]] = x.astype(np.float64) * column_signs
  return (rows @ hadamard(len(coordinates)))[:, coordinates[:dim]] / np.sqrt(dim)


@pytest.fixture
def x(rng):
  return rng.standard_normal((1024, 300)).astype("f4")


# Of the row's length, which an entry has in the mean: two sums of at most 32 terms each,
# rounded at 2**-24, 2**-17 or 2**-9 of a term.
TOLERANCE = {"float32": 2e-6, "bfloat16_3x": 5e-5, "bfloat16": 0.02}


@pytest.mark.parametrize(
  ("precision", "dim"), [("float32", 1), ("float32", 512), ("bfloat16_3x", 65), ("bfloat16", 65)]
)
def test_matches_float64(key, x, dim, precision):
  got = srht(key, x, dim, precision=precision)
  assert got.dtype == jnp.float32
  error = np.abs(got - srht_oracle(key, x, dim)) * np.sqrt(dim)
  assert (error / np.linalg.norm(x, axis=1, keepdims=True)).max() < TOLERANCE[precision]


@pytest.mark.parametrize("columns", [1, 3, 2048])
def test_any_number_of_columns(key, rng, columns):
  x = rng.standard_normal((7, columns)).astype("f4")
  dim = 1 << (columns - 1).bit_length()
  want = srht_oracle(key, x, dim)
  got = np.asarray(srht(key, x, dim), np.float64)
  np.testing.assert_allclose(got, want, atol=2e-6 * np.linalg.norm(want))
  # All coordinates: a rotation.
  lengths = np.linalg.norm(got, axis=1)
  np.testing.assert_allclose(lengths, np.linalg.norm(x, axis=1), rtol=2e-6)


def test_large_means_cost_no_accuracy(key, rng):
  x = (1e4 + rng.standard_normal((64, 4096))).astype("f4")
  want = srht_oracle(key, x, 256)
  error = np.linalg.norm(srht(key, x, 256) - want, axis=1) / np.linalg.norm(want, axis=1)
  assert error.max() < 2e-5


def test_integer_and_half_rows(key):
  x = np.arange(24).reshape(2, 12)
  np.testing.assert_allclose(srht(key, x.astype(np.uint8), 5), srht_oracle(key, x, 5), atol=1e-4)
  got = srht(key, jnp.asarray(x, jnp.bfloat16), 5)
  np.testing.assert_allclose(got, srht_oracle(key, x, 5), atol=1e-4)


def test_squared_lengths_and_inner_products_are_unbiased(key, rng):
  u, v = rng.standard_normal((2, 100)).astype("f4")
  v = v + u
  project = jax.jit(jax.vmap(lambda key: srht(key, jnp.stack([u, v]), 32)))
  low = np.asarray(project(jax.random.split(key, 1000)), np.float64)
  for a, b, want in ((0, 0, u @ u), (0, 1, u @ v), (1, 1, v @ v)):
    products = (low[:, a] * low[:, b]).sum(1)
    assert abs(products.mean() - want) < 5 * products.std() / np.sqrt(1000)


def test_distances_are_kept_even_of_a_single_column(key, rng):
  pool = rng.standard_normal((200, 500)).astype("f4")
  pool[::2] = 0
  pool[::2, :100] = np.eye(100)  # all of the length in one column, which H spreads
  a, b = rng.integers(0, 200, (2, 1500))
  a, b = a[a != b][:1000], b[a != b][:1000]
  low = np.asarray(srht(key, pool, 256))
  ratio = ((low[a] - low[b]) ** 2).sum(1) / ((pool[a] - pool[b]) ** 2).sum(1)
  # No more than that of independent signs, 2 / dim.
  assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / 256)


def test_coordinates_are_distinct_and_another_key_takes_others(key):
  # The squared length of a coordinate's column in the map is the same for each: p / dim.
  matrix = np.asarray(srht(key, np.eye(128, dtype="f4"), 100), np.float64)
  np.testing.assert_allclose(matrix.T @ matrix, np.eye(100) * 1.28, atol=1e-5)
  other = np.asarray(srht(jax.random.key(1), np.eye(128, dtype="f4"), 100))
  assert np.abs(matrix - other).max() > 0.1


def test_fewer_coordinates_are_a_prefix(key, x):
  more, fewer = srht(key, x, 256), srht(key, x, 64)
  np.testing.assert_allclose(more[:, :64] * 2, fewer, rtol=1e-6)


@pytest.mark.parametrize(
  ("precision", "device_counts"), [("float32", [2, 4, 8]), ("bfloat16_3x", [8])]
)
def test_bitwise_the_same_on_any_device_count(key, x, precision, device_counts):
  on = lambda count: jsel.shard(srht, jsel.make_mesh(jax.devices()[:count]))
  want = on(1)(key, x, 65, precision=precision)
  for devices in device_counts:
    np.testing.assert_array_equal(on(devices)(key, x, 65, precision=precision), want)
  # Blocks of another height: a product may be summed in another order.
  np.testing.assert_allclose(srht(key, x, 65, precision=precision), want, atol=2e-5)


def test_padding_and_nan_stay_in_their_rows(key, x):
  padded = jsel.pad_rows(x[:700])
  padded[5, 7] = np.nan
  got = np.asarray(srht(key, padded, 16))
  assert np.isnan(got[5]).all()
  assert not got[700:].any()
  want = srht_oracle(key, x[:700], 16)
  np.testing.assert_allclose(np.delete(got[:700], 5, 0), np.delete(want, 5, 0), atol=2e-5)


def test_blocks_that_do_not_divide_the_rows(key, x, monkeypatch):
  assert srht(key, x[:0], 62).shape == (0, 62)
  monkeypatch.setattr(module, "BLOCK", 512 * 100)  # 10 blocks of 100 rows; the last overlaps
  # A dim that no other test takes: the block is not among what a program is cached by.
  np.testing.assert_allclose(srht(key, x, 61), srht_oracle(key, x, 61), atol=2e-5)


def test_memory_is_bounded_whatever_the_number_of_rows(key):
  x = jax.ShapeDtypeStruct((100_000, 4096), jnp.float32)
  compiled = jax.jit(lambda x: srht(key, x, 512)).lower(x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 16 * 2**20  # x has 1.6 GB


def test_eager_is_what_jit_is_and_other_values_compile_nothing(key, x):
  want = srht(key, x, 40)
  jitted = jax.jit(lambda key, x: srht(key, x, 40))
  np.testing.assert_array_equal(jitted(key, x), want)
  before = module._srht._cache_size()
  srht(jax.random.key(7), x + 1, 40)
  assert module._srht._cache_size() == before


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda key, x: srht(key, x[0], 2), r"matrix \[n, d\] with columns, got shape \(3,\)"),
    (lambda key, x: srht(key, x[:, :0], 1), r"with columns, got shape \(2, 0\)"),
    (lambda key, x: srht(key, x, 5), r"within \[1, 4\] for 3 columns, got 5: .*rademacher"),
    (lambda key, x: srht(key, x, 0), r"within \[1, 4\] for 3 columns, got 0"),
    (lambda key, x: srht(key, x, 2.0), "dim must be a static int"),
    (lambda key, x: srht(key, x, 2, precision="int8"), "precision must be one of"),
    (
      lambda key, x: jsel.shard(srht, jsel.make_mesh(jax.devices()[:2]))(key, x, 2),
      "2 rows do not split .* jsel.pad_rows",
    ),
  ],
)
def test_mistakes_are_named(key, call, message):
  with pytest.raises(ValueError, match=message):
    call(key, jnp.ones((2, 3)))
