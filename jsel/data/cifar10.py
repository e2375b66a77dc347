"""CIFAR-10: 50,000 + 10,000 colour images of 32x32, 10 classes, from TFDS or an npz archive."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jsel.data import numpy_files, tfds
from jsel.data.arrays import Dataset, Split, checked
from jsel.data.rows import read_all
from jsel.data.tfds_rows import TfdsRows


def read(config: ConfigDict) -> Dataset:
  """CIFAR-10 from ``config.dir``, else from the folder of TensorFlow Datasets.

  ``config.dir`` is an npz archive with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, a
  folder with such an archive named cifar10.npz, or a folder in which TensorFlow Datasets has
  prepared cifar10 as array_record (reading that needs no TensorFlow).

  Raises:
    ValueError: if it is not there, with the command that prepares it, or if it is broken.
  """
  system = Path(tfds.system_folder())
  given = [Path(config.dir)] if config.get("dir") else []
  for place in (path.expanduser() for path in (*given, system)):
    archive = place if place.suffix == ".npz" else place / "cifar10.npz"
    if archive.is_file():
      return dataset(*from_npz(archive), source=f"CIFAR-10 (Krizhevsky, 2009), {archive.name}")
    version = tfds.version_in(place, "cifar10")
    if version is not None:
      source = f"CIFAR-10 (Krizhevsky, 2009), TensorFlow Datasets {version.name}"
      return dataset(*from_tfds(version), source=source)
  places = " or ".join(str(path) for path in (*given, system))
  command = tfds.prepare_command("cifar10", (*given, system)[0])
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


def from_tfds(folder: Path) -> tuple[Split, Split]:
  """Train and test rows of a prepared set."""
  builder = tfds.read_only_builder(folder, "cifar10")

  def part(split: str) -> Split:
    rows = TfdsRows(
      builder,
      split,
      remedy=tfds.prepare_again(folder, "cifar10"),
      input_feature="image",
      label_feature="label",
      image_size=0,
      channels=3,
      classes=10,
    )
    return images(*read_all(rows), what=rows.what)

  return part("train"), part("test")
