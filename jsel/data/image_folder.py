"""Folders of images, one folder a class: DIR/CLASS/NAME.png or .jpg."""

import numpy as np
from ml_collections import ConfigDict

from jsel.data import files, images
from jsel.data.digest import combined
from jsel.data.parts import open_parts, parts_sha256
from jsel.data.rows import RowsDataset, checked_ids, checked_rows, describe

ENDINGS = (".png", ".jpg", ".jpeg")


def open_rows(config: ConfigDict) -> RowsDataset:
  """The images below the folders ``config.train``, ``config.validation`` and ``config.test``.

  Without ``config.train``, those of the folders train, validation and test in ``config.dir``.
  ``config.image_size`` and ``config.channels`` say what the images are brought to
  (`images.decode`). Classes are numbered in the order of their names, as of the train part; without
  a test part ``config.test_fraction`` is held out. Folders are local, gs:// or s3://.

  Raises:
    ValueError: if a folder is missing or has no images, parts differ in their classes, or images
      differ in size and ``config.image_size`` is 0.
  """
  names: list[str] = []

  def part(role: str) -> ImageFolderRows | None:
    folder = part_folder(config, role)
    if folder is None:
      return None
    rows = ImageFolderRows(
      folder, image_size=config.get("image_size", 0), channels=config.get("channels", 3)
    )
    names.extend([] if names else rows.names)
    if rows.names != names:
      odd = sorted({*rows.names} ^ {*names})
      raise ValueError(
        f"{folder} has other classes than the train part ({', '.join(odd[:3])}"
        f"{' ...' if odd[3:] else ''}): each class needs a folder in every part"
      )
    return rows

  parts = open_parts(config, part)
  return RowsDataset(
    *parts,
    classes=len(names),
    name="image_folder",
    source=f"{parts.train.size:,} images in {len(names)} folders",
    scale=255.0,
    sha256=parts_sha256(parts),
  )


def part_folder(config: ConfigDict, role: str) -> str | None:
  """What the config names for ``role``, or the folder of that name in ``config.dir``, if any."""
  if config.get(role) or not config.get("dir"):
    return config.get(role) or None
  folder = files.join(config.dir, role)
  return folder if files.exists(folder) else None


class ImageFolderRows:
  """The images of a folder of folders, in the order of their paths.

  Paths are kept in one array of bytes. An image is read and decoded when it is taken. The hash is
  of all paths below the folder, the files' sizes, and what images are brought to; not of their
  bytes.

  Args:
    folder: local, gs:// or s3://.
    image_size: pixels of a side that images are brought to; 0: all have the first one's shape.
    channels: 3, or 1 for grey.

  Raises:
    ValueError: if the folder is missing, has no images, or the first one is broken.
  """

  def __init__(self, folder: str, *, image_size: int, channels: int):
    found = {
      path: size
      for path, size in files.find(folder).items()
      if path.lower().endswith(ENDINGS) and path.count("/") == 1
    }
    self.what = folder
    if not found:
      raise ValueError(
        f"{folder} has no images: expected CLASS/NAME with names that end in {', '.join(ENDINGS)}"
      )
    classes = [path.split("/")[0] for path in found]
    self.names = sorted(set(classes))
    self._folder, self.image_size = folder, image_size
    self._paths = np.array([path.encode() for path in found])
    number = {name: at for at, name in enumerate(self.names)}
    self._labels = np.array([number[name] for name in classes], np.int32)
    sizes = " ".join(map(str, found.values()))
    self._sha256 = combined("image_folder", *found, sizes, f"{image_size} {channels}")
    self.size = len(found)
    first = self.encoded(np.zeros(1, np.int64))[0]
    self.input_shape = images.shape_of(first, size=image_size, channels=channels, what=folder)
    self.input_dtype = np.dtype(np.uint8)

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The examples ``ids`` (`Rows.take`)."""
    ids = checked_ids(ids, self.size, what=self.what)
    inputs = images.decode_rows(
      self.encoded(ids), ids, shape=self.input_shape, size=self.image_size, what=self.what
    )
    classes = len(self.names)
    return checked_rows(inputs, self._labels[ids], ids, what=self.what, classes=classes)

  def encoded(self, ids: np.ndarray) -> list[bytes]:
    """The files of the images ``ids`` as they are."""
    return files.read_many([files.join(self._folder, self._paths[at].decode()) for at in ids])

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32."""
    return self._labels

  def sha256(self) -> str:
    """Of paths, sizes, and what images are brought to."""
    return self._sha256

  def __repr__(self) -> str:
    return f"ImageFolderRows({self.what}, {describe(self)})"
