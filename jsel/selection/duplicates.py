"""Near-duplicates in a pool, by embedding: one of them stays, the others are found."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import kmeans, permutation
from jsel.kernels.random import key_of_seed
from jsel.selection.found import Found
from jsel.selection.pool import Pool
from jsel.selection.walk import block_rows

SAMPLE = 32_768  # rows that cells are fitted to, at the least
ITERATIONS = 20  # of k-means: cells need not be good, only alike
GROUP_BYTES = 2**30  # of rows that are compared in one walk over the pool
TILE = 1024  # rows that are compared with those that stay at a time
DECIMALS = 6  # that cosines are compared by: a row has a cosine of 1 with its copy
DOUBT = 1e-5  # around the threshold in which float32 products are computed again in float64


def near_duplicates(
  pool: Pool,
  threshold: float,
  *,
  eligible: np.ndarray | None = None,
  score: np.ndarray | None = None,
  cells: int = 0,
  group_bytes: int = GROUP_BYTES,
  seed: int = 0,
  report: Callable[[str, int, int], Any] = lambda *_: None,
) -> Found:
  """Rows whose cosine with one that stays is at least ``threshold``, of the same k-means cell.

  In each cell rows are looked at by descending score, then ascending number; a row stays unless
  its cosine with one that stays, to 6 decimals, is at least the threshold. So no two rows of a cell
  that stay are near-duplicates, and each that is found has one that stays. It is matched with the
  most similar of them.

  Exact within cells. Pairs that two cells part are missed; the fewer cells, the fewer are, and with
  1 none. The closer two rows are, the less often are they parted, and copies never. The result
  depends on neither the block nor the group.

  A walk over the pool labels rows, and one more for each ``group_bytes`` of rows compares them:
  ``n**2 d / cells`` products if cells are equal. n x n is never held, nor is the pool.

  Args:
    pool: ``n`` rows; those of zeros, and those not finite, have no direction and no duplicates.
    threshold: in (0, 1].
    eligible: ``[n]`` bool, rows that are looked at; all if None.
    score: ``[n]``, the highest stays; NaN comes last. If None, the first stays.
    cells: of k-means on the rows' directions; 0: as many as the root of the rows.
    group_bytes: of rows in memory at a time; a cell is held whole.
    seed: of the cells.
    report: told what is done, rows so far and in all.

  Raises:
    ValueError: if the threshold or the cells are out of range.

  >>> from jsel.selection.pool import ArrayPart
  >>> x = np.array([[1.0, 0.0], [3.0, 0.1], [0.0, 1.0]], np.float32)
  >>> near_duplicates(Pool([ArrayPart(x)]), 0.99).index.tolist()
  [1]

  Source: Abbas, Tirumala, Simig, Ganguli, Morcos, *SemDeDup*, 2023, arXiv 2303.09540, which leaves
  of each pair the row farther from the center.
  """
  if not 0 < threshold <= 1:
    raise ValueError(f"dedup must be in (0, 1], a cosine, got {threshold}")
  eligible = np.ones(pool.size, bool) if eligible is None else eligible
  count = int(eligible.sum())
  if not 0 <= cells <= max(count, 1):
    raise ValueError(f"dedup_cells must be at most the {count} rows, 0 for their root: got {cells}")
  k = cells or max(1, math.isqrt(count))
  label = label_cells(pool, eligible, k, seed=seed, report=report)
  priority = np.arange(pool.size)
  if score is not None:
    order = np.lexsort((priority, -np.nan_to_num(score, nan=-np.inf)))
    priority = np.empty(pool.size, np.int64)
    priority[order] = np.arange(pool.size)
  found: list[tuple[int, int, float]] = []
  done, size = 0, int((label >= 0).sum())
  for rows in _groups(label, k, max(group_bytes // (4 * pool.width), 1)):
    x = _take(pool, rows)
    inside = label[rows]
    for members in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(inside)) + 1):
      members = members[np.argsort(priority[rows[members]])]
      for place, like, cosine in within_cell(x[members], threshold):
        found.append((int(rows[members[place]]), int(rows[members[like]]), cosine))
    done += len(rows)
    report("comparing", done, size)
  return Found.of("duplicate", found)


def label_cells(
  pool: Pool,
  eligible: np.ndarray,
  k: int,
  *,
  seed: int,
  report: Callable[[str, int, int], Any] = lambda *_: None,
) -> np.ndarray:
  """The cell of each row's direction, ``[n]`` int32; -1 for rows without one or not eligible."""
  rows = np.flatnonzero(eligible)
  label = np.full(pool.size, -1, np.int32)
  if not rows.size:
    return label
  sample_key, seed_key = jax.random.split(key_of_seed(seed))
  size = min(max(SAMPLE, 16 * k), rows.size)
  place = permutation.permute(sample_key, jnp.arange(size, dtype=jnp.int32), int(rows.size))
  sample = _take(pool, np.sort(rows[np.asarray(place)]))
  x = jnp.asarray(np.pad(sample, [(0, -size % 512), (0, 0)]))
  valid = jnp.asarray(np.pad(sample.any(axis=1), (0, -size % 512)))
  centers = jnp.zeros((1, pool.width))
  if k > 1 and int(valid.sum()) >= k:
    centers = kmeans.plus_plus(seed_key, x, k, valid=valid)
    centers = kmeans.fit(x, centers, max_iters=ITERATIONS, valid=valid).centers
  block, start = block_rows(pool.size, pool.width), 0
  for rows_of in pool.blocks(block):
    x, m = directions(rows_of), len(rows_of)
    valid = eligible[start : start + m] & x.any(axis=1)
    padded = np.zeros((block, pool.width), np.float32)
    padded[:m][valid] = x[valid]
    label[start : start + m] = kmeans.assign(
      jnp.asarray(padded), centers, valid=jnp.asarray(np.pad(valid, (0, block - m)))
    )[0][:m]
    start += m
    report("labelling", start, pool.size)
  return label


