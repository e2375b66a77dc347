"""Rows of token ids: int32 ``[n, l]``, texts of one length by the padding after their tokens."""

from collections.abc import Sequence

import numpy as np

PADDING = -1


def is_tokens(dtype: np.dtype | type) -> bool:
  """Whether rows of ``dtype`` are token ids: features and images have other dtypes.

  >>> is_tokens(np.int32), is_tokens(np.float32)
  (True, False)
  """
  return np.dtype(dtype) == np.int32


def padded(ids: Sequence[Sequence[int]], *, length: int = 0) -> np.ndarray:
  """Texts as rows ``[n, l]`` int32.

  Args:
    ids: of the tokens of each text.
    length: l; 0: that of the longest text.

  Raises:
    ValueError: if a text is longer.

  >>> padded([[5, 6], [7]]).tolist()
  [[5, 6], [7, -1]]
  """
  longest = max(map(len, ids))
  if length and longest > length:
    raise ValueError(f"a text has {longest} tokens, rows have {length}: cut it")
  rows = np.full((len(ids), length or longest), PADDING, np.int32)
  for row, text in zip(rows, ids, strict=True):
    row[: len(text)] = text
  return rows


def check_tokens(rows: np.ndarray, *, what: str, ids: np.ndarray) -> None:
  """Raises a ValueError where ``rows`` are no texts, naming the first that is none.

  Args:
    rows: ``[b, l]`` int32.
    what: what the message calls the source.
    ids: ``[b]`` what it calls the rows.

  >>> check_tokens(np.array([[5, -1, 6]], np.int32), what="mine", ids=np.array([7]))
  Traceback (most recent call last):
  ValueError: mine: row 7 has token 6 in column 2, after padding: move its -1 to the end
  """
  below = rows < PADDING
  if below.any():
    row, column = (int(i) for i in np.argwhere(below)[0])
    raise ValueError(
      f"{what}: column {column} of row {ids[row]} is {rows[row, column]}: token ids are from 0, and"
      f" {PADDING} is padding"
    )
  after = (rows[:, 1:] != PADDING) & (rows[:, :-1] == PADDING)
  if after.any():
    # Positions are counted from the first column: a text that begins later is another text.
    row, column = (int(i) for i in np.argwhere(after)[0])
    raise ValueError(
      f"{what}: row {ids[row]} has token {rows[row, column + 1]} in column {column + 1}, after"
      f" padding: move its {PADDING} to the end"
    )
