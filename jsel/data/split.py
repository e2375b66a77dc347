"""A part of the rows held out, class by class."""

import numpy as np

from jsel.data.arrays import Split


def stratified(labels: np.ndarray, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Row ids to keep and to hold out, every class in the same proportion.

  The number held out is ``fraction`` of the rows to the nearest; what the classes have beyond
  whole rows goes to the largest remainders (ties to the lowest class).

  Args:
    labels: ``[n]`` int32.
    fraction: of the rows to hold out, above 0 and below 1.
    seed: of the choice inside each class.

  Returns:
    ``(kept, held)``, both int64 and ascending.

  Raises:
    ValueError: if one of the two would be empty, or a class would lose its only rows.

  >>> kept, held = stratified(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32), 0.25, seed=0)
  >>> len(kept), sorted(np.array([0, 0, 0, 0, 1, 1, 1, 1])[held].tolist())
  (6, [0, 1])
  """
  if not 0 < fraction < 1:
    raise ValueError(f"a held-out fraction must be above 0 and below 1, got {fraction}")
  counts = np.bincount(labels)
  quota = counts * fraction
  held_count = np.floor(quota).astype(np.int64)
  missing = round(len(labels) * fraction) - int(held_count.sum())
  by_remainder = np.argsort(held_count - quota, kind="stable")
  held_count[by_remainder[:missing]] += 1
  if not held_count.any():
    raise ValueError(
      f"a fraction of {fraction} of {len(labels)} rows holds out none: raise the fraction"
    )
  emptied = np.flatnonzero((counts > 0) & (held_count == counts))
  if emptied.size:
    raise ValueError(
      f"a fraction of {fraction} holds out all {counts[emptied[0]]} rows of class {emptied[0]}: "
      "lower the fraction or give the held-out rows as a file"
    )
  # Raw bits, because NumPy keeps the streams of its bit generators but not of its Generator.
  draw = np.random.PCG64(seed).random_raw(len(labels))
  order = np.lexsort((draw, labels))
  rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
  is_held = np.zeros(len(labels), bool)
  is_held[order] = rank_in_class < held_count[labels[order]]
  return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def hold_out(rows: Split, fraction: float, *, seed: int) -> tuple[Split, Split]:
  """``rows`` cut in two by `stratified`: ``(kept, held)``."""
  kept, held = stratified(rows.labels, fraction, seed=seed)
  take = lambda ids: Split(rows.inputs[ids], rows.labels[ids])
  return take(kept), take(held)
