"""Arrays that a caller gives, of whatever library, as NumPy's."""

from typing import Any

import jax
import numpy as np


def as_numbers(x: Any, what: str) -> np.ndarray:
  """``x`` as an array in memory, or the memory map that it is; bfloat16 and the like as float32.

  Args:
    x: an array of NumPy or JAX, or a list of rows.
    what: it is, for messages.

  Raises:
    ValueError: if it is no array of real numbers.

  >>> as_numbers([[1.0, 2.0]], "queries").shape
  (1, 2)
  """
  try:
    array = np.asarray(x)
  except (TypeError, ValueError, RuntimeError) as error:
    raise ValueError(f"{what}: no array can be made of this ({error}): give rows [n, d]") from error
  # NumPy does not know that bfloat16 is a float.
  if array.dtype.kind == "V" and jax.dtypes.issubdtype(array.dtype, np.floating):
    return array.astype(np.float32)
  if array.dtype.kind not in "fiu":
    raise ValueError(f"{what}: {array.dtype}{array.shape} are no numbers: give floats [n, d]")
  return array


def as_mask(mask: Any, size: int, what: str) -> np.ndarray:
  """``mask`` as ``[size]`` bool.

  Raises:
    ValueError: if it is of another length or type.

  >>> as_mask([True, False], 2, "exclude").tolist()
  [True, False]
  """
  array = np.asarray(mask)
  if array.dtype != np.bool_ or array.ndim != 1:
    raise ValueError(
      f"{what} is {array.dtype}{array.shape}: give a bool for each row of the pool, or row numbers"
      " in must_exclude"
    )
  if len(array) != size:
    raise ValueError(f"{what} has {len(array)} values, the pool {size} rows: give one for each row")
  return array
