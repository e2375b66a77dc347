"""scores against SciPy and NumPy in float64, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import jsel
from jsel.kernels import scores

rank01 = jax.jit(scores.rank01, static_argnames=("method", "bins"))
zscore = jax.jit(scores.zscore)


def rank01_oracle(x, valid=None):
  """Average ranks by SciPy; NaN below all others, all equal."""
  valid = np.ones(x.shape, bool) if valid is None else valid
  kept = x[valid].astype(np.float64)
  # -inf is taken by NaN: everything else is first replaced by its dense rank.
  dense = np.searchsorted(np.unique(kept[~np.isnan(kept)]), kept) + 1
  ranks = stats.rankdata(np.where(np.isnan(kept), 0, dense), method="average")
  result = np.zeros(x.shape)
  result[valid] = (ranks - 1) / max(valid.sum() - 1, 1)
  return result


CASES = {
  "distinct": lambda rng: rng.permutation(1024).astype(np.float32) - 500,
  "ties": lambda rng: rng.integers(-3, 4, 1024).astype(np.float32),
  "equal": lambda rng: np.full(1024, 2.5, np.float32),
  "extremes": lambda rng: rng.choice(
    np.float32([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan, -np.nan]), 1024
  ),
  "integers": lambda rng: rng.choice(np.int32([-(2**31), 2**31 - 1, 2**24, 2**24 + 1]), 1024),
  "half": lambda rng: rng.standard_normal(1024).astype(np.float16),
}


@pytest.fixture(params=CASES)
def ranked(request, rng):
  return CASES[request.param](rng)


def test_ranks_match_scipy(ranked, rng):
  # One division in float32: half a unit in the last place.
  np.testing.assert_allclose(rank01(ranked), rank01_oracle(ranked), rtol=6e-8)
  valid = rng.random(1024) < 0.7
  np.testing.assert_allclose(rank01(ranked, valid=valid), rank01_oracle(ranked, valid), rtol=6e-8)


@pytest.mark.parametrize("method", ["exact", "histogram"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_ranks_are_bitwise_the_same_on_any_device_count(rng, devices, method):
  x = np.concatenate([CASES[name](rng) for name in ("distinct", "ties", "equal", "extremes")])
  x, valid = rng.permutation(x), rng.random(4096) < 0.7
  sharded = jsel.shard(scores.rank01, jsel.make_mesh(jax.devices()[:devices]))
  got = jax.jit(lambda x, valid: sharded(x, valid=valid, method=method))(x, valid)
  np.testing.assert_array_equal(got, rank01(x, valid=valid, method=method))
  if devices == 8:  # the count of rows is then a constant of the program
    got = jax.jit(lambda x: sharded(x, method=method))(x)
    np.testing.assert_array_equal(got, rank01(x, valid=np.ones(4096, bool), method=method))


@pytest.mark.parametrize("method", ["exact", "histogram"])
def test_padding_has_no_rank(ranked, method):
  few = ranked[:700]
  for fill in (0, 100, np.iinfo(np.int32).max if ranked.dtype == np.int32 else np.nan):
    padded = jsel.pad_rows(few, fill)
    got = rank01(padded, valid=np.arange(1024) < 700, method=method)
    np.testing.assert_array_equal(got[:700], rank01(few, method=method))
    assert not got[700:].any()


def test_ranks_end_at_exactly_0_and_1():
  for n in (2, 50, 98):
    got = rank01(np.arange(n, dtype=np.float32))
    assert got[0] == 0
    assert got[-1] == 1


@pytest.mark.parametrize("method", ["exact", "histogram"])
def test_single_row_and_no_row_have_rank_0(method):
  x = np.float32([3, 4, 5])
  assert not rank01(x[:1], method=method).any()
  assert not rank01(x, valid=np.array([False, True, False]), method=method).any()
  assert not rank01(x, valid=np.zeros(3, bool), method=method).any()


@pytest.mark.parametrize("bins", [1, 64])
def test_histogram_is_off_by_half_the_share_of_a_bin(rng, bins):
  x = rng.standard_normal(5000).astype(np.float32)
  largest = np.histogram(x, bins)[0].max() / (x.size - 1)
  got = rank01(x, method="histogram", bins=bins)
  assert np.abs(got - rank01_oracle(x)).max() <= largest / 2
  order = np.argsort(x)
  assert (np.diff(got[order]) >= 0).all()
  assert np.unique(got).size <= bins


def test_histogram_of_few_integers_is_exact(rng):
  x = rng.integers(0, 8, 1024).astype(np.float32)
  got = rank01(x, method="histogram", bins=8)
  np.testing.assert_array_equal(got, rank01(x))


def test_histogram_sets_nan_and_infinities_apart():
  x = np.float32([np.inf, 3e38, np.nan, -3e38, -np.inf, 0])
  np.testing.assert_array_equal(rank01(x, method="histogram"), rank01(x))
  np.testing.assert_array_equal(rank01(x), np.float32([5, 4, 0, 2, 1, 3]) / np.float32(5))


def test_zscore_matches_float64(rng):
  x = (1e3 + 5 * rng.standard_normal(1024)).astype(np.float32)
  valid = rng.random(1024) < 0.7
  want = np.where(valid, (x - x[valid].mean(dtype=float)) / x[valid].std(dtype=float), 0)
  # The mean, a float32 near 1e3, is off by up to 3e-5, a standard deviation is 5.
  np.testing.assert_allclose(zscore(x, valid=valid), want, atol=2e-5)


def test_zscore_of_equal_scores_is_0():
  x = np.full(1024, 0.1, np.float32)
  assert not zscore(x, valid=np.arange(1024) < 777).any()
  assert not zscore(x, valid=np.zeros(1024, bool)).any()


def test_zscore_leaves_out_what_is_not_finite(rng):
  x = rng.standard_normal(1024).astype(np.float32)
  finite = ~np.isin(np.arange(1024), [0, 101, 602])
  want = zscore(x, valid=finite)
  x[~finite] = [np.nan, np.inf, -np.inf]
  got = zscore(x, valid=np.ones(1024, bool))
  np.testing.assert_array_equal(got[~finite], x[~finite])
  np.testing.assert_array_equal(got[finite], want[finite])


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_zscores_combined_are_bitwise_the_same_on_any_device_count(rng, devices):
  x, y = rng.standard_normal((2, 1024)).astype(np.float32)
  valid = rng.random(1024) < 0.7
  mesh = jsel.make_mesh(jax.devices()[:devices])

  def both(zscore, combine):
    return lambda x, y: combine((zscore(x, valid=valid), zscore(y, valid=valid)), (0.3, -0.7))

  got = jax.jit(both(jsel.shard(scores.zscore, mesh), jsel.shard(scores.combine, mesh)))(x, y)
  np.testing.assert_array_equal(got, jax.jit(both(scores.zscore, scores.combine))(x, y))


def test_combine_is_the_weighted_sum(rng):
  parts = tuple(rng.standard_normal((3, 100)).astype(np.float32))
  weights = np.float32([0.5, -2, 0.1])
  got = scores.combine(parts, weights)
  np.testing.assert_allclose(got, np.einsum("mn,m->n", parts, weights.astype(float)), atol=1e-6)


def test_weight_of_0_leaves_a_score_out():
  x, broken = np.float32([1, 2]), np.float32([np.nan, np.inf])
  assert scores.combine((x, broken), (2.0, 0.0)).tolist() == [2, 4]
  assert np.isnan(scores.combine((x, broken), (2.0, 1.0))[0])


@pytest.fixture(params=[1.0, 30.0, 1e4])
def logits(request, rng):
  return (request.param * rng.standard_normal((64, 10)) + 1e3).astype(np.float32)


def test_el2n_matches_float64(logits, rng):
  labels = rng.integers(0, 10, 64).astype(np.int32)
  labels[:32] = logits[:32].argmax(1)  # half of them right, where 1 - p would cancel
  p = special.softmax(logits.astype(np.float64), axis=1)
  others = np.where(np.eye(10)[labels] == 1, 0, p)
  want = np.sqrt((others**2).sum(1) + others.sum(1) ** 2)
  np.testing.assert_allclose(
    want, np.linalg.norm(p - np.eye(10)[labels], axis=1), atol=1e-12
  )  # the definition
  # Squares of probabilities below 1e-19 vanish in float32.
  np.testing.assert_allclose(scores.el2n(logits, labels), want, rtol=1e-5, atol=1e-18)


def test_el2n_of_a_label_that_is_none_is_nan():
  got = scores.el2n(jnp.zeros((3, 2)), jnp.array([-1, 0, 2]))
  assert np.isnan(got).tolist() == [True, False, True]


def test_margin_matches_float64(logits):
  top = np.sort(special.softmax(logits.astype(np.float64), axis=1), axis=1)
  np.testing.assert_allclose(scores.margin(logits), top[:, -1] - top[:, -2], rtol=1e-5)


def test_margin_of_a_tie_is_0():
  assert scores.margin(jnp.array([[2.0, 1.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [0, 0]


def test_entropy_matches_float64(logits):
  want = stats.entropy(special.softmax(logits.astype(np.float64), axis=1), axis=1)
  # Of an entropy near 0, log 1 + small is rounded to 6e-8.
  np.testing.assert_allclose(scores.entropy(logits), want, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("function", [scores.margin, scores.entropy])
def test_excluded_classes_count_as_impossible(rng, function):
  x = rng.standard_normal((8, 5)).astype(np.float32)
  with_excluded = np.insert(x, 2, -np.inf, axis=1)
  np.testing.assert_allclose(function(with_excluded), function(x), rtol=1e-6)


@pytest.mark.parametrize("function", [scores.margin, scores.entropy])
def test_nan_logit_makes_its_row_nan(function):
  got = function(jnp.array([[0.0, 1.0, 2.0], [0.0, jnp.nan, 1.0]]))
  assert np.isnan(got).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_of_16_bits_are_those_values(logits, dtype):
  x = jnp.asarray(logits - 1e3).astype(dtype)
  labels = jnp.zeros(64, jnp.int32)
  for function in (scores.margin, scores.entropy, lambda x: scores.el2n(x, labels)):
    np.testing.assert_array_equal(function(x), function(x.astype(jnp.float32)))


def test_scores_of_logits_split_over_devices(rng):
  x = rng.standard_normal((512, 10)).astype(np.float32)
  labels = rng.integers(0, 10, 512).astype(np.int32)
  mesh = jsel.make_mesh()
  for function, arguments in (
    (scores.el2n, (x, labels)),
    (scores.margin, (x,)),
    (scores.entropy, (x,)),
  ):
    got = jax.jit(jsel.shard(function, mesh))(*arguments)
    # An exponential is compiled for the shape: a few units in the last place.
    np.testing.assert_allclose(got, function(*arguments), rtol=1e-6, atol=1e-7)


def test_eager_equals_jit(rng):
  x = rng.standard_normal(300).astype(np.float32)
  np.testing.assert_array_equal(scores.rank01(x), rank01(x))


def test_mistakes_are_named():
  x = jnp.ones(4)
  with pytest.raises(ValueError, match=r"scores must be \[n\].*got float32 \(2, 2\)"):
    scores.rank01(jnp.ones((2, 2)))
  with pytest.raises(ValueError, match=r"got int8 \(3,\)"):
    scores.zscore(jnp.ones(3, jnp.int8))
  with pytest.raises(ValueError, match=r"valid has shape \(3,\), scores have \(4,\)"):
    scores.rank01(x, valid=jnp.ones(3, bool))
  with pytest.raises(ValueError, match='"exact" or "histogram", got \'sort\''):
    scores.rank01(x, method="sort")
  with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
    scores.rank01(x, method="histogram", bins=0)
  with pytest.raises(ValueError, match="list or tuple of vectors"):
    scores.combine(jnp.ones((2, 4)), (1.0, 1.0))
  with pytest.raises(ValueError, match=r"one length, got shapes \[\(4,\), \(3,\)\]"):
    scores.combine((x, x[:3]), (1.0, 1.0))
  with pytest.raises(ValueError, match=r"2 scores need as many weights, got shape \(1,\)"):
    scores.combine((x, x), (1.0,))
  with pytest.raises(ValueError, match=r"labels must be int32\[3\]"):
    scores.el2n(jnp.ones((3, 2)), jnp.ones(3))
  with pytest.raises(ValueError, match=r"two classes, got logits of shape \(3, 1\)"):
    scores.margin(jnp.ones((3, 1)))
  with pytest.raises(ValueError, match=r"matrix \[n, c\], got shape \(4,\)"):
    scores.entropy(x)
