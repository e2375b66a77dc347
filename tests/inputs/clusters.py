"""Kernels of clusters, and what float64 says of them."""

import jax.numpy as jnp
import numpy as np

from jsel.kernels import kmeans, kmeans_minibatch, segments, silhouette
from tests.inputs.hostile import (
  IDS,
  close,
  counting,
  is_tame,
  normal,
  squares,
  usable,
  weights_of,
  wide,
  within,
)

CENTERS = np.array([[0, 0, 0], [1, 2, -3], [7, 0.5, 0], [-3, -3, 2]], np.float32)


def distances(x, centers):
  return ((wide(x)[:, None] - wide(np.asarray(centers))[None]) ** 2).sum(2)


def check_labels(i, labels, centers):
  counts = usable(i)
  assert (labels[~counts] == -1).all()
  gap = distances(np.where(counts[:, None], i.x, 0), centers)
  finite = np.isfinite(gap).all(0)
  if not finite.any():
    assert (labels == -1).all()
    return np.zeros(len(labels))
  best = gap[:, finite].min(1)
  own = gap[np.arange(len(gap)), np.maximum(labels, 0)]
  # Labels come of products with the centers, in float32.
  size = np.sqrt(squares(np.where(counts[:, None], i.x, 0)))
  reach = np.sqrt(squares(np.asarray(centers)[finite]).max())
  assert (own <= best + 1e-5 * (size + reach) * reach + 1e-5 * size)[counts].all()
  return own


def check_assign(i, got):
  labels, far = got
  own = check_labels(i, labels, CENTERS)
  counts = usable(i)
  # Squares below 1e-38 are 0 in float32.
  np.testing.assert_allclose(far[counts], own[counts], rtol=1e-5, atol=1e-36)
  assert np.isnan(far[~counts]).all()


def check_means(centers, labels, i, counts, k):
  """Means of clusters: a coordinate is rounded to 2**-33 of the largest of its column."""
  x, weights = wide(i.x), weights_of(i)
  for j in range(k):
    of = counts & (labels == j)
    if of.any():
      want = np.average(x[of], axis=0, weights=weights[of] / weights[of].max())
      scale = 1e-6 * np.abs(x[of]).max() + 2.0**-30 * np.abs(x[counts]).max()
      close(centers[j], want, scale, rtol=1)


def check_fit(i, got):
  own = check_labels(i, got.labels, got.centers)
  assert np.isfinite(got.centers).all()
  counts = counting(i)
  if bool(got.converged):
    check_means(got.centers, got.labels, i, counts, len(CENTERS))
  cost = (weights_of(i)[counts] * own[counts]).sum()
  # Centers are rounded as rows are.
  rounding = 1e-12 * (weights_of(i)[counts] * squares(i.x)[counts]).sum()
  close(got.inertia, cost, cost + rounding, rtol=1e-3)


def check_minibatch(i, got):
  counts = counting(i)
  labels = np.asarray(kmeans.assign(i.x, CENTERS, valid=i.valid)[0])
  check_means(got.centers, labels, i, counts, len(CENTERS))
  for j in range(len(CENTERS)):
    of = counts & (labels == j)
    close(got.weight[j], weights_of(i)[of].sum(), weights_of(i)[of].sum())
    if not of.any():
      np.testing.assert_array_equal(got.centers[j], CENTERS[j])


def check_segment_sum(i, got):
  """Each product is rounded to 2**-33 of the largest of its column."""
  with np.errstate(all="ignore"):
    part = (normal(i.weights)[:, None] * normal(i.x)).astype(np.float64)
  counts = (i.labels >= 0) & (i.labels < 6)
  for column in range(part.shape[1]):
    if not np.isfinite(part[counts, column]).all():
      assert np.isnan(got[:, column]).all()
      continue
    largest = np.abs(part[counts, column]).max(initial=0)
    for label in range(6):
      of = part[counts & (i.labels == label), column]
      close(got[label, column], of.sum(), 2.0**-28 * largest + 1e-6 * np.abs(of.sum()), rtol=1)


def silhouettes(x, labels):
  gap = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
  groups = np.unique(labels[labels >= 0])
  result = np.full(len(x), np.nan)
  for r in np.flatnonzero(labels >= 0):
    others = [gap[r, labels == g].mean() for g in groups if g != labels[r]]
    own = labels == labels[r]
    if others:
      a, b = gap[r, own].sum() / max(own.sum() - 1, 1), min(others)
      result[r] = 0 if own.sum() == 1 or max(a, b) == 0 else (b - a) / max(a, b)
  return result


def check_sampled(i, got):
  there = within(len(i.x))
  values = got.values[there]
  assert ((np.abs(values) <= 1) | np.isnan(values)).all()
  assert np.isnan(got.values[~there]).all()
  if is_tame(i):
    want = silhouettes(wide(i.x), np.where(i.labels < 6, i.labels, -1))[IDS[there]]
    np.testing.assert_allclose(values, want, atol=2e-3)


def check_simplified(i, got):
  assert ((np.abs(got.values) <= 1) | np.isnan(got.values)).all()
  counts = (squares(i.x) < 2.0**125) & (i.labels >= 0) & (i.labels < len(CENTERS))
  assert np.isnan(got.values[~counts]).all()


CASES = {
  "kmeans.assign": (lambda i: kmeans.assign(i.x, CENTERS, valid=i.valid), check_assign),
  "kmeans.fit": (
    lambda i: kmeans.fit(i.x, CENTERS, weights=i.weights, valid=i.valid),
    check_fit,
  ),
  "kmeans_minibatch": (
    lambda i: kmeans_minibatch.update(
      kmeans_minibatch.init(jnp.asarray(CENTERS)), i.x, weights=i.weights, valid=i.valid
    ),
    check_minibatch,
  ),
  "segment_sum": (
    lambda i: segments.segment_sum(i.x, i.labels, 6, weights=i.weights),
    check_segment_sum,
  ),
  "silhouette.sampled": (lambda i: silhouette.sampled(i.x, i.labels, IDS, 6), check_sampled),
  "silhouette.simplified": (
    lambda i: silhouette.simplified(i.x, i.labels, CENTERS),
    check_simplified,
  ),
}
