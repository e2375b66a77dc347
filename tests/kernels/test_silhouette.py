"""Silhouettes against scikit-learn and float64 NumPy, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

import jsel
from jsel.kernels import kmeans, silhouette


def simplified_oracle(x, labels, centers):
  """Of the definition, in float64; labels of -1 and NaN rows have none."""
  x, centers = x.astype(np.float64), np.asarray(centers, np.float64)
  used = labels >= 0
  sizes = np.bincount(labels[used], minlength=len(centers))
  distance = np.sqrt(((x[:, None] - centers[None]) ** 2).sum(2))
  own = np.maximum(labels, 0)
  inside = distance[np.arange(len(x)), own]
  distance[np.arange(len(x)), own] = np.inf
  outside = distance[:, sizes > 0].min(1)
  score = (outside - inside) / np.maximum(inside, outside)
  return np.where(used, np.where(sizes[own] == 1, 0, score), np.nan)


@pytest.fixture
def blobs(rng):
  """1024 rows in 12 loose groups, far from the origin, and their groups."""
  means = 4 * rng.standard_normal((12, 5))
  labels = rng.integers(0, 12, 1024).astype(np.int32)
  return (100 + means[labels] + rng.standard_normal((1024, 5))).astype("f4"), labels


def test_all_rows_are_those_of_scikit_learn(blobs):
  x, labels = blobs
  labels[labels == 3] = 4  # a label of no row
  labels[7] = 3  # and then of one
  want = sklearn.metrics.silhouette_samples(x.astype(np.float64), labels)
  # More than are held at a time.
  index = np.concatenate([np.arange(1024), np.arange(100)]).astype(np.int32)
  found = silhouette.sampled(x, labels, index, 14)
  # Distances are some 10, their squares rounded to 2**-23 of some 200.
  np.testing.assert_allclose(found.values, want[index], atol=2e-6)
  assert found.values[7] == 0
  np.testing.assert_allclose(found.mean, want[index].mean(), atol=2e-6)


def test_simplified_is_its_definition(blobs):
  x, labels = blobs
  labels[7], labels[9:40] = 12, -1
  centers = np.concatenate([kmeans.fit(x, x[:12], max_iters=3).centers, x[7:8], x[:1], x[:1]])
  found = silhouette.simplified(x, labels, centers)  # the last two centers have no rows
  want = simplified_oracle(x, labels, centers)
  np.testing.assert_allclose(found.values, want, atol=2e-6)
  np.testing.assert_allclose(found.mean, np.nanmean(want), atol=2e-6)
  assert found.values[7] == 0


def test_a_sample_is_unbiased_for_all(blobs, rng):
  x, labels = blobs
  labels = rng.permutation(labels)
  labels[:700] = blobs[1][:700]
  whole = silhouette.sampled(x, labels, np.arange(1024, dtype=np.int32), 12)
  means = [
    float(silhouette.sampled(x, labels, rng.permutation(1024)[:64].astype("i4"), 12).mean)
    for _ in range(30)
  ]
  error = np.std(whole.values) / np.sqrt(64 * 30)
  assert abs(np.mean(means) - float(whole.mean)) < 4 * error
  assert np.std(means) > error


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_bitwise_the_same_on_any_device_count(blobs, devices):
  x, labels = blobs
  labels[1000:], x[3] = -1, np.nan
  index = np.arange(0, 1024, 11, dtype=np.int32)
  over = lambda kernel, devices: jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))
  for kernel, arguments in (
    (silhouette.sampled, (x, labels, index, 12)),
    (silhouette.simplified, (x, labels, x[4:16])),
  ):
    got, want = over(kernel, devices)(*arguments), kernel(*arguments)
    # Tiles of another size; a row's squared length is rounded to 1e-5, its distances are 5.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), got, want)
    jax.tree.map(np.testing.assert_array_equal, got, over(kernel, 1)(*arguments))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_padding_and_bad_rows_change_nothing(blobs, value):
  x, labels = blobs
  want_rows, want_labels = x[:900].copy(), labels[:900]
  x[900:] = value
  labels[950:] = -1
  index = np.array([0, 5, 899, 900, 1000, -1, 1024], np.int32)
  got = silhouette.sampled(x, labels, index, 12)
  want = sklearn.metrics.silhouette_samples(want_rows.astype(np.float64), want_labels)
  np.testing.assert_allclose(got.values[:3], want[index[:3]], atol=2e-6)
  assert np.isnan(got.values[3:]).all()
  np.testing.assert_allclose(got.mean, want[index[:3]].mean(), atol=2e-6)
  simple = silhouette.simplified(x, labels, want_rows[:12])
  whole = silhouette.simplified(want_rows, want_labels, want_rows[:12])
  np.testing.assert_allclose(simple.values[:900], whole.values, atol=1e-6)
  assert np.isnan(simple.values[900:]).all()


def test_equal_rows_are_at_no_distance(rng):
  distinct = (1e3 + rng.standard_normal((4, 96))).astype("f4")
  x, labels = np.repeat(distinct, 64, axis=0), np.repeat(np.arange(4, dtype=np.int32), 64)
  index = np.arange(256, dtype=np.int32)
  assert (np.asarray(silhouette.sampled(x, labels, index, 4).values) == 1).all()
  assert (np.asarray(silhouette.simplified(x, labels, distinct).values) == 1).all()
  # All rows equal: neither nearer to their own nor to others.
  same = np.repeat(distinct[:1], 256, axis=0)
  assert (np.asarray(silhouette.sampled(same, labels, index, 4).values) == 0).all()
  assert (np.asarray(silhouette.simplified(same, labels, distinct[[0, 0, 0, 0]]).values) == 0).all()


def test_as_many_clusters_as_rows_and_one_alone(rng):
  x = rng.standard_normal((16, 3)).astype("f4")
  index = np.arange(16, dtype=np.int32)
  each = silhouette.sampled(x, index, index, 16), silhouette.simplified(x, index, x)
  one = silhouette.sampled(x, 0 * index, index, 1), silhouette.simplified(x, 0 * index, x[:2])
  row = (
    silhouette.sampled(x[:1], index[:1], index[:1], 3),
    silhouette.simplified(x[:1], index[:1], x[:2]),
  )
  for found in each:
    assert float(found.mean) == 0
  for found in (*one, *row):
    assert np.isnan(found.values).all()
    assert np.isnan(found.mean)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x, i: silhouette.sampled(x[0], i, i, 2), r"matrix \[n, d\], got shape \(2,\)"),
    (lambda x, i: silhouette.sampled(x, i[:3], i, 2), r"labels must be int32 \[8\], got int32"),
    (lambda x, i: silhouette.sampled(x, i, x, 2), r"index must be int32 \[m\].* got float32"),
    (lambda x, i: silhouette.sampled(x, i, i, 0), r"static int of at least 1, got 0"),
    (lambda x, i: silhouette.simplified(x, i, x[:, :1]), r"\[k, 2\] as x has it, got shape \(8, 1"),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.zeros((8, 2)), jnp.zeros(8, jnp.int32))
