"""Any set that TensorFlow Datasets has prepared as array_record; reading needs no TensorFlow."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jsel.data import files
from jsel.data.parts import count_classes, open_parts, parts_sha256
from jsel.data.rows import RowsDataset
from jsel.data.tfds_rows import TfdsRows


def open_rows(config: ConfigDict) -> RowsDataset:
  """The set ``config.tfds_name``: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.

  It is looked for in ``config.dir``, then in the folder of TensorFlow Datasets, the newest version
  first. ``config.train``, ``config.validation`` and ``config.test`` are splits as TFDS writes them,
  e.g. "train[:90%]"; train and test are "train" and "test" where the config names none and the set
  has them. ``config.input_column`` and ``config.label_column`` name the features;
  ``config.image_size`` and ``config.channels`` say what images are brought to (`images.decode`).

  Raises:
    ValueError: if it is not there, with the command that prepares it, or if it cannot be read.
  """
  if not config.get("tfds_name"):
    raise ValueError("--config.data.tfds_name is empty: name a set, e.g. fashion_mnist")
  name = config.tfds_name
  folder = find(name, config.get("dir", ""))
  builder = read_only_builder(folder, name)
  given = {role: config.get(role) for role in ("train", "validation", "test")}
  for role in ("train", "test"):
    given[role] = given[role] or (role if role in builder.info.splits else "")

  def part(role: str) -> TfdsRows | None:
    if not given[role]:
      return None
    return TfdsRows(
      builder,
      given[role],
      remedy=prepare_again(folder, name),
      input_feature=config.input_column,
      label_feature=config.label_column,
      image_size=config.get("image_size", 0),
      channels=config.get("channels", 3),
      classes=config.get("classes", 0),
    )

  parts = open_parts(config, part)
  train = parts.train
  # A label that is no ClassLabel does not say how many there are.
  named = getattr(builder.info.features[config.label_column], "num_classes", None) or 0
  return RowsDataset(
    *parts,
    classes=count_classes(parts, config.get("classes", 0) or named),
    name=builder.info.name,
    source=f"TensorFlow Datasets {builder.info.full_name}",
    scale=255.0 if train.input_dtype == np.uint8 else 1.0,
    sha256=parts_sha256(parts),
  )


def system_folder() -> str:
  """Where TensorFlow Datasets keeps its sets."""
  return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def prepare_command(name: str, data_dir: str | os.PathLike[str]) -> str:
  """The shell command that prepares the set ``name`` in ``data_dir``."""
  return (
    'python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
    '.download_and_prepare()"'
  )


def prepare_again(folder: Path, name: str) -> str:
  """What to do with a set in ``folder`` that is broken."""
  data_dir = folder.parents[min(name.count("/") + 1, len(folder.parents) - 1)]
  command = prepare_command(name, data_dir)
  return f"delete the folder and prepare it again with `{command}`"


def find(name: str, data_dir: str) -> Path:
  """The folder of the version that ``name`` asks for, in ``data_dir`` or the system's folder.

  Raises:
    ValueError: if it is in neither, with the command that prepares it.
  """
  if files.is_remote(data_dir):
    raise ValueError(
      f"--config.data.dir={data_dir}: sets of TensorFlow Datasets are read from local disks only,"
      " copy the folder of the set to one"
    )
  places = [Path(place).expanduser() for place in (data_dir, system_folder()) if place]
  for place in places:
    found = version_in(place, name)
    if found is not None:
      return found
  for place in places:
    configs = [path for path in sorted((place / name).glob("*")) if newest_version(path)]
    if configs:
      raise ValueError(
        f"{name} has configs: set --config.data.tfds_name to one, e.g."
        f" {' or '.join(f'{name}/{path.name}' for path in configs[:3])}"
      )
  raise ValueError(
    f"{name} is not in {' or '.join(map(str, places))}: prepare it with"
    f" `{prepare_command(name, places[0])}` (once, needs tensorflow-cpu)"
  )


def version_in(place: Path, name: str) -> Path | None:
  """The folder in ``place`` of the version that ``name`` asks for, or ``place`` if it is one."""
  if (place / "dataset_info.json").is_file():
    return place
  name, _, version = name.partition(":")
  found = place / name / version if version else newest_version(place / name)
  return found if found is not None and found.is_dir() else None


def newest_version(folder: Path) -> Path | None:
  """The folder of the newest version below the folder of a set."""
  number = lambda path: tuple(int(piece) for piece in path.name.split("."))
  is_version = lambda path: path.is_dir() and all(p.isdigit() for p in path.name.split("."))
  versions = sorted(filter(is_version, folder.glob("*")), key=number)
  return versions[-1] if versions else None


def read_only_builder(folder: Path, name: str) -> Any:
  """TFDS's view of the set ``name``, prepared in ``folder``.

  Raises:
    ValueError: if its preparation was cut short or was of another format, or it is another set.
  """
  remedy = (
    f"delete the folder and prepare it again with `{prepare_command(name, folder.parents[1])}`"
  )
  if not (folder / "dataset_info.json").is_file():
    # TFDS itself would say that TFRECORD is not supported.
    raise ValueError(f"{folder} has no dataset_info.json, its preparation was cut short: {remedy}")
  import tensorflow_datasets as tfds  # takes seconds to import: only for those who use it

  try:
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format
  except Exception as error:  # TFDS raises whatever it meets
    text = " ".join(str(error).split())
    raise ValueError(f"{folder} could not be read ({text}): {remedy}") from error
  if builder.info.name != name.partition(":")[0].split("/")[0]:
    raise ValueError(f"{folder} holds {builder.info.name}, not {name}: correct --config.data.dir")
  if file_format is None or file_format.value != "array_record":
    raise ValueError(
      f"{folder} could not be read (its file format is {file_format and file_format.value}, not"
      f" array_record): {remedy}"
    )
  return builder
