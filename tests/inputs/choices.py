"""Kernels that choose rows, and what float64 says of their choice."""

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import greedy, kmeans, quotas, sampling, topk
from jsel.kernels.facility_location import facility_location
from tests import oracles
from tests.inputs.hostile import counting, normal, usable, weights_of

KEY = jax.random.key(0)
PENALTY = np.float32(0.1)
CAPS = (3, 0, 100, 1)
BUDGETS = (2**31, 5, 2**40, 0)


def padded(ids, k):
  return [*map(int, ids[:k]), *[-1] * (k - len(ids[:k]))]


def mask_of(ids, n):
  mask = np.zeros(n, bool)
  mask[np.asarray(ids, int)] = True
  return mask


def check_top_k(i, got):
  want = oracles.by_score(i.scores, i.valid)[: i.k]
  np.testing.assert_array_equal(got.indices, padded(np.sort(want), i.k))
  # -0.0 comes back as 0.0, which is equal to it.
  np.testing.assert_array_equal(got.values[: len(want)], i.scores[np.sort(want)])


def check_sorted(i, got):
  want = oracles.by_score(i.scores, i.valid)[: i.k]
  np.testing.assert_array_equal(got.indices, padded(want, i.k))
  np.testing.assert_array_equal(got.values[: len(want)], i.scores[want])


def check_mask(i, got):
  want = oracles.by_score(i.scores, i.valid)[: i.k]
  np.testing.assert_array_equal(got, mask_of(want, len(i.scores)))


def check_compact(i, got):
  ids = np.flatnonzero(i.valid)
  np.testing.assert_array_equal(got[0], [*ids[: i.k], *[0] * (i.k - len(ids[: i.k]))])
  assert int(got[1]) == len(ids)


def check_gumbel(i, got):
  scores = i.scores.astype(np.float64)
  drawable = np.flatnonzero((scores > -np.inf) & i.valid)
  drawn = np.asarray(got.indices)[np.asarray(got.indices) >= 0]
  assert len(drawn) == len(np.unique(drawn)) == min(i.k, len(drawable))
  assert set(drawn) <= set(drawable)
  certain = np.flatnonzero((scores == np.inf) & i.valid)
  assert set(certain[: i.k]) <= set(drawn)


def check_penalized(i, got):
  with np.errstate(invalid="ignore"):
    scores = normal(i.scores.astype(np.float32) - PENALTY * i.usage.astype(np.float32))
  want = np.sort(oracles.by_score(scores, i.valid)[: i.k])
  np.testing.assert_array_equal(got.indices, padded(want, i.k))
  np.testing.assert_array_equal(got.values[: len(want)], scores[want])


def check_budget(i, got, budgets=BUDGETS, lengths=None, last="over"):
  lengths = i.usage if lengths is None else lengths
  want = oracles.budget_mask(i.scores, lengths, budgets, i.labels, last, i.valid)
  np.testing.assert_array_equal(got, want)


def check_bounds(i, got):
  order = [r for r in oracles.by_score(i.scores, i.valid) if 0 <= i.labels[r] < 6]
  np.testing.assert_array_equal(got, mask_of(order[: i.k], len(i.scores)))


def bounds(i):
  eligible = i.valid & ~np.isnan(i.scores.astype(np.float32)) & (i.labels >= 0)
  k = min(i.k, int(eligible.sum()))
  n = len(i.scores)
  return quotas.bounds_mask(i.scores, i.labels, k, lower=[0] * 6, upper=[n] * 6, valid=i.valid)


def of_group(i):
  return i.usage[:6] % 1000


def check_largest_remainder(i, got):
  want = oracles.largest_remainder(of_group(i), i.k)
  np.testing.assert_array_equal(got, want)


def check_waterfill(i, got):
  k = min(i.k, int(of_group(i).sum()))
  np.testing.assert_array_equal(got, oracles.waterfill(of_group(i), k))


def check_inclusion(i, got):
  weights = weights_of(i)
  k = min(i.k, int((weights > 0).sum()))
  want = oracles.inclusion_probabilities(weights, k) if k else np.zeros(len(weights))
  # A row of any weight has at least 2**-30 of the largest.
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert (np.asarray(got)[weights == 0] == 0).all()
  if (np.asarray(got) == 1).sum() < k:
    assert (np.asarray(got)[weights > 0] > 0).all()


def check_systematic(i, got):
  weights = weights_of(i)
  drawn = np.asarray(got.indices)[np.asarray(got.indices) >= 0]
  assert len(drawn) == len(np.unique(drawn)) == min(i.k, int((weights > 0).sum()))
  assert (weights[drawn] > 0).all()
  check_inverse(got, 1)


def check_with_replacement(i, got):
  weights = weights_of(i)
  drawn = np.asarray(got.indices)
  if not weights.any():
    assert (drawn == -1).all()
    return
  want = weights[drawn] / weights.sum()
  assert (weights[drawn] > 0).all()
  np.testing.assert_allclose(got.probabilities, want, rtol=1e-5, atol=2.0**-28)
  check_inverse(got, i.k)


def check_inverse(got, draws):
  drawn = np.asarray(got.indices) >= 0
  probability, weight = np.asarray(got.probabilities), np.asarray(got.weights)
  np.testing.assert_allclose(weight[drawn] * draws * probability[drawn], 1, rtol=1e-6)
  assert (weight[~drawn] == 0).all()


