"""The digits of scikit-learn: 1,797 images of 8x8 in 17 grey levels, 10 classes."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jsel.data.arrays import Dataset, checked
from jsel.data.split import hold_out

TEST_FRACTION = 0.2  # the set comes without a test part


def read(config: ConfigDict) -> Dataset:
  """All 1,797 digits, a fifth of each class as the test part (chosen by ``config.split_seed``).

  >>> digits = read(ConfigDict({"split_seed": 0}))
  >>> digits.train.inputs.shape, digits.test.inputs.shape, digits.scale
  ((1438, 8, 8, 1), (359, 8, 8, 1), 16.0)
  """
  from sklearn.datasets import load_digits  # takes a second to import: only for those who use it

  bunch: Any = load_digits()
  images, labels = np.asarray(bunch["images"]), np.asarray(bunch["target"])
  rows = checked(images.astype(np.uint8), labels, what="digits", classes=10)
  train, test = hold_out(rows, TEST_FRACTION, seed=config.get("split_seed", 0))
  return Dataset(
    train=train,
    validation=None,
    test=test,
    classes=10,
    name="digits",
    source="scikit-learn load_digits, 1,797 images of 8x8",
    scale=16.0,
    sha256="",
  )
