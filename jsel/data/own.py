"""The user's own arrays: npz archives, or npy files of inputs and of labels."""

from pathlib import Path, PurePosixPath

import numpy as np
from ml_collections import ConfigDict

from jsel.data import files, numpy_files
from jsel.data.arrays import checked
from jsel.data.npy import NpyRows
from jsel.data.parts import Source, count_classes, open_parts, parts_sha256
from jsel.data.rows import ArrayRows, RowsDataset


def open_rows(config: ConfigDict) -> RowsDataset:
  """The rows of ``config.train``, ``config.validation`` and ``config.test``.

  Each is an npz archive with the arrays ``inputs`` and ``labels``, read into memory, or an npy file
  of inputs that stays where it is (`NpyRows`) with the labels in ``config.train_labels`` and the
  like. Paths are local, gs:// or s3://. Without ``config.test``, the fraction
  ``config.test_fraction`` of each class is held out. With ``config.classes`` = 0 the number of
  classes is the largest label + 1.

  Raises:
    ValueError: if a file is missing or broken, or an array is not as `checked` wants it.
  """
  parts = open_parts(config, lambda role: part(config, role))
  name = lambda role: PurePosixPath(config[role]).name
  source = (
    f"{name('train')} and {name('test')}"
    if config.get("test")
    else f"{name('train')}, {config.test_fraction:g} of it held out as test"
  )
  return RowsDataset(
    *parts,
    classes=count_classes(parts, config.get("classes", 0)),
    name="own",
    source=source,
    scale=255.0 if parts.train.input_dtype == np.uint8 else 1.0,
    sha256=parts_sha256(parts),
  )


def part(config: ConfigDict, role: str) -> Source | None:
  """The rows that ``config.train``, ``config.validation`` or ``config.test`` names, if any."""
  path = config.get(role)
  if not path:
    return None
  path = path if files.is_remote(path) else str(Path(path).expanduser())
  classes = config.get("classes", 0)
  labels = config.get(f"{role}_labels")
  if path.endswith(".npz"):
    if labels:
      raise ValueError(f"{path} brings its own labels: leave --config.data.{role}_labels empty")
    arrays = numpy_files.read_npz(path, ("inputs", "labels"))
    name = PurePosixPath(path).name
    return ArrayRows(*checked(*arrays, what=name, classes=classes), what=name, classes=classes)
  if path.endswith(".npy"):
    if not labels:
      raise ValueError(f"{path} comes without labels: set --config.data.{role}_labels to their npy")
    labels = labels if files.is_remote(labels) else str(Path(labels).expanduser())
    return NpyRows(path, labels, classes=classes)
  raise ValueError(f"{path} is of an unknown kind: give a file that ends in .npz or .npy")
