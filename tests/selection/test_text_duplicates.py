"""Near-duplicates by words against all pairs of sets."""

import numpy as np
import pytest

from jsel.data.ngrams import gram_hashes, word_hashes, words
from jsel.selection.text_duplicates import near_duplicate_texts

pytest.importorskip("datasketch", reason="pip install 'jsel[dedup]'")


def grams(text, n=5):
  found = words(text)
  n = min(n, len(found))
  return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)} if n else set()


def similarity(a, b):
  a, b = grams(a), grams(b)
  return len(a & b) / len(a | b) if a | b else 0.0


def changed(rng, text, count):
  pieces = text.split()
  for at in rng.choice(len(pieces), count, replace=False):
    pieces[at] = f"new{rng.integers(1000)}"
  return " ".join(pieces)


def make_texts(rng, count):
  """Texts of 60 words, half of them changed in 0 to 4 words from another."""
  texts = [" ".join(f"v{n}" for n in rng.integers(0, 5000, 60)) for _ in range(count // 2)]
  texts += [changed(rng, texts[n], int(rng.integers(0, 5))) for n in range(count // 2)]
  return [texts[n] for n in rng.permutation(count)]


@pytest.mark.parametrize("by_score", [False, True])
def test_what_is_found_is_true_and_little_is_missed(rng, by_score):
  texts, threshold = make_texts(rng, 300), 0.7
  score = rng.permutation(300).astype(float) if by_score else None
  place = -score if by_score else np.arange(300)
  found = near_duplicate_texts(texts, threshold, eligible=np.ones(300, bool), score=score)
  pairs = {
    (i, j) for i in range(300) for j in range(i) if similarity(texts[i], texts[j]) >= threshold
  }
  assert len(pairs) > 50
  for row, matched, like in zip(*found[1:], strict=True):
    assert (max(row, matched), min(row, matched)) in pairs
    assert place[matched] < place[row]
    np.testing.assert_allclose(like, similarity(texts[row], texts[matched]), rtol=1e-6)
  # Each is found with a probability of 0.95 or more.
  missed = [pair for pair in pairs if not np.isin(pair, found.index).any()]
  assert len(missed) < 0.1 * len(pairs)


def test_copies_but_for_case_and_punctuation_are_found_at_1():
  texts = ["What is the time, now?", "what is the TIME now", "no", "No!", "?!", "...", "other"]
  found = near_duplicate_texts(texts, 1.0, eligible=np.ones(7, bool))
  assert found.index.tolist() == [1, 3]
  assert found.matched.tolist() == [0, 2]
  eligible = np.array([False, True, True, False, True, True, True])
  assert not near_duplicate_texts(texts, 1.0, eligible=eligible).index.size


def test_grams_are_the_same_numbers_for_the_same_words(rng):
  texts = [" ".join(rng.choice(["a", "b", "c"], 40)) for _ in range(5)]
  for n in (1, 2, 5, 41):
    ours = [gram_hashes(word_hashes(text), n).tolist() for text in texts]
    numbers = {}
    for text, hashes in zip(texts, ours, strict=True):
      found = words(text)
      runs = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
      assert len(runs) == len(hashes)
      for run, number in zip(runs, hashes, strict=True):
        assert numbers.setdefault(run, number) == number
    assert len(set(numbers.values())) == len(numbers)


def test_options_and_a_missing_package_are_told(monkeypatch):
  with pytest.raises(ValueError, match=r"dedup_text must be in \(0, 1\]"):
    near_duplicate_texts(["a"], 0, eligible=np.ones(1, bool))
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"datasketch is not installed.*pip install 'jsel\[dedup\]'"):
    near_duplicate_texts(["a"], 0.5, eligible=np.ones(1, bool))
