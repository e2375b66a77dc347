"""Sources of examples: a config section becomes rows that are read by id, or arrays on the host."""

import difflib

from ml_collections import ConfigDict

from jsel.data import (
  array_record,
  cifar10,
  digits,
  fashion_mnist,
  glosses,
  image_folder,
  own,
  parquet,
  tfds,
)
from jsel.data.arrays import Dataset, Split, fingerprint
from jsel.data.digest import combined
from jsel.data.parts import Parts, parts_sha256, with_validation
from jsel.data.rows import ArrayRows, Rows, RowsDataset, SubsetRows, read_all
from jsel.data.subset import origin, read_subset, train_on, weights_sha256
from jsel.data.subset_pool import check_pool

__all__ = [
  "SOURCES",
  "Dataset",
  "Rows",
  "RowsDataset",
  "Split",
  "as_rows",
  "load",
  "open_rows",
  "read_all",
]

# Sets that are read into memory, and sources whose rows stay where they are.
ARRAYS = {
  "cifar10": cifar10.read,
  "digits": digits.read,
  "fashion_mnist": fashion_mnist.read,
  "wordnet": glosses.read,
  "wordnet_tokens": glosses.read_tokens,
}
ROWS = {
  "array_record": array_record.open_rows,
  "image_folder": image_folder.open_rows,
  "own": own.open_rows,
  "parquet": parquet.open_rows,
  "tfds": tfds.open_rows,
}
SOURCES = (*ARRAYS, *ROWS)


def as_rows(part: Split | Rows) -> Rows:
  """A split to be read row by row, whether it is in memory or not.

  >>> import numpy as np
  >>> as_rows(Split(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))).size
  3
  """
  return ArrayRows(*part) if isinstance(part, Split) else part


def open_rows(config: ConfigDict) -> RowsDataset:
  """The data set that the config section ``data`` describes, to be read row by row.

  Args:
    config: ``name`` (one of `SOURCES`) and what its function names; ``dir``, where to look first;
      ``validation_fraction`` of the train rows held out of every class, 0 for none; ``split_seed``
      of what is held out; ``subset``, a subset.parquet whose rows alone are trained on, if any,
      ``subset_weights``, whether by its weights (if not said, they are), and
      ``allow_other_pool``, whether it may be of another pool.

  Raises:
    ValueError: in one line with the remedy: an unknown name, data that is not on the machine, a
      broken file, or rows that are not what they should be.

  >>> digits = open_rows(ConfigDict({"name": "digits", "split_seed": 0}))
  >>> digits.train.size, digits.train.input_shape, digits.validation
  (1438, (8, 8, 1), None)
  """
  found = _open(config)
  path = config.get("subset")
  if path:
    picked = read_subset(path)
    if picked.pool and not config.get("allow_other_pool", False):
      check_pool(picked.pool, origin(found.train)[1], config, name=picked.name)
    found = train_on(found, picked, weights=config.get("subset_weights", True))
  if not isinstance(found.train, SubsetRows):
    return found
  return found._replace(source_rows=origin(found.train)[0])


def _open(config: ConfigDict) -> RowsDataset:
  name = config.name
  if name in ROWS:
    return ROWS[name](config)
  if name not in ARRAYS:
    near = difflib.get_close_matches(str(name), SOURCES, n=1, cutoff=0)[0]
    raise ValueError(
      f"there is no data set {name!r}, did you mean {near!r}? There are {', '.join(SOURCES)}"
    )
  found = ARRAYS[name](config)
  as_rows = lambda part: ArrayRows(*part, what=name, classes=found.classes)
  parts = with_validation(Parts(as_rows(found.train), None, as_rows(found.test)), config)
  return RowsDataset(
    *parts,
    classes=found.classes,
    name=found.name,
    source=found.source,
    scale=found.scale,
    sha256=parts_sha256(parts),
  )


def load(config: ConfigDict) -> Dataset:
  """The data set that the config section ``data`` describes, all of it as arrays.

  Args and Raises as of `open_rows`. The hash is of all bytes, those of weights too.

  >>> digits = load(ConfigDict({"name": "digits", "validation_fraction": 0.1, "split_seed": 0}))
  >>> len(digits.train.labels), len(digits.validation.labels), len(digits.test.labels)
  (1294, 144, 359)
  """
  found = open_rows(config)
  train, test = read_all(found.train), read_all(found.test)
  validation = read_all(found.validation) if found.validation else None
  sha256 = fingerprint(train, validation, test)
  if found.weights is not None:
    sha256 = combined(sha256, weights_sha256(found.weights))
  return Dataset(
    train=train,
    validation=validation,
    test=test,
    classes=found.classes,
    name=found.name,
    source=found.source,
    scale=found.scale,
    sha256=sha256,
    weights=found.weights,
    source_rows=found.source_rows,
  )
