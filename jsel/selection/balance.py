"""What a pool consists of, and what a subset of it does."""

from typing import Any

import numpy as np
import pyarrow as pa

from jsel.selection.pool import Pool

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
KEPT = 100  # values of a column that are told apart
OTHERS = "(others)"


def balance(pool: Pool, index: np.ndarray) -> dict[str, Any]:
  """Lengths, sources and groups before and after, as far as the pool has them.

  Args:
    pool: selected from.
    index: the rows that were taken.

  Returns:
    Of "length": mean and quantiles of "pool" and "subset"; of "source" and "group": by value,
    the rows of "pool" and "subset", those of most rows first, at most 100 and the others.
  """
  found: dict[str, Any] = {}
  length = pool.numbers("length") if pool.is_numeric("length") else None
  # A method that needs no lengths is not stopped by some that are none; there is nothing to count.
  if length is not None and (np.isfinite(length) & (length >= 0)).all():
    found["length"] = {"pool": _spread(length), "subset": _spread(length[index])}
  for name in ("source", "group"):
    if name in pool.columns:
      found[name] = _counts(pool.columns[name], index)
  return found


def _spread(values: np.ndarray) -> dict[str, float]:
  quantiles = np.quantile(values, QUANTILES)
  return {"mean": float(values.mean())} | {
    f"q{100 * q:02.0f}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)
  }


def _counts(column: pa.ChunkedArray, index: np.ndarray) -> dict[str, dict[str, int]]:
  encoded = column.cast(pa.string()).combine_chunks().dictionary_encode("encode")
  names = [str(name) for name in encoded.dictionary.to_pylist()]
  codes = np.asarray(encoded.indices)
  pool = np.bincount(codes, minlength=len(names))
  subset = np.bincount(codes[index], minlength=len(names))
  order = np.argsort(-pool, kind="stable")
  found = {names[at]: {"pool": int(pool[at]), "subset": int(subset[at])} for at in order[:KEPT]}
  rest = order[KEPT:]
  if rest.size:
    found[OTHERS] = {"pool": int(pool[rest].sum()), "subset": int(subset[rest].sum())}
  return found
