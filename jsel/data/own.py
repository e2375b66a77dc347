"""The user's own arrays: npz archives, or npy files of inputs and of labels."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jsel.data import numpy_files
from jsel.data.arrays import Dataset, Split, checked
from jsel.data.split import hold_out


def read(config: ConfigDict) -> Dataset:
  """The rows of ``config.train`` and ``config.test``.

  Each is an npz archive with the arrays ``inputs`` and ``labels``, or an npy file of inputs
  (memory-mapped) with the labels in ``config.train_labels`` and ``config.test_labels``. Without
  ``config.test``, the fraction ``config.test_fraction`` of each class is held out. With
  ``config.classes`` = 0 the number of classes is the largest label + 1.

  Raises:
    ValueError: if a file is missing or broken, or an array is not as `checked` wants it.
  """
  classes = config.get("classes", 0)
  train = part(config, "train", classes)
  if config.get("test"):
    test = part(config, "test", classes)
    if test.inputs.shape[1:] != train.inputs.shape[1:] or test.inputs.dtype != train.inputs.dtype:
      raise ValueError(
        f"rows of config.data.test are {test.inputs.dtype}{test.inputs.shape[1:]}, those of "
        f"config.data.train {train.inputs.dtype}{train.inputs.shape[1:]}: make them alike"
      )
    source = f"{Path(config.train).name} and {Path(config.test).name}"
  elif config.get("test_fraction"):
    source = f"{Path(config.train).name}, {config.test_fraction:g} of it held out as test"
    train, test = hold_out(train, config.test_fraction, seed=config.get("split_seed", 0))
  else:
    raise ValueError(
      "there are no test rows: set --config.data.test to a file or --config.data.test_fraction"
    )
  return Dataset(
    train=train,
    validation=None,
    test=test,
    classes=classes or inferred_classes(train, test),
    name="own",
    source=source,
    scale=255.0 if train.inputs.dtype == np.uint8 else 1.0,
    sha256="",
  )


def part(config: ConfigDict, name: str, classes: int) -> Split:
  """The rows that ``config.train`` or ``config.test`` names."""
  if not config.get(name):
    raise ValueError(f"--config.data.{name} names no file: give an npz or npy file")
  path = Path(config[name]).expanduser()
  labels = config.get(f"{name}_labels")
  if path.suffix == ".npz":
    if labels:
      raise ValueError(f"{path} brings its own labels: leave --config.data.{name}_labels empty")
    arrays = numpy_files.read_npz(path, ("inputs", "labels"))
  elif path.suffix == ".npy":
    if not labels:
      raise ValueError(f"{path} comes without labels: set --config.data.{name}_labels to their npy")
    labels_path = Path(labels).expanduser()
    arrays = [numpy_files.read_npy(path), numpy_files.read_npy(labels_path)]
  else:
    raise ValueError(f"{path} is of an unknown kind: give a file that ends in .npz or .npy")
  return checked(*arrays, what=path.name, classes=classes)


def inferred_classes(train: Split, test: Split) -> int:
  """The largest label + 1, unless that cannot be a number of classes."""
  classes = int(max(train.labels.max(), test.labels.max())) + 1
  rows = len(train.labels) + len(test.labels)
  if classes > rows:
    raise ValueError(
      f"labels go up to {classes - 1} with {rows} rows: number the classes from 0 without gaps, "
      "or set --config.data.classes"
    )
  return classes
