"""PNG and JPEG bytes to uint8 images of one size."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

MODES = {1: "L", 3: "RGB"}  # Pillow's names of one and three channels
DEEP = ("I", "F")  # modes of more than 8 bits begin so; converting them would clip
# What Pillow raises for bytes that are no image, are cut short or changed.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def decode(encoded: bytes, *, size: int, channels: int) -> np.ndarray:
  """One image, ``[h, w, channels]`` uint8.

  With ``size`` its shorter side is brought to ``size`` (bilinear with antialiasing) and the middle
  square is kept; a JPEG of more than twice the size is first reduced while it is decoded. Where
  ``channels`` is 1 colours become grey by their luma, where it is 3 grey becomes three equal
  channels; transparency is dropped, EXIF orientation is not applied.

  Args:
    encoded: PNG or JPEG bytes.
    size: pixels of a side; 0 leaves the image as it is.
    channels: 1 or 3.

  Raises:
    ValueError: if the bytes are no such image, are cut short, or hold more than 8 bits a channel.

  >>> buffer = io.BytesIO()
  >>> Image.new("RGB", (6, 4), (255, 0, 0)).save(buffer, "PNG")
  >>> decode(buffer.getvalue(), size=2, channels=3)[0, 0].tolist()
  [255, 0, 0]
  """
  try:
    with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
      if image.mode.startswith(DEEP):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
      if size:
        image.draft(None, (2 * size, 2 * size))  # pyrefly: ignore
      if image.mode == "P":
        image = image.convert("RGBA")  # a palette may hold transparent colours
      image = image.convert(MODES[channels])
      if size:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
      pixels = np.asarray(image)
  except (*BROKEN, Image.DecompressionBombError) as error:
    text = " ".join(str(error).split())
    raise ValueError(f"no whole PNG or JPEG of 8 bits ({text})") from error
  return pixels if channels == 3 else pixels[..., None]


def decode_rows(
  encoded: Iterable[bytes], ids: np.ndarray, *, shape: tuple[int, ...], size: int, what: str
) -> np.ndarray:
  """Images ``[b, *shape]`` uint8, or an error that names the first row that is broken.

  Args:
    encoded: the bytes of each.
    ids: ``[b]`` what messages call the rows.
    shape: ``(h, w, channels)`` of every image.
    size: of `decode`.
    what: what messages call the source.
  """
  images = np.empty((len(ids), *shape), np.uint8)
  for at, piece in enumerate(encoded):
    try:
      image = decode(piece, size=size, channels=shape[2])
    except ValueError as error:
      raise ValueError(
        f"{what}: row {ids[at]} is {error}: repair the file or leave it out"
      ) from error
    if image.shape != shape:
      raise ValueError(
        f"{what}: row {ids[at]} has {image.shape[0]}x{image.shape[1]} pixels, others have"
        f" {shape[0]}x{shape[1]}: set --config.data.image_size to bring all to one size"
      )
    images[at] = image
  return images


def shape_of(encoded: bytes, *, size: int, channels: int, what: str) -> tuple[int, int, int]:
  """``(h, w, channels)`` that the rows of a source have, by its first image."""
  if channels not in MODES:
    raise ValueError(f"--config.data.channels={channels}: images have 3 channels, or 1 in grey")
  if size < 0:
    raise ValueError(
      f"--config.data.image_size={size} is negative: use 0 to leave images as they are"
    )
  ids = np.zeros(1, np.int64)
  if size:
    shape = (size, size, channels)
    decode_rows([encoded], ids, shape=shape, size=size, what=what)
    return shape
  try:
    height, width, _ = decode(encoded, size=0, channels=channels).shape
  except ValueError as error:
    raise ValueError(f"{what}: row 0 is {error}: repair the file or leave it out") from error
  return height, width, channels
