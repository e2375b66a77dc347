"""Rows of a set that TensorFlow Datasets has prepared as array_record."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from jsel.data import images
from jsel.data.arrays import checked_labels, row_shape
from jsel.data.digest import combined, files_sha256
from jsel.data.rows import blocks, checked_ids, checked_rows, describe


class TfdsRows:
  """Rows of a split of a prepared set.

  Images are decoded when they are taken. The hash is of the names, sizes and edges of all files of
  the set (`digest.files_sha256`), the split, the features, and what images are brought to.

  Args:
    builder: TFDS's of the prepared set.
    remedy: what messages advise where a file is broken.
    split: as TFDS writes it, e.g. "train" or "train[:90%]".
    input_feature: an Image, or a Tensor of uint8 or float32 of one shape.
    label_feature: a ClassLabel or another integer.
    image_size: pixels of a side that images are brought to; 0: all have the first one's shape.
    channels: of images whose feature does not say it: 3, or 1 for grey.
    classes: labels must be below it; 0: below the number that the feature says, if any.

  Raises:
    ValueError: if there is no such split or feature, or a file is missing or cut short.
  """

  def __init__(
    self,
    builder: Any,
    split: str,
    *,
    remedy: str,
    input_feature: str,
    label_feature: str,
    image_size: int,
    channels: int,
    classes: int,
  ):
    import tensorflow_datasets as tfds

    info = builder.info
    self.what = f"{info.full_name} {split}"
    for key, name in (("input_column", input_feature), ("label_column", label_feature)):
      if name not in info.features:
        raise ValueError(
          f"{info.full_name} has no feature {name!r}: set --config.data.{key} to one of"
          f" {', '.join(info.features)}"
        )
    feature, label = info.features[input_feature], info.features[label_feature]
    if label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
      raise ValueError(f"{info.full_name}: feature {label_feature!r} is {label}, no integer label")
    self._is_image = isinstance(feature, tfds.features.Image)
    try:
      instructions = info.splits[split].file_instructions
      if not instructions:
        raise ValueError(f"split {split!r} has no rows")
      decoders = {input_feature: tfds.decode.SkipDecoding()} if self._is_image else None
      self._source = builder.as_data_source(split, decoders=decoders)
    except (ValueError, KeyError) as error:
      text = str(error).splitlines()[0]
      raise ValueError(f"{info.full_name}: {text}: splits are {', '.join(info.splits)}") from error
    folder = Path(builder.data_dir)
    check_files(folder, instructions, remedy)
    self._remedy = remedy
    self._input, self._label, self.image_size = input_feature, label_feature, image_size
    self._classes = classes or getattr(label, "num_classes", None) or 0
    self.size = len(self._source)
    if self._is_image:
      self.input_dtype = np.dtype(np.uint8)
      self.input_shape = images.shape_of(
        self.encoded(np.zeros(1, np.int64))[0],
        size=image_size,
        channels=min(feature.shape[-1] or channels, 3),  # a fourth channel is transparency
        what=self.what,
      )
    else:
      self.input_dtype = np.dtype(feature.np_dtype)
      if None in feature.shape:
        raise ValueError(f"{self.what}: {input_feature!r} has no one shape but {feature.shape}")
      shape = (self.size, *feature.shape)
      self.input_shape = row_shape(shape, self.input_dtype, what=self.what)
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    self._sha256 = combined(
      "tfds",
      files_sha256(map(str, paths)),
      f"{split} {input_feature} {label_feature} {image_size} {channels}",
    )

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    ids = checked_ids(ids, self.size, what=self.what)
    rows = self._read(ids)
    if self._is_image:
      encoded = (row[self._input] for row in rows)
      inputs = images.decode_rows(
        encoded, ids, shape=self.input_shape, size=self.image_size, what=self.what
      )
    else:
      inputs = np.empty((len(ids), *self.input_shape), self.input_dtype)
      for at, row in enumerate(rows):
        inputs[at] = row[self._input].reshape(self.input_shape)
    labels = np.array([row[self._label] for row in rows], np.int64)
    return checked_rows(inputs, labels, ids, what=self.what, classes=self._classes)

  def encoded(self, ids: np.ndarray) -> list[bytes]:
    """The bytes of the images ``ids`` as they are.

    Raises:
      ValueError: if the inputs are no images.
    """
    if not self._is_image:
      raise ValueError(f"{self.what}: {self._input!r} is no Image")
    return [row[self._input] for row in self._read(ids)]

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32; reads every record but decodes no image."""
    labels = [row[self._label] for ids in blocks(self) for row in self._read(ids)]
    return checked_labels(np.array(labels), what=self.what, classes=self._classes)

  def sha256(self) -> str:
    """Of the files' names, sizes and edges, the split, and what images are brought to."""
    return self._sha256

  def _read(self, ids: np.ndarray) -> list[dict[str, Any]]:
    try:
      return self._source.__getitems__(ids.tolist())
    except Exception as error:  # TFDS and array_record have no error in common
      text = " ".join(str(error).split())
      raise ValueError(
        f"{self.what}: a record among rows {ids.min()} to {ids.max()} could not be read ({text}):"
        f" {self._remedy}"
      ) from error

  def __repr__(self) -> str:
    return f"TfdsRows({self.what}, {describe(self)})"


def check_files(folder: Path, instructions: list[Any], remedy: str) -> None:
  """Raises where a file of records is missing or cut short: array_record takes it for empty."""
  from array_record.python.array_record_module import ArrayRecordReader

  for instruction in instructions:
    reader = ArrayRecordReader(str(instruction.filename))
    found, expected = reader.num_records(), instruction.examples_in_shard
    with contextlib.suppress(RuntimeError):  # of a file that is not there
      reader.close()
    if found != expected:
      raise ValueError(
        f"{folder} could not be read ({Path(instruction.filename).name} is missing or cut short,"
        f" with {found} of {expected} records): {remedy}"
      )
