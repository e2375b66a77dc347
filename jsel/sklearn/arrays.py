"""What the estimators share: rows as the kernels take them, float32 results, and the seed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data  # pyrefly: ignore  # not in its stubs

from jsel.sharding import pad_rows


class Float32Transformer(TransformerMixin, ClassNamePrefixFeaturesOutMixin, BaseEstimator):
  """A transformer whose results are float32, whatever it is given."""

  def __sklearn_tags__(self) -> Any:
    tags = super().__sklearn_tags__()  # pyrefly: ignore  # not in its stubs
    tags.transformer_tags.preserves_dtype = ["float32"]
    return tags


def checked(estimator: Any, x: Any, *, reset: bool = False, least: int = 1) -> np.ndarray:
  """``x`` as float32 ``[n, d]``, checked as scikit-learn checks it.

  Raises:
    ValueError: if it is no dense matrix of finite float32 of at least ``least`` rows or, unless
      ``reset``, of other columns than were fitted.
  """
  with np.errstate(over="ignore"):  # what is beyond float32 becomes an infinity, which is refused
    return validate_data(estimator, x, reset=reset, dtype=np.float32, ensure_min_samples=least)


def padded(x: np.ndarray, *, columns: bool = True) -> tuple[jax.Array, jax.Array]:
  """``x`` with rows of zeros up to a multiple of 512, and which rows are its own.

  So data of other lengths compile nothing, and a row comes out the same whatever others are there.
  Unless ``columns`` is False, zeros fill up a multiple of 8 columns too: no distance or product
  knows them.

  >>> rows, valid = padded(np.ones((3, 2), np.float32))
  >>> rows.shape, int(valid.sum())
  ((512, 8), 3)
  """
  rows = pad_rows(x)
  if columns:
    rows = np.pad(rows, [(0, 0), (0, -x.shape[1] % 8)])
  return jnp.asarray(rows), jnp.asarray(pad_rows(np.ones(len(x), bool)))


def seed_of(random_state: int | np.random.RandomState | None) -> int:
  """The seed of ``jax.random.key`` that a ``random_state`` stands for; an integer for itself.

  >>> seed_of(7)
  7
  """
  if isinstance(random_state, (int, np.integer)):
    return int(random_state)
  return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
