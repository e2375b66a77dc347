"""Rows of a pool that are of an evaluation set: by runs of words, and by embedding."""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jsel.data.ngrams import gram_hashes, word_hashes
from jsel.kernels.similarity import best_matches
from jsel.selection.duplicates import cosine, directions
from jsel.selection.found import Found
from jsel.selection.pool import Pool
from jsel.selection.walk import block_rows

# Of fewer words, an evaluation text must be all of the row: "yes" is in too many.
SHORTEST = 5
QUERIES = 4096  # rows of the pool that are compared with an evaluation set at a time
DOUBT = 1e-5  # as in duplicates


def overlapping(
  texts: Iterable[str],
  evaluation: Iterable[str],
  n: int = 13,
  *,
  eligible: np.ndarray,
  report: Callable[[str, int, int], Any] = lambda *_: None,
) -> Found:
  """Rows that share a run of ``n`` words with an evaluation text.

  Words are `jsel.data.ngrams.words`: case, punctuation and white space do not count. An evaluation
  text of fewer than ``n`` words is looked for whole; one of fewer than 5 must be all that the row
  says. Memory is 12 bytes for each different run of the evaluation set; rows are streamed.

  Args:
    texts: in the order of the rows.
    evaluation: texts that must not be trained on.
    n: words of a run.
    eligible: ``[n]`` bool, rows that are looked at.
    report: told what is done, rows so far and in all.

  Returns:
    `Found`, matched with the evaluation text of the first run that is shared; similarity is the
    share of the row's runs of that length which are in the evaluation set.

  Raises:
    ValueError: if ``n`` is less than 1.

  >>> rows = ["so: the cat sat on a mat.", "the cat", "a dog"]
  >>> overlapping(rows, ["The cat sat!", "A dog"], 3, eligible=np.ones(3, bool)).index.tolist()
  [0, 2]

  Source: Brown et al., *Language Models are Few-Shot Learners*, 2020, arXiv 2005.14165, appendix C.
  """
  if n < 1:
    raise ValueError(f"exclude_ngram must be at least 1 word, 0 for no such search, got {n}")
  by_length = _index(evaluation, n)
  found = []
  for row, text in enumerate(texts):
    if row % 1024 == 0:
      report("reading texts", row, len(eligible))
    if not eligible[row]:
      continue
    hashes = word_hashes(text)
    for length, (grams, owners) in by_length.items():
      if length < min(SHORTEST, n) and length != len(hashes):
        continue
      mine = gram_hashes(hashes, length)
      place = np.minimum(np.searchsorted(grams, mine), len(grams) - 1)
      shared = grams[place] == mine
      if shared.any():
        found.append((row, int(owners[place[shared.argmax()]]), float(shared.mean())))
        break
  report("reading texts", len(eligible), len(eligible))
  return Found.of("ngram", found)


def similar(
  pool: Pool,
  evaluation: np.ndarray,
  threshold: float,
  *,
  eligible: np.ndarray,
  report: Callable[[str, int, int], Any] = lambda *_: None,
) -> Found:
  """Rows whose cosine with a row of ``evaluation`` is at least ``threshold``, to 6 decimals.

  One walk over the pool; each row is matched with the most similar of ``evaluation``.

  Args:
    pool: rows that are looked at where ``eligible``, ``[n]`` bool.
    evaluation: ``[m, d]`` embeddings of what must not be trained on.
    threshold: in (0, 1].
    eligible: see above; rows that are not finite are never found.
    report: told what is done, rows so far and in all.

  Raises:
    ValueError: if the threshold is out of range, or ``evaluation`` is of another width.

  >>> from jsel.selection.pool import ArrayPart
  >>> pool = Pool([ArrayPart(np.eye(3, dtype=np.float32))])
  >>> evaluation = np.array([[0.0, 2.0, 0.0]], np.float32)
  >>> similar(pool, evaluation, 0.9, eligible=np.ones(3, bool)).index.tolist()
  [1]
  """
  if not 0 < threshold <= 1:
    raise ValueError(f"exclude_similarity must be in (0, 1], a cosine, got {threshold}")
  if evaluation.ndim != 2 or evaluation.shape[1] != pool.width or not len(evaluation):
    raise ValueError(
      f"what is excluded has shape {evaluation.shape}, the pool {pool.width} columns: embed both"
      " with the same model"
    )
  against = directions(evaluation)
  held = jnp.asarray(against)
  found, start = [], 0
  for block in pool.blocks(min(block_rows(pool.size, pool.width), QUERIES)):
    x, m = directions(block), len(block)
    padded = np.pad(x, [(0, -m % 512), (0, 0)])
    best = best_matches(held, jnp.asarray(padded), 1)
    value, index = np.asarray(best.values)[:m, 0], np.asarray(best.indices)[:m, 0]
    for row in np.flatnonzero((value > threshold - DOUBT) & eligible[start : start + m]):
      exact = cosine(x[row], against[index[row]])
      if exact >= threshold:
        found.append((start + int(row), int(index[row]), exact))
    start += m
    report("comparing with what is excluded", start, pool.size)
  return Found.of("similarity", found)


def _index(evaluation: Iterable[str], n: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """By words of a run, longest first: sorted runs, and the first text that each is in."""
  grams: dict[int, list[np.ndarray]] = {}
  owners: dict[int, list[np.ndarray]] = {}
  for row, text in enumerate(evaluation):
    hashes = word_hashes(text)
    length = min(n, len(hashes))
    if length:
      found = gram_hashes(hashes, length)
      grams.setdefault(length, []).append(found)
      owners.setdefault(length, []).append(np.full(len(found), row, np.int32))
  index = {}
  for length in sorted(grams, reverse=True):
    runs, first = np.unique(np.concatenate(grams[length]), return_index=True)
    index[length] = runs, np.concatenate(owners[length])[first]
  return index
