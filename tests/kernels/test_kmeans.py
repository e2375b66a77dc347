"""k-means against float64 NumPy and scikit-learn, and against itself on several devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster

import jsel
from jsel.kernels import kmeans

PRECISIONS = ["float32", "bfloat16_3x", "bfloat16"]


def distances_oracle(x, centers):
  x, centers = x.astype(np.float64), np.asarray(centers, np.float64)
  return ((x[:, None] - centers[None]) ** 2).sum(2)


def lloyd_oracle(x, centers, steps, weights=None):
  x, centers = x.astype(np.float64), np.array(centers, np.float64)
  weights = np.ones(len(x)) if weights is None else weights.astype(np.float64)
  for _ in range(steps):
    labels = distances_oracle(x, centers).argmin(1)
    for j in range(len(centers)):
      if weights[labels == j].sum():
        centers[j] = np.average(x[labels == j], axis=0, weights=weights[labels == j])
  return centers, (weights * distances_oracle(x, centers).min(1)).sum()


def sharded(kernel, devices):
  return jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))


def assert_bitwise(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture
def blobs(rng):
  """1024 rows in 12 loose groups, far from the origin."""
  means = 4 * rng.standard_normal((12, 5))
  return (100 + means[rng.integers(0, 12, 1024)] + rng.standard_normal((1024, 5))).astype("f4")


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_iterations_are_those_of_float64(blobs, steps):
  result = kmeans.fit(blobs, blobs[:12], max_iters=steps)
  centers, inertia = lloyd_oracle(blobs, blobs[:12], steps)
  # One rounding of numbers near 100 to float32 is 4e-6.
  np.testing.assert_allclose(result.centers, centers, atol=1e-5)
  np.testing.assert_allclose(result.inertia, inertia, rtol=1e-6)
  assert int(result.iterations) == steps
  assert not bool(result.converged)


@pytest.mark.parametrize("precision", ["float32", "bfloat16_3x"])
def test_agrees_with_scikit_learn(blobs, precision):
  result = kmeans.fit(blobs, blobs[:12], precision=precision)
  peer = sklearn.cluster.KMeans(12, init=blobs[:12], n_init=1, tol=0, algorithm="lloyd").fit(blobs)
  assert bool(result.converged)
  np.testing.assert_array_equal(result.labels, peer.labels_)
  np.testing.assert_allclose(result.inertia, peer.inertia_, rtol=1e-5)  # its own sums are float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_labels_and_inertia_are_those_of_the_centers(blobs, precision):
  result = kmeans.fit(blobs, blobs[:12], precision=precision)
  distances = distances_oracle(blobs, result.centers)
  chosen = distances[np.arange(1024), result.labels]
  np.testing.assert_allclose(result.inertia, chosen.sum(), rtol=1e-6)
  # bfloat16 holds 2**-8: rows between two centers may go to the second.
  slack = {"float32": 1e-5, "bfloat16_3x": 1e-5, "bfloat16": 2.0}[precision]
  assert (chosen <= distances.min(1) + slack).all()


@pytest.mark.parametrize("doubtful", [0.0, 0.1, 0.3, 0.45, 1.0])
def test_labels_in_doubt_are_those_of_float32(rng, doubtful):
  """From no row between two centers to all of them: every capacity, and beyond the largest."""
  centers = 10 * rng.standard_normal((40, 16)).astype("f4")
  own = rng.integers(0, 40, 1000)
  x = centers[own] + 0.01 * rng.standard_normal((1000, 16)).astype("f4")
  # Halfway to another, closer to one of the two than bfloat16 can tell.
  other = (own + 1) % 40
  share = 0.5 + 1e-4 * rng.uniform(-1, 1, (1000, 1)).astype("f4")
  between = share * centers[own] + (1 - share) * centers[other]
  x = np.where(np.arange(1000)[:, None] < 1000 * doubtful, between, x).astype("f4")
  want = kmeans.assign(x, centers)[0]
  np.testing.assert_array_equal(kmeans.assign(x, centers, precision="bfloat16_3x")[0], want)
  rough = kmeans.assign(x, centers, precision="bfloat16")[0]
  assert (rough != want).any() == (doubtful > 0)


@pytest.mark.parametrize("doubtful", [0.05, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("among", [3, 6])
def test_more_than_two_centers_in_doubt(rng, doubtful, among):
  """Groups of centers that bfloat16 cannot tell apart and float32 can, and rows far from them."""
  middle = 10 * rng.standard_normal((40 // among, 16))
  centers = middle[:, None] + 0.03 * rng.standard_normal((len(middle), among, 16))
  centers = centers.reshape(-1, 16).astype("f4")
  own = np.where(rng.random(1000) < doubtful, rng.integers(0, len(centers), 1000), -1)
  alone = 100 * np.eye(16, dtype="f4")
  x = np.where(own[:, None] >= 0, centers[own], alone[rng.integers(0, 16, 1000)]).astype("f4")
  labels = kmeans.assign(x, np.concatenate([centers, alone]), precision="bfloat16_3x")[0]
  np.testing.assert_array_equal(np.asarray(labels)[own >= 0], own[own >= 0])
  assert (np.asarray(labels)[own < 0] >= len(centers)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_of_equal_centers_the_lowest_has_the_rows(blobs, precision):
  centers = np.concatenate([blobs[:5], blobs[:5]])
  labels = np.asarray(kmeans.assign(blobs, centers, precision=precision)[0])
  assert set(labels) == set(range(5))


def test_inertia_never_rises_and_more_centers_are_better(key, rng):
  x = rng.standard_normal((1024, 6)).astype("f4")
  best = {}
  for k in (32, 64):
    centers = kmeans.plus_plus(key, x, k)
    costs = [float(kmeans.fit(x, centers, max_iters=steps).inertia) for steps in range(12)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(costs))  # rounding
    assert costs[-1] < costs[0]
    best[k] = costs[-1]
  assert best[64] < best[32]


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_bitwise_the_same_on_any_device_count(key, blobs, devices):
  valid = np.arange(1024) < 1000
  weights = np.linspace(0, 3, 1024, dtype="f4")
  centers = kmeans.plus_plus(key, blobs, 12, weights=weights, valid=valid)
  centers = centers.at[3].set(1e4)  # a center without rows, to be relocated over devices
  want = kmeans.fit(blobs, centers, weights=weights, valid=valid)
  over = lambda kernel: sharded(kernel, devices)
  got = over(kmeans.fit)(blobs, centers, weights=weights, valid=valid)
  assert_bitwise(got, want)
  assert (np.bincount(np.asarray(got.labels)[valid], minlength=12) > 0).all()
  seeds = over(kmeans.plus_plus)(key, blobs, 12, weights=weights, valid=valid)
  assert_bitwise(seeds.at[3].set(1e4), centers)
  assert_bitwise(
    over(kmeans.assign)(blobs, centers, valid=valid), kmeans.assign(blobs, centers, valid=valid)
  )
  start = kmeans.init(12, 5)
  part = over(kmeans.update)(start, blobs, want.labels, weights=weights)
  assert_bitwise(part, kmeans.update(start, blobs, want.labels, weights=weights))


def test_padding_changes_nothing(key, blobs):
  x, valid = blobs[:600], np.arange(1024) < 600
  padded = np.where(valid[:, None], blobs, np.float32(1e30))
  centers = kmeans.plus_plus(key, x, 7)
  assert_bitwise(kmeans.plus_plus(key, padded, 7, valid=valid), centers)
  want, got = kmeans.fit(x, centers), kmeans.fit(padded, centers, valid=valid)
  np.testing.assert_array_equal(got.labels[:600], want.labels)
  assert (np.asarray(got.labels[600:]) == -1).all()
  assert np.isnan(kmeans.assign(padded, centers, valid=valid)[1][600:]).all()
  assert_bitwise(got.centers, want.centers)
  # Other rows share a leaf of the sum, which rounds otherwise.
  np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-6)


def test_weight_2_is_a_copy_and_weight_0_is_absence(blobs):
  weights = np.where(np.arange(1024) < 300, 2, np.where(np.arange(1024) < 900, 1, 0)).astype("f4")
  copied = np.concatenate([blobs[:900], blobs[:300]])
  want, got = kmeans.fit(copied, blobs[:9]), kmeans.fit(blobs, blobs[:9], weights=weights)
  assert_bitwise(got.centers, want.centers)  # the sums are exact, hence the same
  np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-6)
  np.testing.assert_array_equal(got.labels[:900], want.labels[:900])
  assert (np.asarray(got.labels[900:]) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_bad_rows_are_left_out(key, blobs, value):
  x = blobs.copy()
  x[::7, 2] = value
  kept = np.arange(1024) % 7 != 0
  got = kmeans.fit(x, blobs[1:6])
  want = kmeans.fit(blobs, blobs[1:6], valid=kept)
  assert_bitwise(got, want)
  assert (np.asarray(got.labels)[~kept] == -1).all()
  assert np.isfinite(kmeans.plus_plus(key, x, 40)).all()
  assert np.isnan(kmeans.plus_plus(key, np.full((8, 2), value, "f4"), 3)).all()


def test_ties_go_to_the_lowest_center():
  labels, distance2 = kmeans.assign(
    jnp.zeros((3, 2)), jnp.array([[2.0, 0], [0, 1], [1, 0], [0, 1]])
  )
  assert labels.tolist() == [1, 1, 1]
  assert distance2.tolist() == [1, 1, 1]


def test_a_center_that_is_not_finite_takes_no_row(blobs):
  centers = np.concatenate([np.full((1, 5), np.nan, "f4"), blobs[:4]])
  labels, distance2 = kmeans.assign(blobs, centers)
  np.testing.assert_array_equal(labels, 1 + distances_oracle(blobs, blobs[:4]).argmin(1))
  assert np.isfinite(distance2).all()
  assert np.isfinite(kmeans.fit(blobs, centers).centers).all()
  assert (np.asarray(kmeans.assign(blobs, centers[:1])[0]) == -1).all()


def test_empty_clusters_take_the_farthest_rows():
  x = np.array([[0], [1], [2], [50], [90]], "f4")
  centers = np.array([[0], [1e3], [1], [2e3]], "f4")  # 1 and 3 are empty; 90, 50 are farthest
  got = kmeans.fit(x, centers, max_iters=1).centers
  np.testing.assert_array_equal(got, [[0], [90], [1.5], [50]])


def test_fewer_distinct_rows_than_centers(key, rng):
  distinct = rng.standard_normal((5, 4)).astype("f4")
  x = np.repeat(distinct, [1, 7, 20, 30, 42], axis=0)
  centers = kmeans.plus_plus(key, x, 9)
  assert len(np.unique(centers[:5], axis=0)) == 5
  result = kmeans.fit(x, centers)
  assert bool(result.converged)
  assert len(np.unique(result.labels)) == 5
  np.testing.assert_allclose(result.inertia, 0, atol=1e-9)  # means of equal rows, rounded


def test_as_many_centers_as_rows(key, rng):
  x = rng.standard_normal((16, 3)).astype("f4")
  centers = kmeans.plus_plus(key, x, 16)
  assert len(np.unique(centers, axis=0)) == 16
  result = kmeans.fit(x, centers)
  assert sorted(result.labels.tolist()) == list(range(16))
  assert float(result.inertia) == 0


def test_seeds_are_drawn_by_squared_distance(key):
  x = np.array([[0], [1], [3], [3]], "f4")
  weights = np.array([1, 1, 1, 2], "f4")  # as five rows: 0, 1, 3, 3, 3
  seed = jax.jit(jax.vmap(lambda key: kmeans.plus_plus(key, x, 2, weights=weights)[:, 0]))
  drawn = np.asarray(seed(jax.random.split(key, 4000)))
  want = {(0, 1): 1 / 140, (0, 3): 27 / 140, (1, 0): 1 / 65, (1, 3): 12 / 65}
  want |= {(3, 0): 27 / 65, (3, 1): 12 / 65}
  for pair, probability in want.items():
    got = (drawn == pair).all(1).mean()
    # Five standard errors of 4000 draws.
    assert abs(got - probability) < 5 * np.sqrt(probability / 4000), pair


def test_parallel_seeds_are_as_good_as_those_drawn_one_by_one(rng):
  means = 20 * rng.standard_normal((24, 4))
  x = (means[rng.integers(0, 24, 2048)] + rng.standard_normal((2048, 4))).astype("f4")
  cost = lambda centers: distances_oracle(x, centers).min(1).sum()
  of = lambda seed: [cost(seed(jax.random.key(i), x, 24)) for i in range(24)]
  one_by_one, at_once = of(kmeans.plus_plus), of(kmeans.parallel)
  uniform = [cost(x[rng.permutation(2048)[:24]]) for _ in range(24)]
  # As good in the mean; a seeding's cost varies by half, so this ratio of means by 0.15.
  assert np.mean(at_once) < 1.35 * np.mean(one_by_one)
  assert np.mean(at_once) < 0.6 * np.mean(uniform)


def test_parallel_seeds_on_any_devices_with_padding_weights_and_bad_rows(key, blobs):
  x = blobs.copy()
  x[5], x[1010:] = np.nan, 1e30
  valid, weights = np.arange(1024) < 1000, np.where(np.arange(1024) < 40, 0, 2).astype("f4")
  options = {"rounds": 3, "capacity": 16, "weights": weights, "valid": valid}
  want = kmeans.parallel(key, x, 12, **options)
  for devices in (2, 8):
    assert_bitwise(sharded(kmeans.parallel, devices)(key, x, 12, **options), want)
  rows = (np.asarray(want)[:, None] == x[None]).all(2)
  assert (rows[:, (weights > 0) & valid].sum(1) == 1).all()
  assert len(np.unique(want, axis=0)) == 12


def test_parallel_seeds_of_few_rows(key, rng):
  distinct = rng.standard_normal((5, 4)).astype("f4")
  x = np.repeat(distinct, [1, 7, 20, 30, 42], axis=0)
  assert len(np.unique(kmeans.parallel(key, x, 9), axis=0)) == 5
  assert len(np.unique(kmeans.parallel(key, distinct, 5), axis=0)) == 5
  assert np.isnan(kmeans.parallel(key, np.full((8, 2), np.nan, "f4"), 3)).all()
  for options in ({"rounds": 0}, {"capacity": 101}, {"rounds": 1, "capacity": 3}):
    with pytest.raises(ValueError, match="capacity"):
      kmeans.parallel(key, x, 9, **options)


def test_passes_over_pieces_are_one_iteration(blobs):
  centers = blobs[:12]
  parts = []
  for piece in (blobs[:100], blobs[100:612], blobs[612:]):
    labels, _ = kmeans.assign(piece, centers)
    parts.append(kmeans.update(kmeans.init(12, 5), piece, labels))
  statistics = kmeans.merge(kmeans.merge(parts[0], parts[1]), parts[2])
  got = kmeans.finish(statistics, centers)
  want = kmeans.fit(blobs, centers, max_iters=1).centers
  # Each part is rounded once, as its sum of some 100 numbers near 100 is.
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert statistics.weight.sum() == 1024


def test_compiles_once_and_gives_what_eager_gives(blobs):
  traces = []

  @jax.jit
  def fit(x, centers):
    traces.append(1)
    return kmeans.fit(x, centers, max_iters=7)

  assert_bitwise(fit(blobs, blobs[:5]), kmeans.fit(blobs, blobs[:5], max_iters=7))
  fit(blobs, blobs[5:10])
  assert len(traces) == 1


def test_tolerance_stops_early(blobs):
  loose = kmeans.fit(blobs, blobs[:12], tol=0.5)
  tight = kmeans.fit(blobs, blobs[:12])
  assert bool(loose.converged)
  assert int(loose.iterations) < int(tight.iterations)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: kmeans.plus_plus(jax.random.key(0), x, 9), r"within \[1, 8\] for 8 rows, got 9"),
    (lambda x: kmeans.fit(x, jnp.zeros((9, 2))), r"within \[1, 8\] for 8 rows, got 9"),
    (lambda x: kmeans.fit(x, jnp.zeros((2, 3))), r"\[k, 2\] as x has it, got shape \(2, 3\)"),
    (lambda x: kmeans.fit(x, x, weights=jnp.ones(3)), r"weights has shape \(3,\), x has 8"),
    (lambda x: kmeans.fit(x, x, tol=-1.0), r"must not be negative, got 100 and -1.0"),
    (lambda x: kmeans.assign(x[0], x), r"matrix \[n, d\], got shape \(2,\)"),
    (lambda x: kmeans.assign(x, x, precision="half"), r"precision must be one of .* got 'half'"),
    (lambda x: kmeans.update(kmeans.init(2, 3), x, x), r"\[n, 3\] as the statistics are"),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.zeros((8, 2)))


def test_sharded_rows_must_be_padded():
  with pytest.raises(ValueError, match="pad"):
    sharded(kmeans.assign, 2)(np.zeros((8, 2), "f4"), np.zeros((2, 2), "f4"))


def test_one_far_center_does_not_blur_the_others(key):
  x = np.array([[0.0], [1.0], [2.0], [1e9]], "f4")
  np.testing.assert_array_equal(kmeans.assign(x, x)[0], np.arange(4))
  assert float(kmeans.fit(x, kmeans.plus_plus(key, x, 4)).inertia) == 0


def test_one_huge_weight_leaves_the_others_their_means():
  x = np.array([[0.0], [1.0], [10.0], [12.0], [50.0]], "f4")
  weights = np.array([1, 1, 1, 3, 3e38], "f4")
  got = kmeans.fit(x, x[[0, 2, 4]], weights=weights).centers
  np.testing.assert_allclose(got.ravel(), [0.5, 11.5, 50], rtol=1e-6)
  assert len(np.unique(kmeans.parallel(jax.random.key(0), x, 5, weights=weights))) == 5
  weights[4] = np.inf
  infinite = kmeans.fit(x, x[[0, 2, 4]], weights=weights)
  without = kmeans.fit(x, x[[0, 2, 4]], weights=weights, valid=np.arange(5) < 4)
  np.testing.assert_array_equal(infinite.centers, without.centers)


def optimum_in_one_dimension(x, k):
  """Least cost of k clusters of numbers, by a programme: each is an interval of the sorted."""
  x = np.sort(np.asarray(x, np.float64))
  one, two = (np.concatenate([[0], np.cumsum(x**power)]) for power in (1, 2))
  cost = lambda i, j: two[j] - two[i] - (one[j] - one[i]) ** 2 / (j - i)
  best = np.array([0.0] + [np.inf] * len(x))
  for _ in range(k):
    best = np.array(
      [0.0] + [min(best[i] + cost(i, j) for i in range(j)) for j in range(1, len(x) + 1)]
    )
  return best[-1]


def test_no_start_is_below_the_optimum_and_the_best_reaches_it(rng):
  apart = np.repeat([-40.0, -11, 0, 9, 60], [3, 20, 9, 15, 17]) + rng.standard_normal(64)
  for x, reaches in ((apart, True), (rng.standard_normal(64), False)):
    x = x.astype("f4")
    optimum = optimum_in_one_dimension(x, 5)
    costs = [
      float(kmeans.fit(x[:, None], kmeans.plus_plus(jax.random.key(s), x[:, None], 5)).inertia)
      for s in range(12)
    ]
    assert min(costs) >= optimum * (1 - 1e-5)  # rounding
    if reaches:
      assert min(costs) <= optimum * (1 + 1e-4)
