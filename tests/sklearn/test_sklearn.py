"""scikit-learn's own checks of its estimators, and what the facade gives against the kernels."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from jsel.kernels import greedy, kmeans, projection, whitening
from jsel.sklearn import KCenter, KMeans, RademacherProjection, Whitening

ESTIMATORS = [
  KMeans(n_clusters=2, random_state=0),
  Whitening(),
  RademacherProjection(n_components=3, random_state=0),
  KCenter(n_rows=2),
]


def expected_to_fail(estimator):
  if not isinstance(estimator, KMeans):
    return {}
  # scikit-learn expects the same of its own KMeans.
  reason = "the noise that seeds are drawn by belongs to row numbers, which repeating rows moves"
  return {"check_sample_weight_equivalence_on_dense_data": reason}


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_to_fail, xfail_strict=True)
def test_scikit_learn_checks(estimator, check):
  check(estimator)


@pytest.fixture
def x(rng):
  return rng.standard_normal((40, 5)).astype(np.float32)


def test_kmeans_is_the_kernel_with_the_key_of_its_seed(x):
  seeds = kmeans.plus_plus(jax.random.key(3), jnp.asarray(x), 2)
  want = kmeans.fit(jnp.asarray(x), seeds)
  got = KMeans(2, random_state=3).fit(x)
  np.testing.assert_array_equal(got.labels_, want.labels)
  np.testing.assert_allclose(got.cluster_centers_, want.centers, rtol=1e-6, atol=1e-7)  # rounding
  np.testing.assert_array_equal(got.predict(x), want.labels)
  np.testing.assert_allclose(got.score(x), -want.inertia, rtol=1e-6)


def test_whitening_is_the_kernel(x):
  fitted = whitening.fit(jnp.asarray(x), rank=3)
  want = whitening.apply(fitted, jnp.asarray(x))
  # Other tiles of rows: roundings of the covariance, divided by the smallest root of it.
  np.testing.assert_allclose(Whitening(3).fit_transform(x), want, rtol=0, atol=1e-5)


def test_projection_is_the_kernel(x):
  want = projection.rademacher(jax.random.key(7), jnp.asarray(x), 16)
  got = RademacherProjection(16, random_state=7).fit_transform(x)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)  # sums of five, in another order


def test_k_center_is_the_kernel_and_takes_rows_and_labels(x):
  want = greedy.k_center(jnp.asarray(x), 6).indices
  labels = np.arange(40)
  rows, taken = KCenter(6).fit_resample(x, labels)
  np.testing.assert_array_equal(taken, want)
  np.testing.assert_array_equal(rows, x[taken])


def test_they_go_through_a_pipeline_with_names(x):
  pipeline = make_pipeline(Whitening(3), KMeans(2, random_state=0)).fit(x)
  assert pipeline.transform(x).shape == (40, 2)
  assert pipeline.get_feature_names_out().tolist() == ["kmeans0", "kmeans1"]


@pytest.mark.parametrize(
  ("estimator", "message"),
  [
    (KMeans(41), r"n_clusters must be an int within \[1, n_samples=40\], got 41"),
    (KMeans(0), "got 0"),
    (KCenter(41), r"n_rows must be an int within \[1, n_samples=40\], got 41"),
    (KCenter(2.0), r"got 2\.0"),
    (Whitening(6), r"rank must be in \[1, 5\] for rows of 5 columns, got 6"),
    (RademacherProjection(0), "dim must be a static int of at least 1, got 0"),
  ],
)
def test_a_mistake_is_named(estimator, message, x):
  with pytest.raises(ValueError, match=message):
    estimator.fit(x)


@pytest.mark.parametrize(("weight", "message"), [(0.0, "one non-zero"), (-1.0, "Negative values")])
def test_weights_that_let_no_row_count_are_refused(weight, message, x):
  with pytest.raises(ValueError, match=message):
    KMeans(2).fit(x, sample_weight=np.full(40, weight))


def test_numbers_beyond_float32_are_refused():
  with pytest.raises(ValueError, match="too large for dtype"):
    KMeans(1).fit(np.full((3, 2), 1e39))


def test_import_jsel_needs_no_scikit_learn():
  program = "import sys, jsel, jsel.kernels.kmeans; print('sklearn' in sys.modules)"
  run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == "False"
