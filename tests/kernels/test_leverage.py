"""Leverage scores against a QR decomposition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import leverage, moments


def oracle(x):
  """Squared row lengths of an orthonormal basis of the columns of [1, x]."""
  x = x.astype(np.float64)
  design = np.column_stack([np.ones(len(x)), (x - x.mean(0)) / np.maximum(x.std(0), 1e-300)])
  u, s, _ = np.linalg.svd(design, full_matrices=False)
  return np.square(u[:, s > 1e-6 * s[0]]).sum(1)


@pytest.fixture
def x(rng):
  """Correlated columns in very different units, one far from 0, and a few rows that stand out."""
  x = rng.standard_normal((1024, 6)) @ rng.standard_normal((6, 6))
  x[::200] *= 10
  return (x * [1, 1e4, 1e-4, 1, 1, 1] + [0, 0, 0, 1e3, 0, 0]).astype("f4")


def test_scores_are_those_of_qr(x):
  q, _ = np.linalg.qr(np.column_stack([np.ones(1024), x.astype(np.float64) / x.std(0)]))
  np.testing.assert_allclose(oracle(x), np.square(q).sum(1), rtol=1e-9)
  # A column of 1e3 with deviations of 2 is given to 3e-5 of them.
  np.testing.assert_allclose(leverage.apply(leverage.fit(x), x), oracle(x), rtol=2e-4)


def test_columns_that_say_nothing_new_change_nothing(x):
  more = np.column_stack([x, np.full(1024, 7), x[:, 0], x[:, 0] - x[:, 4]]).astype("f4")
  found = leverage.apply(leverage.fit(more), more)
  np.testing.assert_allclose(found, oracle(x), rtol=2e-4)
  np.testing.assert_allclose(found.sum(), 7, rtol=1e-5)


def test_parts_padding_and_rows_of_no_fit(x):
  valid = np.arange(1024) < 1000
  padded = np.where(valid[:, None], x, 1e30).astype("f4")
  seen = moments.init(6, covariance=True)
  for part in (x[:100], x[100:612], x[612:1000]):
    seen = moments.update(seen, part)
  whole = leverage.apply(leverage.fit(padded, valid=valid), padded, valid=valid)
  np.testing.assert_allclose(whole[:1000], oracle(x[:1000]), rtol=2e-4)
  assert (np.asarray(whole[1000:]) == 0).all()
  in_parts = leverage.apply(leverage.from_moments(seen), x[:1000])
  np.testing.assert_allclose(in_parts, whole[:1000], rtol=1e-3)
  bad = x[:3].copy()
  bad[1, 2] = np.nan
  assert np.isnan(leverage.apply(leverage.from_moments(seen), bad)).tolist() == [False, True, False]
  assert np.isnan(leverage.apply(leverage.fit(bad), bad)).all()


def test_few_rows(rng):
  x = rng.standard_normal((5, 8)).astype("f4")
  np.testing.assert_allclose(leverage.apply(leverage.fit(x), x), 1, rtol=1e-4)
  assert leverage.apply(leverage.fit(x[:1]), x[:1]).tolist() == [1]


@pytest.mark.parametrize("devices", [2, 8])
def test_bitwise_the_same_on_any_device_count(x, devices):
  valid = np.arange(1024) < 1000
  over = lambda kernel, devices: jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))
  want = jax.device_get(over(leverage.fit, 1)(x, valid=valid))
  got = over(leverage.fit, devices)(x, valid=valid)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  of = lambda devices: over(leverage.apply, devices)(want, x, valid=valid)
  np.testing.assert_array_equal(of(devices), of(1))
  np.testing.assert_allclose(of(devices)[:1000], oracle(x[:1000]), rtol=2e-4)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: leverage.fit(x[0]), r"matrix \[n, d\], got shape \(2,\)"),
    (lambda x: leverage.fit(x, eps=-1.0), "at least 0, got -1.0"),
    (lambda x: leverage.from_moments(moments.init(2)), "have no covariance"),
    (lambda x: leverage.apply(leverage.fit(x), x[:, :1]), r"\[n, 2\] as the rows of the fit"),
    (lambda x: leverage.apply(leverage.fit(x), x, valid=x[0] > 0), r"valid has shape \(2,\)"),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.eye(8)[:, :2])
