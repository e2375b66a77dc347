"""Sign projections against float64 NumPy, their statistics, and any cut of rows or columns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import projection
from jsel.kernels.precision import matmul


def projection_oracle(key, x, dim):
  matrix = np.asarray(projection.signs(key, jnp.arange(x.shape[1]), dim), np.float64)
  return x.astype(np.float64) @ matrix / np.sqrt(dim)


@pytest.fixture
def x(rng):
  return rng.standard_normal((1024, 300)).astype("f4")


# Of a sum of 300 terms of size 1, rounded at 2**-24, 2**-17 or 2**-9 each: seven deviations.
TOLERANCE = {"float32": 5e-5, "bfloat16_3x": 1e-3, "bfloat16": 0.2}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("dim", [1, 65, 256])
def test_matches_float64(key, x, dim, precision):
  got = projection.rademacher(key, x, dim, precision=precision)
  assert got.dtype == jnp.float32
  tolerance = TOLERANCE[precision] / np.sqrt(dim)
  np.testing.assert_allclose(got, projection_oracle(key, x, dim), atol=tolerance)


def test_signs_have_mean_0_and_variance_1_and_do_not_correlate(key):
  matrix = np.asarray(projection.signs(key, jnp.arange(4096), 256))
  assert set(np.unique(matrix)) == {-1, 1}
  assert abs(matrix.mean()) < 5 / np.sqrt(matrix.size)
  # 33 thousand pairs of columns, of rows 8 million: none beyond 6 standard errors.
  columns, lines = matrix.T @ matrix / 4096, matrix @ matrix.T / 256
  assert np.abs(columns - np.eye(256)).max() < 6 / np.sqrt(4096)
  assert np.abs(lines - np.eye(4096)).max() < 6.5 / np.sqrt(256)
  other = np.asarray(projection.signs(jax.random.key(1), jnp.arange(4096), 256))
  assert abs((matrix * other).mean()) < 5 / np.sqrt(matrix.size)


def test_a_sign_depends_on_key_row_and_column_alone(key):
  whole = np.asarray(projection.signs(key, jnp.arange(100), 200))
  ids = jnp.array([70, 3, 99])
  np.testing.assert_array_equal(projection.signs(key, ids, 130), whole[np.asarray(ids), :130])
  last = jnp.array([2**32 - 1], jnp.uint32)
  assert projection.signs(key, last, 3, dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_no_columns_meet_no_signs(key):
  assert projection.signs(key, jnp.arange(0), 70).shape == (0, 70)
  np.testing.assert_array_equal(projection.rademacher(key, jnp.zeros((2, 0)), 3), np.zeros((2, 3)))


def test_distances_are_kept(key, rng):
  pool = rng.standard_normal((200, 500)).astype("f4")
  a, b = rng.integers(0, 200, (2, 1500))
  a, b = a[a != b][:1000], b[a != b][:1000]
  low = np.asarray(projection.rademacher(key, pool, 512))
  ratio = ((low[a] - low[b]) ** 2).sum(1) / ((pool[a] - pool[b]) ** 2).sum(1)
  # The ratio has a variance of at most 2 / dim.
  assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / 512)
  assert abs(ratio.mean() - 1) < 0.02


def test_inner_products_are_unbiased(key, rng):
  u, v = rng.standard_normal((2, 100)).astype("f4")
  v = v + u
  project = jax.vmap(lambda key: projection.rademacher(key, jnp.stack([u, v]), 64))
  low = np.asarray(project(jax.random.split(key, 400)))
  products = (low[:, 0] * low[:, 1]).sum(1)
  assert abs(products.mean() - u @ v) < 5 * products.std() / np.sqrt(400)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("precision", ["float32", "bfloat16_3x"])
def test_bitwise_the_same_on_any_device_count(key, x, devices, precision):
  on = lambda count: jsel.shard(projection.rademacher, jsel.make_mesh(jax.devices()[:count]))
  got = on(devices)(key, x, 65, precision=precision)
  np.testing.assert_array_equal(got, on(1)(key, x, 65, precision=precision))
  # Tiles of another height: a product may be summed in another order.
  alone = projection.rademacher(key, x, 65, precision=precision)
  np.testing.assert_allclose(got, alone, atol=1e-5)


def test_chunks_of_columns_add_up(key, x):
  want = projection.rademacher(key, x, 70)
  cuts = [0, 1, 130, 300]
  total = sum(
    projection.rademacher(key, x[:, a:b], 70, column_offset=a) for a, b in itertools.pairwise(cuts)
  )
  np.testing.assert_allclose(total, want, atol=1e-5)  # added in another order
  traced = jax.jit(lambda x, a: projection.rademacher(key, x, 70, column_offset=a))
  got = traced(x[:, 130:], jnp.int32(130))
  want = projection.rademacher(key, x[:, 130:], 70, column_offset=130)
  np.testing.assert_array_equal(got, want)


def test_blocks_of_signs_change_nothing(key, x, monkeypatch):
  want = projection.rademacher(key, x, 64)
  monkeypatch.setattr(projection, "BLOCK", 64 * 70)  # 4 blocks of 70 columns and one of 20
  monkeypatch.setattr(projection, "TILE_ROWS", 100)  # 10 tiles of 100 rows and one of 24
  jax.clear_caches()
  got = projection.rademacher(key, x, 64)
  jax.clear_caches()
  np.testing.assert_allclose(got, want, atol=1e-5)  # summed in another order


def test_cuts_of_rows_change_nothing(key, x):
  whole = projection.rademacher(key, x, 64)
  parts = [projection.rademacher(key, part, 64) for part in (x[:1], x[1:501], x[501:])]
  # A product of one row is another routine, which sums in another order.
  np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_signs_are_never_held_whole(key):
  x = jax.ShapeDtypeStruct((4, 2**16), jnp.float32)
  compiled = jax.jit(lambda x: projection.rademacher(key, x, 1024)).lower(x).compile()
  # All of them would be 256 MB; a block is 16 MB, its bits and a copy come on top.
  assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_nan_stays_in_its_row_and_zeros_stay_zero(key, x):
  x = x.copy()
  x[5, 7], x[6] = np.nan, 0
  got = np.asarray(projection.rademacher(key, x, 16))
  assert np.isnan(got[5]).all()
  assert not got[6].any()
  assert np.isfinite(np.delete(got, 5, 0)).all()


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda key, x: projection.rademacher(key, x[0], 2), r"matrix \[n, d\], got shape \(3,\)"),
    (lambda key, x: projection.rademacher(key, x, 0), "dim must be a static int of at least 1"),
    (lambda key, x: projection.rademacher(key, x, 2, column_offset=-1), "column_offset .* got -1"),
    (lambda key, x: projection.rademacher(key, x, 2, precision="int8"), "precision must be one of"),
    (lambda key, x: projection.signs(key, x, 2), r"ids must be \[r\], got shape \(2, 3\)"),
  ],
)
def test_mistakes_are_named(key, call, message):
  with pytest.raises(ValueError, match=message):
    call(key, jnp.ones((2, 3)))


@pytest.mark.parametrize(
  ("precision", "tolerance"), [("float32", 5e-5), ("bfloat16_3x", 5e-4), ("bfloat16", 0.2)]
)
def test_matmul_is_as_precise_as_it_is_named(rng, precision, tolerance):
  a, b = (rng.standard_normal(shape).astype("f4") for shape in ((20, 256), (256, 30)))
  want = a.astype(np.float64) @ b
  error = np.abs(np.asarray(jax.jit(lambda a, b: matmul(a, b, precision=precision))(a, b)) - want)
  # Sums of 256 products of size 1, up to 50 on the way, rounded at 2**-24, 2**-16 or 2**-8; the
  # order is the processor's, and NumPy's own float32 product is off by 2.4e-5 on some.
  assert error.max() < tolerance
  turned = matmul(a, b.T, precision=precision, transpose_b=True)
  np.testing.assert_allclose(turned, want, atol=tolerance)
  if precision == "bfloat16":
    assert error.max() > 1e-3  # else it would not be bfloat16