def check_seeds(i, got):
  got = np.asarray(got)
  rows = i.x.astype(np.float32)[counting(i)]
  if not len(rows):
    assert np.isnan(got).all()
    return
  # A cast from float64 by XLA leaves 0 of subnormal numbers, one by NumPy leaves them.
  same = lambda rows: (got[:, None] == rows[None]).all(2)
  assert (same(rows) | same(normal(rows))).any(1).all()
  # Rows that are less than 1e-22 apart are equal.
  distinct = lambda rows: len(np.unique(np.where(np.abs(rows) < 1e-22, 0, rows), axis=0))
  assert distinct(got) == min(i.k, distinct(rows))


def gains_of_centers(x, eligible, picked):
  gaps = ((x[:, None] - x[None, picked]) ** 2).sum(2)
  return np.where(eligible, gaps.min(1, initial=np.inf), -1)


def check_greedy(i, got, gains, eligible):
  """Each pick has the highest gain there is, as far as float32 can tell."""
  picks = [int(p) for p in np.asarray(got.indices) if p >= 0]
  assert len(picks) == len(set(picks)) == min(i.k, int(eligible.sum()))
  assert (np.asarray(got.indices)[len(picks) :] == -1).all()
  for j, pick in enumerate(picks):
    gain = np.where(mask_of(picks[:j], len(eligible)) | ~eligible, -np.inf, gains(picks[:j]))
    best = gain.max()
    if np.isfinite(best):
      assert gain[pick] >= best - 1e-5 * max(1, abs(best))
    np.testing.assert_allclose(got.values[j], gain[pick], rtol=1e-4, atol=1e-4)


def check_k_center(i, got):
  x = np.where(usable(i)[:, None], i.x, 0).astype(np.float64)
  check_greedy(i, got, lambda picks: gains_of_centers(x, usable(i), picks), usable(i))


def unit(i):
  x = i.x.astype(np.float32).astype(np.float64)
  with np.errstate(all="ignore"):
    length = np.sqrt((x**2).sum(1, keepdims=True))
    return np.where(length > 0, x / np.where(length > 0, length, 1), x).astype(np.float32)


def check_facility_location(i, got):
  x = unit(i).astype(np.float64)
  covers = np.isfinite(x).all(1) & i.valid
  x = np.where(covers[:, None], x, 0)
  quality = i.scores.astype(np.float64)
  eligible = covers & ~np.isnan(quality)
  like = x[covers] @ x.T

  def gains(picks):
    covered = np.max(like[:, picks], axis=1, initial=-1)
    return 0.7 * np.maximum(like - covered[:, None], 0).sum(0) + np.float32(0.3) * quality

  check_greedy(i, got, gains, eligible)


def check_diversity(i, got):
  x = np.where(usable(i)[:, None], i.x, np.nan)
  want = oracles.diversity_filter(x, i.scores, i.k, 2.75, i.valid)
  np.testing.assert_array_equal(got.indices, want)


CASES = {
  "compact": (lambda i: topk.compact(i.valid, i.k), check_compact),
  "top_k": (lambda i: topk.top_k(i.scores, i.k, valid=i.valid), check_top_k),
  "top_k/sorted": (
    lambda i: topk.top_k(i.scores, i.k, valid=i.valid, sorted=True),
    check_sorted,
  ),
  "top_k_mask": (lambda i: topk.top_k_mask(i.scores, i.k, valid=i.valid), check_mask),
  "gumbel_top_k": (lambda i: topk.gumbel_top_k(KEY, i.scores, i.k, valid=i.valid), check_gumbel),
  "penalized_top_k": (
    lambda i: topk.penalized_top_k(i.scores, i.usage, i.k, penalty=0.1, valid=i.valid),
    check_penalized,
  ),
  "cap_mask": (
    lambda i: quotas.cap_mask(i.scores, i.labels, CAPS, valid=i.valid),
    lambda i, got: check_budget(i, got, CAPS, np.ones(len(i.scores), int)),
  ),
  "budget_mask": (
    lambda i: quotas.budget_mask(i.scores, i.usage, BUDGETS, groups=i.labels, valid=i.valid),
    check_budget,
  ),
  "budget_mask/under": (
    lambda i: quotas.budget_mask(
      i.scores, i.usage, BUDGETS, groups=i.labels, last="under", valid=i.valid
    ),
    lambda i, got: check_budget(i, got, last="under"),
  ),
  "bounds_mask": (bounds, check_bounds),
  "largest_remainder": (
    lambda i: quotas.largest_remainder(of_group(i), i.k),
    check_largest_remainder,
  ),
  "waterfill": (
    lambda i: quotas.waterfill(of_group(i), min(i.k, int(of_group(i).sum()))),
    check_waterfill,
  ),
  "inclusion_probabilities": (
    lambda i: sampling.inclusion_probabilities(i.weights, i.k, valid=i.valid),
    check_inclusion,
  ),
  "systematic": (
    lambda i: sampling.systematic(KEY, i.weights, i.k, valid=i.valid),
    check_systematic,
  ),
  "with_replacement": (
    lambda i: sampling.with_replacement(KEY, i.weights, i.k, valid=i.valid),
    check_with_replacement,
  ),
  "plus_plus": (
    lambda i: kmeans.plus_plus(KEY, i.x, i.k, weights=i.weights, valid=i.valid),
    check_seeds,
  ),
  "parallel": (
    lambda i: kmeans.parallel(KEY, i.x, i.k, weights=i.weights, valid=i.valid),
    check_seeds,
  ),
  "k_center": (lambda i: greedy.k_center(i.x, i.k, valid=i.valid), check_k_center),
  "facility_location": (
    lambda i: facility_location(
      jnp.asarray(unit(i)), i.k, quality=i.scores, quality_weight=0.3, valid=i.valid
    ),
    check_facility_location,
  ),
  "diversity_filter": (
    lambda i: greedy.diversity_filter(i.x, i.scores, i.k, threshold=2.75, valid=i.valid),
    check_diversity,
  ),
}