def within_cell(x: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
  """Near-duplicates among directions ``x`` [m, d], in the order in which they may stay.

  Gives (row, the row that stays and is most like it, their cosine).
  """
  kept = np.empty_like(x)
  places = np.empty(len(x), np.int64)
  count = 0
  for start in range(0, len(x), TILE):
    tile = x[start : start + TILE]
    best = np.full(len(tile), -np.inf)
    like = np.full(len(tile), -1)
    for at in range(0, count, TILE):
      some = tile @ kept[at : min(at + TILE, count)].T
      for row, column in np.argwhere(some > threshold - DOUBT):
        _better(best, like, row, places[at + column], x[start + row], kept[at + column], threshold)
    stays = like < 0
    # Within the tile one after another: who stays depends on who came before.
    some = np.tril(tile @ tile.T, -1)
    near = np.argwhere(some > threshold - DOUBT)
    for row, column in near:
      if stays[column]:
        _better(best, like, row, start + column, tile[row], tile[column], threshold)
      stays[row] = like[row] < 0
    for row in np.flatnonzero(~stays):
      yield start + int(row), int(like[row]), float(best[row])
    new = np.flatnonzero(stays)
    kept[count : count + new.size], places[count : count + new.size] = tile[new], start + new
    count += new.size


def directions(x: np.ndarray) -> np.ndarray:
  """Rows of length 1, float32; zeros of those that have no direction or are not finite."""
  x = np.where(np.isfinite(x).all(axis=1, keepdims=True), x, 0).astype(np.float64)
  length = np.sqrt(np.einsum("ij,ij->i", x, x))
  return (x / np.where(length > 0, length, 1)[:, None]).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
  """Of two directions, in float64 and to `DECIMALS`.

  >>> cosine(np.array([0.6, 0.8], np.float32), np.array([0.6, 0.8], np.float32))
  1.0
  """
  a, b = a.astype(np.float64), b.astype(np.float64)
  return round(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())), DECIMALS)


def _better(best, like, row, place, a, b, threshold) -> None:
  exact = cosine(a, b)
  # The first that stays wins a tie.
  if exact >= threshold and (exact > best[row] or (exact == best[row] and place < like[row])):
    best[row], like[row] = exact, place


def _groups(label: np.ndarray, k: int, most: int) -> Iterator[np.ndarray]:
  """Rows sorted by cell, some cells at a time: at most ``most`` rows, or one cell."""
  order = np.argsort(label, kind="stable")
  order = order[np.searchsorted(label[order], 0) :]
  ends = np.cumsum(np.bincount(label[order], minlength=k))
  first = 0
  while first < len(order):
    end = ends[max(np.searchsorted(ends, first + most, side="right") - 1, 0)]
    if end <= first:
      end = ends[np.searchsorted(ends, first, side="right")]
    yield order[first:end]
    first = int(end)


def _take(pool: Pool, rows: np.ndarray) -> np.ndarray:
  """The directions of ``rows``, in their order."""
  order = np.argsort(rows, kind="stable")
  wanted, taken, start = rows[order], np.empty((len(rows), pool.width), np.float32), 0
  for x in pool.blocks(block_rows(pool.size, pool.width)):
    first, last = np.searchsorted(wanted, [start, start + len(x)])
    taken[order[first:last]] = directions(x[wanted[first:last] - start])
    start += len(x)
  return taken
