"""Mini-batch k-means against a float64 loop over rows, and in quality against scikit-learn."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster

import jsel
from jsel.kernels import kmeans, kmeans_minibatch


def cost(x, centers):
  return (
    ((x.astype(np.float64)[:, None] - np.asarray(centers, np.float64)) ** 2).sum(2).min(1).sum()
  )


def sculley_oracle(centers, batches):
  """Row after row, with steps of 1 / count, as the paper's algorithm 1."""
  centers = np.array(centers, np.float64)
  counts = np.zeros(len(centers))
  for batch in batches:
    batch = batch.astype(np.float64)
    nearest = ((batch[:, None] - centers) ** 2).sum(2).argmin(1)
    for row, j in zip(batch, nearest, strict=True):
      counts[j] += 1
      centers[j] += (row - centers[j]) / counts[j]
  return centers, counts


@pytest.fixture
def blobs(rng):
  """2048 rows in 12 loose groups, far from the origin."""
  means = 4 * rng.standard_normal((12, 5))
  return (100 + means[rng.integers(0, 12, 2048)] + rng.standard_normal((2048, 5))).astype("f4")


def test_batches_are_the_authors_loop_over_rows(blobs):
  centers = blobs[:12]
  batches = [blobs[:7], *np.split(blobs[512:], 3), blobs[7:8]]  # fewer than the centers, and one
  state = kmeans_minibatch.init(centers)
  for batch in batches:
    state = kmeans_minibatch.update(state, batch)
  want, counts = sculley_oracle(centers, batches)
  # A rounding of numbers near 100 is 4e-6, a batch.
  np.testing.assert_allclose(state.centers, want, atol=3e-5)
  np.testing.assert_array_equal(state.weight, counts)


def test_as_good_as_scikit_learn(key, rng):
  means = 3 * rng.standard_normal((24, 6))
  x = (means[rng.integers(0, 24, 4096)] + rng.standard_normal((4096, 6))).astype("f4")
  own, peer = [], []
  for seed in range(4):
    centers = kmeans.plus_plus(jax.random.key(seed), x[:1024], 24)
    state = kmeans_minibatch.init(centers)
    for _ in range(5):
      for batch in np.split(rng.permutation(4096), 16):
        state = kmeans_minibatch.update(state, x[batch])
    own.append(cost(x, state.centers))
    assert own[-1] < 0.95 * cost(x, centers)
    fitted = sklearn.cluster.MiniBatchKMeans(
      24,
      init=np.asarray(centers),
      n_init=1,
      batch_size=256,
      max_iter=5,
      max_no_improvement=None,
      reassignment_ratio=0,
      random_state=seed,
    )
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of threads
      peer.append(cost(x, fitted.fit(x).cluster_centers_))
  assert np.mean(own) < 1.05 * np.mean(peer)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_bitwise_the_same_on_any_device_count(blobs, devices):
  x, valid = blobs.copy(), np.arange(2048) < 2000
  x[5], weights = np.nan, np.linspace(0, 3, 2048, dtype="f4")
  over = jsel.shard(kmeans_minibatch.update, jsel.make_mesh(jax.devices()[:devices]))
  state = want = kmeans_minibatch.init(blobs[6:18])
  for part in (x, x[::-1].copy()):
    state = over(state, part, weights=weights, valid=valid)
    want = kmeans_minibatch.update(want, part, weights=weights, valid=valid)
  jax.tree.map(np.testing.assert_array_equal, state, want)


def test_weight_2_is_a_copy_and_weight_0_and_bad_rows_are_absence(blobs):
  weights = np.where(np.arange(1024) < 300, 2, np.where(np.arange(1024) < 900, 1, 0)).astype("f4")
  copied = np.concatenate([blobs[:900], blobs[:300]])
  start = kmeans_minibatch.init(blobs[:9])
  want = kmeans_minibatch.update(start, copied)
  got = kmeans_minibatch.update(start, blobs[:1024], weights=weights)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  x, kept = blobs.copy(), np.arange(2048) % 7 != 0
  x[::7] = np.resize(np.array([np.nan, np.inf, 1e30], "f4"), (293, 1))
  got = kmeans_minibatch.update(start, x)
  jax.tree.map(np.testing.assert_array_equal, got, kmeans_minibatch.update(start, x, valid=kept))
  assert float(got.weight.sum()) == kept.sum()


def test_ties_centers_without_rows_and_centers_that_are_no_numbers():
  start = kmeans_minibatch.init(jnp.array([[1.0], [jnp.nan], [-1.0], [1.0], [50.0]]))
  state = kmeans_minibatch.update(start, jnp.array([[0.0], [3.0]]))
  np.testing.assert_array_equal(state.centers.ravel(), [1.5, np.nan, -1, 1, 50])
  assert state.weight.tolist() == [2, 0, 0, 0, 0]


def test_one_row_and_as_many_rows_as_centers(rng):
  x = rng.standard_normal((16, 3)).astype("f4")
  state = kmeans_minibatch.update(kmeans_minibatch.init(x), x)
  np.testing.assert_array_equal(state.centers, x)
  state = kmeans_minibatch.update(kmeans_minibatch.init(x[:2]), x[5:6])
  assert state.weight.sum() == 1
  np.testing.assert_array_equal(np.asarray(state.centers)[np.asarray(state.weight) > 0], x[5:6])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda s, x: kmeans_minibatch.init(x[0]), r"centers must be \[k, d\].* got shape \(2,\)"),
    (lambda s, x: kmeans_minibatch.update(s, x[:, :1]), r"x must be \[n, 2\] as the centers"),
    (lambda s, x: kmeans_minibatch.update(s, x, weights=x[0]), r"weights has shape \(2,\)"),
    (lambda s, x: kmeans_minibatch.update(s, x, precision="half"), r"precision must be one of"),
  ],
)
def test_mistakes_are_named(call, message):
  x = jnp.zeros((8, 2))
  with pytest.raises(ValueError, match=message):
    call(kmeans_minibatch.init(x), x)
