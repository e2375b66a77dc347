"""What is of an evaluation set: runs of words against sets of them, cosines against all pairs."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jsel.data.ngrams import words
from jsel.selection.decontaminate import overlapping, similar
from jsel.selection.pool import ArrayPart, Pool

VOCABULARY = [f"v{n}" for n in range(3000)]


def runs(text, n):
  found = words(text)
  return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def make_texts(rng, count, least=20, most=80):
  return [" ".join(rng.choice(VOCABULARY, rng.integers(least, most))) for _ in range(count)]


@pytest.mark.parametrize("n", [8, 13])
def test_runs_of_words_are_found_whatever_is_around_them(rng, n):
  evaluation, pool = make_texts(rng, 40), make_texts(rng, 200)
  for row in range(0, 200, 5):  # of 6 to 16 words, so that some are too short to count
    source = evaluation[row % 40].upper().split()
    start, length = int(rng.integers(0, 4)), int(rng.integers(6, 17))
    pool[row] += " - " + ",  ".join(source[start : start + length]) + "!"
  found = overlapping(pool, evaluation, n, eligible=np.ones(200, bool))
  owner = {}
  for row, text in enumerate(evaluation):
    for run in runs(text, n):
      owner.setdefault(run, row)
  expected = [
    (row, next(owner[run] for run in runs(text, n) if run in owner))
    for row, text in enumerate(pool)
    if any(run in owner for run in runs(text, n))
  ]
  assert 5 < len(expected) < 40
  assert list(zip(found.index.tolist(), found.matched.tolist(), strict=True)) == expected
  shares = [np.mean([run in owner for run in runs(pool[row], n)]) for row, _ in expected]
  np.testing.assert_allclose(found.similarity, shares, rtol=1e-6)


def test_short_evaluation_texts_are_looked_for_whole():
  evaluation = ["What is the capital of France?", "yes", "", "!!"]
  pool = [
    "question: what is the capital of france -- Paris",
    "what is the capital of",
    "Yes!",
    "yes it is",
    "",
  ]
  found = overlapping(pool, evaluation, eligible=np.ones(5, bool))
  assert found.index.tolist() == [0, 2]
  assert found.matched.tolist() == [0, 1]
  eligible = np.array([False, True, True, True, True])
  assert overlapping(pool, evaluation, eligible=eligible).index.tolist() == [2]
  assert not overlapping(pool, [], eligible=np.ones(5, bool)).index.size
  with pytest.raises(ValueError, match=r"exclude_ngram must be at least 1 word"):
    overlapping(pool, evaluation, 0, eligible=np.ones(5, bool))


def test_cosines_are_those_of_all_pairs():
  x = load_digits().data.astype(np.float32)
  evaluation, rows = x[1700:], x[:1700].copy()
  rows[3], rows[5] = 7 * evaluation[4], np.nan
  eligible = np.ones(1700, bool)
  eligible[10:200] = False
  unit = lambda a: np.float64(a) / np.linalg.norm(np.float64(a), axis=1, keepdims=True)
  like = np.round(unit(rows) @ unit(evaluation).T, 6)
  expected = np.flatnonzero((like.max(1) >= 0.96) & eligible)
  for parts in ([rows], [rows[:7], rows[7:]]):
    pool = Pool([ArrayPart(part) for part in parts])
    found = similar(pool, evaluation, 0.96, eligible=eligible)
    np.testing.assert_array_equal(found.index, expected)
    np.testing.assert_allclose(found.similarity, like[expected].max(1), rtol=1e-6)
    np.testing.assert_allclose(like[found.index, found.matched], found.similarity, rtol=1e-6)
  assert 50 < len(expected) < 1600
  assert 3 in similar(pool, evaluation, 1.0, eligible=eligible).index


def test_another_width_and_thresholds_out_of_range_are_told(rng):
  pool = Pool([ArrayPart(np.eye(4, dtype=np.float32))])
  eligible = np.ones(4, bool)
  with pytest.raises(ValueError, match=r"excluded has shape \(2, 3\), the pool 4 columns: embed"):
    similar(pool, np.ones((2, 3), np.float32), 0.9, eligible=eligible)
  with pytest.raises(ValueError, match=r"exclude_similarity must be in \(0, 1\]"):
    similar(pool, np.ones((2, 4), np.float32), 1.1, eligible=eligible)
