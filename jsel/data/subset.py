"""The rows of a training set that `python -m jsel.select` has picked."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jsel.data import files
from jsel.data.digest import combined
from jsel.data.rows import Rows, RowsDataset, SubsetRows
from jsel.data.subset_pool import PoolFacts, facts_in


class Picked(NamedTuple):
  """What a subset.parquet says."""

  index: np.ndarray  # [m] int64, rows of the pool, ascending
  weight: np.ndarray | None  # [m] float64 of the rows' losses; None: all are alike
  name: str  # of the file
  pool: PoolFacts | None = None  # that they are rows of, if the file says


def read_subset(path: str) -> Picked:
  """The rows that ``path`` names in its column ``index``.

  Raises:
    ValueError: if it is missing or broken, has no such column, no rows, or a row twice, or a weight
      is negative or not finite.
  """
  path = path if files.is_remote(path) else str(Path(path).expanduser())
  remedy = "give the subset.parquet that `python -m jsel.select` left in its workdir"
  try:
    with files.open_file(path) as file:
      table = pq.read_table(file)
  except (OSError, pa.ArrowInvalid) as error:
    line = " ".join(str(error).split())
    raise ValueError(f"--config.data.subset={path} cannot be read ({line}): {remedy}") from error
  if "index" not in table.column_names:
    has = ", ".join(table.column_names)
    raise ValueError(f"--config.data.subset={path} has the columns {has}, no index: {remedy}")
  column = table["index"]
  if not pa.types.is_integer(column.type) or column.null_count:
    raise ValueError(
      f"--config.data.subset={path}: index is {column.type} with {column.null_count} empty, not"
      f" integers: {remedy}"
    )
  index, first, count = np.unique(
    column.to_numpy().astype(np.int64), return_index=True, return_counts=True
  )
  if not index.size:
    raise ValueError(f"--config.data.subset={path} has no rows: select some")
  if count.max() > 1:
    raise ValueError(
      f"--config.data.subset={path} has row {index[count.argmax()]} {count.max()} times: {remedy}"
    )
  weight = _weights(table["weight"], index, first, path) if "weight" in table.schema.names else None
  return Picked(index, weight, Path(path).name, facts_in(table.schema))


def _weights(
  column: pa.ChunkedArray, index: np.ndarray, first: np.ndarray, path: str
) -> np.ndarray | None:
  """The weights of the rows ``index``, which are at ``first``; None if all are alike."""
  if not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
    raise ValueError(f"--config.data.subset={path}: weight is {column.type}, not numbers")
  weight = column.to_numpy().astype(np.float64)[first]
  bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
  if bad.size:
    raise ValueError(
      f"--config.data.subset={path}: the weight of row {index[bad[0]]} is {weight[bad[0]]}: weights"
      " are finite and at least 0"
    )
  return None if (weight == weight[0]).all() and weight[0] else weight


def train_on(dataset: RowsDataset, picked: Picked, *, weights: bool = True) -> RowsDataset:
  """``dataset`` with no more than the picked rows in train; what is held out stays as it is.

  Their weights are divided by their mean over the rows that are trained on: what the losses are
  multiplied by then leaves the size of a step, and so the learning rate, as it is without weights.

  Args:
    dataset: the whole set.
    picked: rows of the training set as the source gives it, before any are held out of it.
    weights: whether the rows are trained on by their weights.

  Raises:
    ValueError: if the subset is of a larger pool, all of its rows are held out, or all that are not
      have the weight 0.

  >>> from jsel.data.rows import ArrayRows
  >>> labels = np.array([0, 1, 0, 1])
  >>> rows = ArrayRows(np.arange(4, dtype=np.float32)[:, None], labels)
  >>> dataset = RowsDataset(rows, None, rows, 2, "own", "x.npz", 1.0, "")
  >>> found = train_on(dataset, Picked(np.array([1, 3]), None, "subset.parquet"))
  >>> found.train.take(np.array([0, 1]))["inputs"].tolist(), found.source
  ([[1.0], [3.0]], 'x.npz; 2 of 4 rows, those of subset.parquet')
  """
  train, name = dataset.train, picked.name
  ids, size = origin(train)
  if picked.index[0] < 0 or picked.index[-1] >= size:
    bad = picked.index[0] if picked.index[0] < 0 else picked.index[-1]
    raise ValueError(
      f"{name} has row {bad}, the training set rows 0 to {size - 1}: train on the pool that"
      " the subset was selected from"
    )
  place = np.flatnonzero(np.isin(ids, picked.index))
  if not place.size:
    raise ValueError(
      f"all {picked.index.size} rows of {name} are held out for the test or validation:"
      " select from the rows that are trained on"
    )
  said = f"{dataset.source}; {place.size:,} of {size:,} rows, those of {name}"
  if place.size < picked.index.size:
    said += f" but for {picked.index.size - place.size:,} that are held out"
  digest = hashlib.sha256(ids[place].astype("<i8").tobytes()).hexdigest()
  sha256, scaled = combined("subset", dataset.sha256, digest), None
  if picked.weight is not None and not weights:
    said += ", their weights not used"
  elif picked.weight is not None:
    weight = picked.weight[np.searchsorted(picked.index, ids[place])]
    mean = weight.mean()
    if not mean:
      raise ValueError(f"all rows of {name} that are trained on have the weight 0: select others")
    scaled = (weight / mean).astype(np.float32)
    said += f", their weights {scaled.min():.3g} to {scaled.max():.3g} times the mean {mean:.4g}"
    sha256 = combined(sha256, weights_sha256(scaled))
  return dataset._replace(
    train=SubsetRows(train, place), source=said, sha256=sha256, weights=scaled
  )


def origin(rows: Rows) -> tuple[np.ndarray, int]:
  """The numbers ``[n]`` of rows where they come from in the end, and how many rows that has."""
  return rows.origin() if isinstance(rows, SubsetRows) else (np.arange(rows.size), rows.size)


def weights_sha256(weights: np.ndarray) -> str:
  """SHA-256 of ``weights`` in their order."""
  return hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()
