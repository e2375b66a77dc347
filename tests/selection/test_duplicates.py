"""Near-duplicates by embedding against all pairs."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jsel.selection import duplicates
from jsel.selection.duplicates import near_duplicates
from jsel.selection.pool import ArrayPart, Pool

DIGITS = load_digits().data.astype(np.float32)
THRESHOLD = 0.97


def pool_of(*arrays):
  return Pool([ArrayPart(x) for x in arrays])


def cosines(x):
  x = x.astype(np.float64)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return np.round(x @ x.T, 6)


def greedy(x, threshold, priority):
  """Rows that fall out, in one cell, and the most similar row that stays."""
  like, kept, out = cosines(x), [], {}
  for row in priority:
    near = [other for other in kept if like[row, other] >= threshold]
    if near:
      out[int(row)] = max(like[row, other] for other in near)
    else:
      kept.append(row)
  return out


@pytest.mark.parametrize("by_score", [False, True])
def test_one_cell_is_all_pairs(rng, by_score, monkeypatch):
  monkeypatch.setattr(duplicates, "TILE", 100)
  score = rng.permutation(len(DIGITS)).astype(float) if by_score else None
  priority = np.argsort(-score) if by_score else np.arange(len(DIGITS))
  expected = greedy(DIGITS, THRESHOLD, priority)
  found = near_duplicates(pool_of(DIGITS), THRESHOLD, cells=1, score=score)
  assert found.index.tolist() == sorted(expected)
  assert 100 < len(expected) < 1700
  np.testing.assert_allclose(found.similarity, [expected[i] for i in sorted(expected)], rtol=1e-6)
  like = cosines(DIGITS)[found.index, found.matched]
  np.testing.assert_allclose(found.similarity, like, rtol=1e-6)
  assert not np.isin(found.matched, found.index).any()


def test_few_pairs_are_missed_between_cells():
  """42 cells of 1,797 rows part pairs; what is found is true, and the rest is counted."""
  found = near_duplicates(pool_of(DIGITS), THRESHOLD)
  stay = np.setdiff1d(np.arange(len(DIGITS)), found.index)
  like = np.tril(cosines(DIGITS), -1)
  pairs = np.argwhere(like >= THRESHOLD)
  missed = np.isin(pairs, stay).all(axis=1).sum()
  # 37 of 1,144 on the machine that this was written on.
  assert 0 < missed < 0.08 * len(pairs)
  assert (like[found.index, found.matched] + like[found.matched, found.index] >= THRESHOLD).all()


def test_nothing_depends_on_parts_or_groups():
  whole = near_duplicates(pool_of(DIGITS), THRESHOLD, cells=20)
  cut = pool_of(DIGITS[:5], DIGITS[5:1000], DIGITS[1000:])
  for other in (
    near_duplicates(cut, THRESHOLD, cells=20),
    near_duplicates(pool_of(DIGITS), THRESHOLD, cells=20, group_bytes=4 * 64 * 150),
  ):
    for a, b in zip(whole[1:], other[1:], strict=True):
      np.testing.assert_array_equal(a, b)


def test_copies_of_any_length_are_found_at_1_and_the_best_stays():
  x = np.concatenate([DIGITS, 3 * DIGITS[::-1]])
  assert near_duplicates(pool_of(x), 1.0).index.tolist() == list(range(1797, 3594))
  score = np.r_[np.zeros(1797), np.ones(1796), np.nan]
  found = near_duplicates(pool_of(x), 1.0, score=score)
  # The copy of row 0 has no score, so that row 0 stays.
  assert found.index.tolist() == [*range(1, 1797), 3593]
  assert found.matched[-1] == 0


def test_rows_without_a_direction_or_not_eligible_are_left_alone():
  x = np.repeat(DIGITS[:3], 4, axis=0)
  x[4:6] = 0
  x[9] = np.nan
  eligible = np.ones(12, bool)
  eligible[0] = False
  found = near_duplicates(pool_of(x), 0.999, eligible=eligible)
  assert found.index.tolist() == [2, 3, 7, 10, 11]
  assert found.matched.tolist() == [1, 1, 6, 8, 8]
  assert not near_duplicates(pool_of(x), 0.9, eligible=np.zeros(12, bool)).index.size


def test_options_out_of_range_are_told():
  for threshold in (0, 1.5, float("nan")):
    with pytest.raises(ValueError, match=r"dedup must be in \(0, 1\], a cosine, got"):
      near_duplicates(pool_of(DIGITS), threshold)
  with pytest.raises(ValueError, match=r"dedup_cells must be at most the 1797 rows"):
    near_duplicates(pool_of(DIGITS), 0.9, cells=1798)
