"""Samples against their probabilities, and estimates against the sums they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import sampling
from jsel.kernels.sampling import inclusion_probabilities, systematic, with_replacement
from tests import oracles

N = 1024


@pytest.fixture
def weights(rng):
  w = rng.lognormal(sigma=2, size=N).astype("f4")
  w[[3, 900, 17, 18]] = np.nan, np.inf, 0, -1
  w[500:520] = w[480:500]
  return w


def clean(w):
  return np.where(np.isfinite(w) & (w > 0), w, 0)


@pytest.mark.parametrize("k", [1, 40, 700, 1018])
def test_probabilities_are_capped_and_sum_to_k(weights, k):
  got = np.asarray(inclusion_probabilities(weights, k)).astype("f8")
  np.testing.assert_allclose(got, oracles.inclusion_probabilities(clean(weights), k), atol=2e-6)
  np.testing.assert_allclose(got.sum(), k, rtol=1e-6)
  assert ((got > 0) == (clean(weights) > 0)).all()


@pytest.mark.parametrize("k", [1, 40, 700, 1018])
def test_systematic_has_k_different_rows(weights, k):
  for seed in range(5):
    got = systematic(jax.random.key(seed), weights, k)
    assert len(set(got.indices.tolist())) == k
    assert (np.diff(got.indices) > 0).all()
    np.testing.assert_allclose(got.weights, 1 / got.probabilities, rtol=1e-6)


def test_more_than_there_are(weights):
  few = np.arange(N) < 20
  got = systematic(jax.random.key(0), weights, 30, valid=few)
  assert got.indices.tolist() == sorted(set(range(20)) - {3, 17, 18}) + [-1] * 13
  assert got.weights.tolist() == [1] * 17 + [0] * 13
  nothing = with_replacement(jax.random.key(0), weights, 3, valid=np.zeros(N, bool))
  assert nothing.indices.tolist() == [-1] * 3
  assert not nothing.weights.any()


@pytest.mark.parametrize("draw", [systematic, with_replacement])
def test_estimates_are_unbiased(rng, draw):
  w = rng.lognormal(size=60).astype("f4")
  y = rng.random(60)
  keys = jax.random.split(jax.random.key(1), 4000)
  got = jax.jit(jax.vmap(lambda key: draw(key, w, 12)))(keys)
  sums = (np.asarray(got.weights, "f8") * y[np.asarray(got.indices)]).sum(1)
  assert abs(sums.mean() - y.sum()) < 4 * sums.std() / np.sqrt(len(keys))
  p = w.astype("f8") / w.sum(dtype="f8") * 12
  expected = oracles.inclusion_probabilities(w, 12) if draw is systematic else p
  rate = np.bincount(np.asarray(got.indices).ravel(), minlength=60) / len(keys)
  assert (np.abs(rate - expected) < 5 * np.sqrt(np.maximum(expected, 1e-3) / len(keys))).all()


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("draw", [systematic, with_replacement])
def test_same_on_any_device_count(weights, devices, draw):
  valid = np.arange(N) < 1000
  sharded = jsel.shard(draw, jsel.make_mesh(jax.devices()[:devices]))
  got = sharded(jax.random.key(3), weights, 100, valid=valid)
  want = draw(jax.random.key(3), weights, 100, valid=valid)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_other_values_compile_nothing(weights):
  systematic(jax.random.key(0), weights, 10)
  before = sampling._systematic._cache_size()
  systematic(jax.random.key(1), weights + 1, 10)
  assert sampling._systematic._cache_size() == before


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda key: systematic(key, jnp.ones((2, 2)), 1), r"weights and valid must be \[n\]"),
    (lambda key: with_replacement(key, jnp.ones(3), 4), r"k must be within \[1, 3\]"),
    (lambda key: inclusion_probabilities(jnp.ones(3), 0), r"k must be within \[1, 3\]"),
  ],
)
def test_mistakes_are_named(key, call, message):
  with pytest.raises(ValueError, match=message):
    call(key)
