"""whitening against a float64 SVD and scikit-learn, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

import jsel
from jsel.kernels import moments, whitening

RANK = 8
fit = jax.jit(
  whitening.fit, static_argnames=("rank", "eps", "shrinkage", "method", "steps", "axis_name")
)
apply = jax.jit(whitening.apply)


def whitened_oracle(x, rank, rows=None):
  """Rows whitened by the fit on ``x``, from its singular values, in float64."""
  x = x.astype(np.float64)
  _, values, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
  projected = ((x if rows is None else rows.astype(np.float64)) - x.mean(0)) @ directions[:rank].T
  return projected / (values[:rank] / np.sqrt(x.shape[0] - 1))


def kernel_error(y, exact):
  """Free of the signs of components; relative to the largest entry."""
  y, exact = np.asarray(y, np.float64) @ y.T, exact @ exact.T
  return np.abs(y - exact).max() / np.abs(exact).max()


def assert_bitwise(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def correlated(rng, n=1024, d=24, mean=0.0):
  """Gaussian rows whose standard deviations fall from 1 to 0.1."""
  basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
  x = rng.standard_normal((n, d)) * np.geomspace(1, 0.1, d) @ basis
  return (x + mean).astype(np.float32)


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4])
def test_matches_float64_svd_at_any_mean(rng, mean):
  x = correlated(rng, mean=mean)
  y = apply(fit(x, rank=RANK), x)
  # The mean is a float32: at 1e4 it is off by up to 5e-4, as the entries of x themselves are.
  assert kernel_error(y, whitened_oracle(x, RANK)) < (2e-3 if mean == 1e4 else 1e-4)
  # What a constant offset does not touch holds at any mean.
  np.testing.assert_allclose(np.cov(y.T), np.eye(RANK), atol=2e-5)


@pytest.mark.parametrize("n", [1000, 1024])
@pytest.mark.parametrize(("precision", "off"), [("bfloat16_3x", 2e-4), ("bfloat16", 0.1)])
def test_precision_of_products(rng, n, precision, off):
  x = correlated(rng, n, mean=3.0)
  fitted = whitening.fit(x, rank=RANK, precision=precision)
  error = kernel_error(whitening.apply(fitted, x, precision=precision), whitened_oracle(x, RANK))
  assert error < off  # 2**-16 and 2**-9 of a term, times what whitening scales the least of them by
  if precision == "bfloat16" and n % 512 == 0:  # CPUs without bfloat16 may do better with others
    assert error > 2e-4


def test_precision_is_checked():
  x = np.eye(4, dtype=np.float32)
  with pytest.raises(ValueError, match="precision must be one of"):
    whitening.fit(x, rank=2, precision="float16")
  with pytest.raises(ValueError, match="precision must be one of"):
    whitening.apply(whitening.fit(x, rank=2), x, precision="float16")


def test_matches_scikit_learn_up_to_sign(rng):
  x, queries = correlated(rng, mean=3.0), correlated(rng, n=37, mean=2.0)
  peer = PCA(RANK, whiten=True, svd_solver="full").fit(x.astype(np.float64))
  got = fit(x, rank=RANK)
  signs = np.sign(np.sum(got.components * peer.components_, axis=1))
  # The gaps between variances are 20 %, so that a perturbation of 1e-6 turns vectors by 1e-5.
  np.testing.assert_allclose(got.components * signs[:, None], peer.components_, atol=1e-4)
  np.testing.assert_allclose(got.scale, peer.explained_variance_**-0.5, rtol=1e-5)
  whitened = np.asarray(apply(got, queries)) * signs
  np.testing.assert_allclose(whitened, peer.transform(queries), atol=2e-3)


def test_whitened_covariance_is_the_identity_over_valid_rows(rng):
  x = correlated(rng)
  valid = rng.random(1024) < 0.6
  y = apply(fit(x, rank=RANK, valid=valid), x, valid=valid)
  np.testing.assert_allclose(np.cov(y[valid].T), np.eye(RANK), atol=2e-5)
  np.testing.assert_allclose(y[valid].mean(0), np.zeros(RANK), atol=1e-5)
  assert not y[~valid].any()


def test_bytes_are_whitened_as_their_values(rng):
  x = rng.integers(0, 256, (1024, 24)) // np.arange(1, 25)
  of_bytes = fit(x.astype(np.uint8), rank=RANK)
  assert_bitwise(of_bytes, fit(x.astype(np.float32), rank=RANK))
  y = apply(of_bytes, x.astype(np.uint8))
  assert kernel_error(y, whitened_oracle(x, RANK)) < 1e-4
  half = x.astype(np.float16)
  assert_bitwise(apply(of_bytes, half), y)


def test_missing_directions_are_silent(rng):
  x = (rng.standard_normal((1024, 5)) @ rng.standard_normal((5, 24))).astype(np.float32)
  got = fit(x, rank=RANK)
  assert (np.asarray(got.scale) > 0).tolist() == [True] * 5 + [False] * 3
  stranger = rng.standard_normal((37, 24)).astype(np.float32)  # has a part in all 24 directions
  y = apply(got, stranger)
  assert not y[:, 5:].any()
  np.testing.assert_allclose(np.cov(apply(got, x)[:, :5].T), np.eye(5), atol=2e-5)


def test_fewer_rows_than_columns(rng):
  x = correlated(rng, n=20, d=50, mean=5.0)
  got = fit(x, rank=19)
  assert (got.scale > 0).all()
  assert kernel_error(apply(got, x), whitened_oracle(x, 19)) < 1e-3
  with pytest.raises(ValueError, match="20 rows span at most 19 components, got rank=20"):
    whitening.fit(x, rank=20)


def test_constant_columns_get_no_weight(rng):
  x = correlated(rng)
  with_constants = np.insert(x, [0, 10, 24], np.float32([0.1, -7, 1e4]), axis=1)
  got, want = fit(with_constants, rank=RANK), fit(x, rank=RANK)
  # The rows and columns of the covariance are exactly 0; LAPACK leaves rounding errors.
  np.testing.assert_allclose(got.components[:, [0, 11, 26]], 0, atol=1e-6)
  assert kernel_error(apply(got, with_constants), np.asarray(apply(want, x), np.float64)) < 1e-4


def test_pool_of_equal_rows_becomes_zero():
  x = np.full((1024, 24), 0.1, np.float32)
  got = fit(x, rank=RANK)
  assert not got.scale.any()
  assert not apply(got, x).any()


def test_largest_entry_of_a_component_is_positive(rng):
  for sign in (1, -1):
    components = np.asarray(fit(sign * correlated(rng), rank=RANK).components)
    assert (components[np.arange(RANK), np.abs(components).argmax(1)] > 0).all()


def test_shrinkage_is_added_to_every_variance(rng):
  x = correlated(rng)
  variances = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1]
  got = fit(x, rank=RANK, shrinkage=0.3)
  want = (variances[:RANK] + 0.3 * variances.mean()) ** -0.5
  np.testing.assert_allclose(got.scale, want, rtol=1e-5)


def test_eps_cuts_at_a_share_of_the_largest_variance(rng):
  x = correlated(rng)
  variances = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1]
  got = fit(x, rank=24, eps=0.1)
  np.testing.assert_array_equal(got.scale > 0, variances > 0.1 * variances[0])


def test_subspace_iteration_finds_the_same_where_the_spectrum_decays(rng):
  d = 24
  basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
  scales = np.where(np.arange(d) < RANK, np.geomspace(1, 0.1, d), 0.2)
  x = (rng.standard_normal((1024, d)) * scales @ basis + 10).astype(np.float32)
  exact, got = fit(x, rank=RANK), fit(x, rank=RANK, method="subspace")
  np.testing.assert_allclose(got.components, exact.components, atol=1e-4)
  np.testing.assert_allclose(got.scale, exact.scale, rtol=1e-5)
  # No steps is one product with the covariance: not there yet, so that the steps do count.
  rough = fit(x, rank=RANK, method="subspace", steps=0)
  assert np.abs(rough.scale - exact.scale).max() > 1e-4


def test_subspace_of_too_little_variance_is_cut_as_well(rng):
  x = (rng.standard_normal((1024, 5)) @ rng.standard_normal((5, 24))).astype(np.float32)
  got = fit(x, rank=RANK, method="subspace")
  assert (np.asarray(got.scale) > 0).tolist() == [True] * 5 + [False] * 3
  np.testing.assert_allclose(np.cov(apply(got, x)[:, :5].T), np.eye(5), atol=2e-5)


@functools.cache
def on_devices(devices, method):
  """A fit, its pool whitened by it, on so many devices."""
  rng = np.random.default_rng(1)
  x, valid = correlated(rng, n=2048, mean=100.0), rng.random(2048) < 0.9
  mesh = jsel.make_mesh(jax.devices()[:devices])

  @jax.jit
  def run(x, valid):
    got = jsel.shard(whitening.fit, mesh)(x, rank=RANK, method=method, valid=valid)
    return got, jsel.shard(whitening.apply, mesh)(got, x, valid=valid)

  return run(x, valid)


@pytest.mark.parametrize(
  ("devices", "method"), [(2, "eigh"), (4, "eigh"), (8, "eigh"), (8, "subspace")]
)
def test_bitwise_same_on_any_device_count(devices, method):
  assert_bitwise(on_devices(devices, method), on_devices(1, method))


def test_one_device_without_a_mesh_is_bitwise_the_same():
  rng = np.random.default_rng(1)
  x, valid = correlated(rng, n=2048, mean=100.0), rng.random(2048) < 0.9
  got = fit(x, rank=RANK, valid=valid)
  assert_bitwise((got, apply(got, x, valid=valid)), on_devices(1, "eigh"))


def test_padding_changes_nothing(rng):
  x = correlated(rng, n=700)
  padded = jsel.pad_rows(x, np.nan)
  valid = np.arange(1024) < 700
  got = fit(padded, rank=RANK, valid=valid)
  assert_bitwise(got, fit(jsel.pad_rows(x, 7.0), rank=RANK, valid=valid))
  y = apply(got, padded, valid=valid)
  # Not bitwise: a pool that is no multiple of 512 is projected in other tiles.
  np.testing.assert_allclose(y[:700], apply(got, x), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got.scale, fit(x, rank=RANK).scale, rtol=1e-5)
  assert not y[700:].any()


def test_parts_make_the_same_fit(rng):
  x = correlated(rng, mean=10.0)
  seen = moments.init(24, covariance=True)
  for part in np.split(x, 2):
    seen = moments.update(seen, part)
  got = whitening.from_moments(seen, rank=RANK)
  np.testing.assert_allclose(got.components, fit(x, rank=RANK).components, atol=1e-4)
  np.testing.assert_allclose(got.scale, fit(x, rank=RANK).scale, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["eigh", "subspace"])
def test_nan_is_not_hidden(rng, bad, method):
  x = correlated(rng)
  x[3, 4] = bad
  assert np.isnan(fit(x, rank=RANK, method=method).scale).all()


def test_nan_row_is_nan_alone(rng):
  x = correlated(rng)
  got = jax.block_until_ready(fit(x, rank=RANK))  # which may read x in place
  x[3, 4] = np.nan
  assert np.isnan(apply(got, x)).any(1).nonzero()[0].tolist() == [3]


def test_eager_equals_jit(rng):
  x = correlated(rng)
  eager = whitening.fit(x, rank=RANK)
  # The root and the sign may be fused otherwise.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), eager, fit(x, rank=RANK))


def test_pool_of_bytes_is_never_held_in_float(rng):
  x = rng.integers(0, 255, (2**14, 64)).astype(np.uint8)
  for compiled in (
    fit.lower(x, rank=RANK).compile(),
    apply.lower(whitening.Whitening(jnp.zeros(64), jnp.zeros((8, 64)), jnp.zeros(8)), x).compile(),
  ):
    # A float32 copy is four times that.
    assert compiled.memory_analysis().temp_size_in_bytes < x.size


def test_mistakes_are_named(rng):
  x = correlated(rng, n=40)
  for rank in (0, 25):
    with pytest.raises(ValueError, match=rf"rank must be in \[1, 24\].*got {rank}"):
      whitening.fit(x, rank=rank)
  with pytest.raises(ValueError, match="5 rows span at most 4 components, got rank=8"):
    whitening.fit(x, rank=8, valid=np.arange(40) < 5)
  with pytest.raises(ValueError, match='"eigh" or "subspace", got \'svd\''):
    whitening.fit(x, rank=2, method="svd")
  with pytest.raises(ValueError, match="negative option: eps=-1"):
    whitening.fit(x, rank=2, eps=-1)
  with pytest.raises(ValueError, match="have no covariance"):
    whitening.from_moments(moments.init(3), rank=2)
  with pytest.raises(ValueError, match=r"\[n, 24\] as the rows of the fit, got \(40, 3\)"):
    whitening.apply(whitening.fit(x, rank=2), x[:, :3])
