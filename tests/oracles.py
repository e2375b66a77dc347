"""Float64 NumPy references, of the definitions, for tests of several kernels."""

import numpy as np


def largest_remainder(weights, k, capacity=None, lower=None):
  """Shares one remainder at a time, with fractions that are exact for integer weights."""
  groups = len(weights)
  capacity = [10**9] * groups if capacity is None else list(map(int, capacity))
  quotas = [0] * groups if lower is None else list(map(int, lower))
  while sum(quotas) < k:
    room = [g for g in range(groups) if quotas[g] < capacity[g]]
    weight = {g: int(weights[g]) for g in room}
    if not sum(weight.values()):
      weight = dict.fromkeys(room, 1)
    left, total = k - sum(quotas), sum(weight.values())
    share = {g: left * weight[g] // total for g in room}
    by_rest = sorted(room, key=lambda g: (-(left * weight[g] % total), g))
    for g in by_rest[: left - sum(share.values())]:
      share[g] += 1
    for g in room:
      quotas[g] = min(quotas[g] + share[g], capacity[g])
  return np.array(quotas)


def waterfill(counts, k):
  """One row at a time to the group that has fewest; of equals, to the largest."""
  quotas = np.zeros(len(counts), int)
  for _ in range(k):
    room = [g for g in range(len(counts)) if quotas[g] < counts[g]]
    g = min(room, key=lambda g: (quotas[g], -counts[g], g))
    quotas[g] += 1
  return quotas


def by_score(scores, valid=None):
  """Row ids by descending score, ties by id, without NaN and invalid rows."""
  scores = np.asarray(scores, np.float64)
  ids = np.flatnonzero(~np.isnan(scores) & (True if valid is None else valid))
  return ids[np.lexsort((ids, -scores[ids]))]


def budget_mask(scores, lengths, budgets, groups, last="over", valid=None):
  """Rows in the order of scores, each taken if its group's sum allows it."""
  mask, used, full = np.zeros(len(scores), bool), [0] * len(budgets), set()
  for i in by_score(scores, valid):
    g = groups[i]
    if not 0 <= g < len(budgets) or g in full:
      continue
    after = used[g] + int(lengths[i])
    fits = used[g] < budgets[g] if last == "over" else after <= budgets[g]
    mask[i], used[g] = fits, after
    if not fits:
      full.add(g)
  return mask


def inclusion_probabilities(weights, k):
  """min(1, c w) of sum k, rows passing 1 being fixed until none does."""
  weights = np.asarray(weights, np.float64)
  certain = np.zeros(len(weights), bool)
  while True:
    left = k - certain.sum()
    share = left * weights / max(weights[~certain].sum(), 1e-300)
    new = certain | ((weights > 0) & (share >= 1))
    if (new == certain).all() or left <= 0:
      return np.where(certain, 1, share)
    certain = new


def k_center(x, k, initial=None, valid=None):
  """Farthest first, from the row of lowest id or the centers given."""
  x = np.asarray(x, np.float64)
  open_ = np.isfinite(x).all(1) & (True if valid is None else valid)
  nearest = np.full(len(x), np.inf)
  for center in [] if initial is None else np.asarray(initial, np.float64):
    nearest = np.minimum(nearest, ((x - center) ** 2).sum(1))
  picks = []
  while len(picks) < k and open_.any():
    picks.append(int(np.argmax(np.where(open_, nearest, -np.inf))))
    nearest = np.minimum(nearest, ((x - x[picks[-1]]) ** 2).sum(1))
    open_[picks[-1]] = False
  return picks + [-1] * (k - len(picks))


def diversity_filter(x, scores, k, threshold, valid=None):
  """Accepts rows in the order of scores unless an accepted one is as similar."""
  x, picks = np.asarray(x, np.float64), []
  for i in by_score(scores, valid):
    if len(picks) < k and np.isfinite(x[i]).all() and (x[picks] @ x[i] < threshold).all():
      picks.append(int(i))
  return picks + [-1] * (k - len(picks))
