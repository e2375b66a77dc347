"""Near-duplicates in a pool, by the words of its texts: MinHash finds pairs, sets decide."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jsel.data.ngrams import gram_hashes, word_hashes
from jsel.selection.found import Found

GRAM = 5  # words
PERMUTATIONS = 128  # of MinHash
RECALL = 0.95  # the probability that a pair at the threshold is found
INSTALL = "pip install 'jsel[dedup]'"


def near_duplicate_texts(
  texts: Iterable[str],
  threshold: float,
  *,
  eligible: np.ndarray,
  score: np.ndarray | None = None,
  report: Callable[[str, int, int], Any] = lambda *_: None,
) -> Found:
  """Rows whose text is like that of one that stays: Jaccard similarity of their word 5-grams.

  Rows are looked at by descending score, then ascending number; a row stays unless its similarity
  with one that stays is at least the threshold. Candidates are from MinHash LSH (datasketch), whose
  128 permutations find a pair of just that similarity with a probability of 0.95 or more, a closer
  one more surely; each candidate's similarity is then computed from the sets, so what is found is
  true. A text of fewer than 5 words
  is one gram; one of no words is like none.

  Held in memory: 8 bytes for each different 5-gram of a text, and the LSH's tables of the texts
  that stay, a few kilobytes each.

  Args:
    texts: in the order of the rows.
    threshold: in (0, 1].
    eligible: ``[n]`` bool, rows that are looked at.
    score: ``[n]``, the highest stays; NaN comes last. If None, the first stays.
    report: told what is done, rows so far and in all.

  Raises:
    ValueError: if the threshold is out of range, or datasketch is not installed.

  Source: Broder, *On the resemblance and containment of documents*, 1997; Lee et al.,
  *Deduplicating Training Data Makes Language Models Better*, 2022, arXiv 2107.06499.
  """
  if not 0 < threshold <= 1:
    raise ValueError(f"dedup_text must be in (0, 1], a Jaccard similarity, got {threshold}")
  if importlib.util.find_spec("datasketch") is None:
    raise ValueError(f"datasketch is not installed, dedup_text cannot be had: {INSTALL}")
  from datasketch import MinHash, MinHashLSH  # of the extra `dedup`

  grams = []
  for row, text in enumerate(texts):
    grams.append(text_grams(text) if eligible[row] else np.zeros(0, np.uint64))
    if row % 1024 == 0:
      report("reading texts", row, len(eligible))
  report("reading texts", len(eligible), len(eligible))
  order = np.arange(len(grams))
  if score is not None:
    order = np.lexsort((order, -np.nan_to_num(score, nan=-np.inf)))
  lsh = MinHashLSH(params=bands(threshold), num_perm=PERMUTATIONS)
  empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
  found = []
  for done, row in enumerate(order.tolist()):
    if done % 1024 == 0:
      report("comparing texts", done, len(order))
    if not grams[row].size:
      continue
    sketch = empty.copy()
    # Its values are of 32 bits.
    sketch.update_batch((grams[row] >> np.uint64(32)).tolist())
    candidates: list[Any] = lsh.query(sketch)
    near = [(jaccard(grams[row], grams[other]), -other) for other in candidates]
    best, other = max(near, default=(0.0, 0))
    if best >= threshold:
      found.append((row, -other, best))
      grams[row] = np.zeros(0, np.uint64)
    else:
      lsh.insert(row, sketch, check_duplication=False)
  report("comparing texts", len(order), len(order))
  return Found.of("duplicate_text", found)


def bands(threshold: float) -> tuple[int, int]:
  """Bands of the LSH and values in each: as many values as let a pair at the threshold be found.

  >>> bands(0.8), bands(0.1), bands(1.0)
  ((18, 7), (128, 1), (2, 64))
  """
  found = lambda r: 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL
  values = max((r for r in range(1, PERMUTATIONS // 2 + 1) if found(r)), default=1)
  return PERMUTATIONS // values, values


def text_grams(text: str) -> np.ndarray:
  """The set of a text's 5-grams, sorted hashes; of a shorter one, the whole."""
  hashes = word_hashes(text)
  return np.unique(gram_hashes(hashes, min(GRAM, max(len(hashes), 1))))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """Of two sets, as sorted arrays.

  >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
  0.5
  """
  both = np.intersect1d(a, b, assume_unique=True).size
  return both / (len(a) + len(b) - both)
