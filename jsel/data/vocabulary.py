"""How many token ids a model has to know to take the rows of a data set."""

from jsel.data.arrays import Dataset, Split
from jsel.data.rows import ArrayRows, RowsDataset, blocks
from jsel.data.token_rows import is_tokens


def vocabulary(dataset: Dataset | RowsDataset) -> int:
  """The largest token id of train, validation and test + 1; 0 where rows are no tokens.

  Reads every row of tokens.

  >>> import numpy as np
  >>> rows = ArrayRows(np.array([[5, -1], [3, 4]], np.int32), np.array([0, 1]))
  >>> vocabulary(RowsDataset(rows, None, rows, 2, "own", "x.npz", 1.0, ""))
  6
  """
  largest = -1
  for part in (dataset.train, dataset.validation, dataset.test):
    rows = ArrayRows(*part) if isinstance(part, Split) else part
    if rows is None or not is_tokens(rows.input_dtype):
      continue
    for ids in blocks(rows):
      largest = max(largest, int(rows.take(ids)["inputs"].max()))
  return largest + 1
