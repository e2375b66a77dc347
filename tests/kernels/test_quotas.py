"""Shares and masks against loops that give out one row after another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import quotas as module
from jsel.kernels.quotas import bounds_mask, budget_mask, cap_mask, largest_remainder, waterfill
from tests import oracles

N = 1024


def test_shares_are_those_of_a_loop(rng):
  for _ in range(30):
    weights = rng.integers(0, 9, 6).astype("i4")
    capacity = rng.integers(0, 12, 6).astype("i4")
    lower = np.minimum(capacity, rng.integers(0, 3, 6)).astype("i4")
    k = int(rng.integers(lower.sum(), capacity.sum() + 1))
    got = largest_remainder(weights, k, capacity=capacity, lower=lower)
    np.testing.assert_array_equal(got, oracles.largest_remainder(weights, k, capacity, lower))
    np.testing.assert_array_equal(
      largest_remainder(weights, k), oracles.largest_remainder(weights, k)
    )


def test_large_shares_are_exact(rng):
  weights = rng.integers(0, 2**28, 7).astype("i4")
  for k in (0, 1, 2_000_000_011):
    got = largest_remainder(weights, k)
    np.testing.assert_array_equal(got, oracles.largest_remainder(weights, k, [2**31] * 7))
  shares = rng.random(1000).astype("f4")
  got = np.asarray(largest_remainder(shares, 70_000))
  assert got.sum() == 70_000
  assert np.abs(got - 70_000 * shares.astype("f8") / shares.sum(dtype="f8")).max() < 1.01


def test_weights_that_are_nothing_share_alike():
  assert largest_remainder(np.zeros(3, np.float32), 5).tolist() == [2, 2, 1]
  assert largest_remainder(np.float32([np.nan, 1, 1]), 4).tolist() == [0, 2, 2]


def test_level_is_that_of_a_loop(rng):
  for _ in range(30):
    counts = rng.integers(0, 9, 6).astype("i4")
    k = int(rng.integers(0, counts.sum() + 1))
    np.testing.assert_array_equal(waterfill(counts, k), oracles.waterfill(counts, k))


@pytest.fixture
def pool(rng):
  scores = rng.integers(0, 40, N).astype("f4")  # with ties
  scores[[3, 900]] = np.nan
  groups = rng.integers(-1, 5, N).astype("i4")  # 4 is outside
  lengths = rng.integers(0, 50, N).astype("i4")
  return scores, groups, lengths, rng.random(N) < 0.9


@pytest.mark.parametrize("devices", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("last", ["over", "under"])
def test_budgets_are_kept_as_by_a_loop(pool, devices, last):
  scores, groups, lengths, valid = pool
  on = lambda f: jsel.shard(f, jsel.make_mesh(jax.devices()[:devices])) if devices else f
  budgets = np.array([300, 0, 2500, 10**6])
  got = on(budget_mask)(scores, lengths, budgets, groups=groups, last=last, valid=valid)
  want = oracles.budget_mask(scores, lengths, budgets, groups, last, valid)
  np.testing.assert_array_equal(got, want)
  caps = np.array([7, 0, 50, 2000], np.int32)
  got = on(cap_mask)(scores, groups, caps, valid=valid)
  want = oracles.budget_mask(scores, np.ones(N), caps, groups, "under", valid)
  np.testing.assert_array_equal(got, want)


def test_tokens_beyond_int32():
  scores, lengths = np.arange(9, dtype=np.float32), np.full(9, 2**30, np.int32)
  got = budget_mask(scores, lengths, [5 * 2**30 + 1])
  np.testing.assert_array_equal(got, np.arange(9) >= 3)
  got = budget_mask(scores, lengths, [5 * 2**30 + 1], last="under")
  np.testing.assert_array_equal(got, np.arange(9) >= 4)


def test_bounds_give_the_highest_sum(rng):
  for _ in range(20):
    scores, groups = rng.random(9).astype("f4"), rng.integers(0, 3, 9).astype("i4")
    counts = np.bincount(groups, minlength=3)
    lower = np.minimum(counts, rng.integers(0, 2, 3))
    upper = lower + rng.integers(0, 4, 3)
    k = int(rng.integers(lower.sum(), np.minimum(upper, counts).sum() + 1))
    mask = np.asarray(bounds_mask(scores, groups, k, lower=lower, upper=upper))
    sums = [
      scores[list(pick)].sum(dtype="f8")
      for pick in itertools.combinations(range(9), k)
      if all(lower <= (size := np.bincount(groups[list(pick)], minlength=3))) and all(size <= upper)
    ]
    assert mask.sum() == k
    np.testing.assert_allclose(scores[mask].sum(dtype="f8"), max(sums, default=0), rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_bounds_on_devices(pool, devices):
  scores, groups, _, valid = pool
  options = {"lower": (5, 9, 0, 0), "upper": (50, 9, 30, 400), "valid": valid}
  sharded = jsel.shard(bounds_mask, jsel.make_mesh(jax.devices()[:devices]))
  want = bounds_mask(scores, groups, 200, **options)
  np.testing.assert_array_equal(sharded(scores, groups, 200, **options), want)
  assert want.sum() == 200


def test_other_values_compile_nothing(pool):
  scores, groups, lengths, valid = pool
  budget_mask(scores, lengths, [9, 8], groups=groups, valid=valid)
  largest_remainder(jnp.arange(4), 5)
  before = module._budget_mask._cache_size(), module._largest_remainder._cache_size()
  budget_mask(scores + 1, lengths, [3, 2], groups=groups, valid=~valid)
  largest_remainder(jnp.arange(4)[::-1], 6)
  assert (module._budget_mask._cache_size(), module._largest_remainder._cache_size()) == before


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda s, g: largest_remainder(s[None], 1), r"weights must be numbers \[g\]"),
    (lambda s, g: largest_remainder(s, 9, capacity=g), "9 rows cannot be given out: .* 0 to 3"),
    (lambda s, g: largest_remainder(s, 9, lower=g, capacity=g - 1), "group 0 cannot get"),
    (lambda s, g: waterfill(g, 4), "4 rows cannot be given out: the groups take 0 to 3"),
    (lambda s, g: waterfill(s, 4), r"counts must be int32 \[g\]"),
    (lambda s, g: cap_mask(s, s, [1]), r"groups must be int32\(3,\)"),
    (lambda s, g: budget_mask(s, g, [1.5]), "budgets must be integers"),
    (lambda s, g: budget_mask(s, g, [1], last="no"), 'last must be "over" or "under"'),
    (lambda s, g: bounds_mask(s, g, 2, lower=[0, 4], upper=[3, 3]), "group 1 cannot get"),
    (lambda s, g: bounds_mask(s, g, 2, lower=[0, 0], upper=[3, 1]), "2 rows cannot be given"),
    (lambda s, g: bounds_mask(s, g, 2, lower=[0], upper=[3, 1]), "lower and upper must be"),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.ones(3, np.float32), np.ones(3, np.int32))
