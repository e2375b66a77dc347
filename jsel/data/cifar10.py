"""CIFAR-10: 50,000 + 10,000 colour images of 32x32, 10 classes, from TFDS or an npz archive."""

import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jsel.data import numpy_files
from jsel.data.arrays import Dataset, Split, checked

BATCH = 1000  # rows decoded together


def read(config: ConfigDict) -> Dataset:
  """CIFAR-10 from ``config.dir``, else from the folder of TensorFlow Datasets.

  ``config.dir`` is an npz archive with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, a
  folder with such an archive named cifar10.npz, or a folder in which TensorFlow Datasets has
  prepared cifar10 as array_record (reading that needs no TensorFlow).

  Raises:
    ValueError: if it is not there, with the command that prepares it, or if it is broken.
  """
  system = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
  given = [Path(config.dir)] if config.get("dir") else []
  for place in (path.expanduser() for path in (*given, system)):
    archive = place if place.suffix == ".npz" else place / "cifar10.npz"
    if archive.is_file():
      return dataset(*from_npz(archive), source=f"CIFAR-10 (Krizhevsky, 2009), {archive.name}")
    version = newest_version(place)
    if version is not None:
      source = f"CIFAR-10 (Krizhevsky, 2009), TensorFlow Datasets {version.name}"
      return dataset(*from_tfds(version), source=source)
  places = " or ".join(str(path) for path in (*given, system))
  command = prepare_command((*given, system)[0])
  raise ValueError(
    f"CIFAR-10 is not in {places}: prepare it with `{command}` (once, "
    "needs tensorflow-cpu) or set --config.data.dir to an npz of x_train, y_train, "
    "x_test, y_test"
  )


def dataset(train: Split, test: Split, *, source: str) -> Dataset:
  """The two parts as a `Dataset`."""
  return Dataset(
    train=train,
    validation=None,
    test=test,
    classes=10,
    name="cifar10",
    source=source,
    scale=255.0,
    sha256="",
  )


def prepare_command(folder: Path) -> str:
  """The shell command that prepares the set in ``folder``."""
  return (
    'python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('cifar10', data_dir='{folder}', file_format='array_record')"
    '.download_and_prepare()"'
  )


def images(inputs: np.ndarray, labels: np.ndarray, *, what: str) -> Split:
  """Checked rows of 32x32x3 uint8."""
  if inputs.shape[1:] != (32, 32, 3) or inputs.dtype != np.uint8:
    raise ValueError(
      f"{what}: images are {inputs.dtype} {inputs.shape}, expected uint8 [n, 32, 32, 3]: "
      "transpose and save them so"
    )
  return checked(inputs, labels, what=what, classes=10)


def from_npz(path: Path) -> tuple[Split, Split]:
  """Train and test rows of an archive."""
  x_train, y_train, x_test, y_test = numpy_files.read_npz(
    path, ("x_train", "y_train", "x_test", "y_test")
  )
  # The archive that Keras makes has labels of shape [n, 1].
  flat = lambda y: y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
  return (
    images(x_train, flat(y_train), what=f"{path.name} train"),
    images(x_test, flat(y_test), what=f"{path.name} test"),
  )


def newest_version(folder: Path) -> Path | None:
  """The folder of the newest prepared version below ``folder``, or ``folder`` if it is one."""
  if (folder / "dataset_info.json").is_file():
    return folder
  number = lambda path: tuple(int(piece) for piece in path.name.split("."))
  is_version = lambda path: path.is_dir() and all(p.isdigit() for p in path.name.split("."))
  versions = sorted(filter(is_version, (folder / "cifar10").glob("*")), key=number)
  return versions[-1] if versions else None


def from_tfds(folder: Path) -> tuple[Split, Split]:
  """Train and test rows of a prepared set."""
  again = f"delete the folder and prepare it again with `{prepare_command(folder.parent.parent)}`"
  if not (folder / "dataset_info.json").is_file():
    # TFDS itself would say that TFRECORD is not supported.
    raise ValueError(f"{folder} has no dataset_info.json, its preparation was cut short: {again}")
  import tensorflow_datasets as tfds  # takes seconds to import: only for those who use it

  try:
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
      raise ValueError(f"its file format is {file_format and file_format.value}, not array_record")
    absent = [key for key in ("image", "label") if key not in builder.info.features]
    if absent:
      raise ValueError(f"its rows have no {absent[0]!r}")
    parts = [stacked(builder.as_data_source(split)) for split in ("train", "test")]
  except Exception as error:  # TFDS, array_record and Pillow have no error in common
    text = " ".join(str(error).split())
    raise ValueError(f"{folder} could not be read ({text}): {again}") from error
  train, test = (
    images(*part, what=f"{folder.name} {split}")
    for part, split in zip(parts, ("train", "test"), strict=True)
  )
  return train, test


def stacked(source) -> tuple[np.ndarray, np.ndarray]:
  """All images and labels of a random-access source of TFDS."""
  inputs, labels = [], []
  for start in range(0, len(source), BATCH):
    rows = source.__getitems__(range(start, min(start + BATCH, len(source))))
    inputs += [row["image"] for row in rows]
    labels += [row["label"] for row in rows]
  return np.stack(inputs), np.array(labels, np.int64)
