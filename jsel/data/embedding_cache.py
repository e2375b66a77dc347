"""Embeddings in a folder of safetensors files, found by the hash of their text."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jsel.data.digest import combined

KEY = np.dtype("S16")  # bytes of a text's hash
KEPT_FILES = 4  # in memory


def text_keys(texts: Sequence[str]) -> np.ndarray:
  """The hash of each text, ``[n]`` of 16 bytes."""
  digest = lambda text: hashlib.blake2b(text.encode(), digest_size=KEY.itemsize).digest()
  return np.array([digest(text) for text in texts], KEY)


class EmbeddingCache:
  """The embeddings of one encoder: finished files alone count, and files are only added.

  Each file has a temporary name until it is whole, and then one from what is in it: processes may
  share the folder, and folders are merged by copying the files of one into the other.

  Args:
    cache_dir: holds a folder for each encoder.
    encoder: its name, which tells apart weights and options.
    width: of an embedding.

  Raises:
    ValueError: if a file is not what this class writes.
  """

  def __init__(self, cache_dir: str | Path, *, encoder: str, width: int):
    name = f"{encoder.split(' ', maxsplit=1)[0]}-{combined(encoder)[:16]}"
    self.folder = Path(cache_dir).expanduser() / name
    self.width = width
    self.folder.mkdir(parents=True, exist_ok=True)
    (self.folder / "encoder.txt").write_text(f"{encoder}\n")
    self._read: OrderedDict[Path, tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()
    self.refresh()

  def refresh(self) -> None:
    """Takes in what other processes have written."""
    self._paths = sorted(self.folder.glob("*.safetensors"))
    keys = [self._file(path, keys_only=True)[0] for path in self._paths]
    counts = [len(found) for found in keys]
    all_keys = np.concatenate([np.zeros(0, KEY), *keys])
    order = np.argsort(all_keys, kind="stable")
    self._keys = all_keys[order]
    self._file_of = np.repeat(np.arange(len(keys), dtype=np.int32), counts)[order]
    rows = [np.arange(count, dtype=np.int32) for count in counts]
    self._row_of = np.concatenate([np.zeros(0, np.int32), *rows])[order]

  def __len__(self) -> int:
    return len(self._keys)

  def find(self, keys: np.ndarray) -> np.ndarray:
    """Where each key is, ``[n]`` int64, -1 where it is not."""
    if not len(self._keys):
      return np.full(len(keys), -1)
    place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
    return np.where(self._keys[place] == keys, place, -1)

  def read(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings ``[n, width]`` and the lengths in tokens, before any cut, ``[n]``.

    Raises:
      ValueError: if a key is not there.
    """
    place = self._places(keys)
    embeddings = np.empty((len(keys), self.width), np.float32)
    lengths = np.empty(len(keys), np.int32)
    for number in np.unique(self._file_of[place]):
      at = np.flatnonzero(self._file_of[place] == number)
      rows = self._row_of[place[at]]
      _, found, tokens = self._file(self._paths[number])
      embeddings[at], lengths[at] = found[rows], tokens[rows]
    return embeddings, lengths

  def lengths(self, keys: np.ndarray) -> np.ndarray:
    """Lengths in tokens, before any cut, ``[n]`` int32, without reading embeddings.

    Raises:
      ValueError: as `read`.
    """
    from safetensors import safe_open  # of the extra `text`

    place = self._places(keys)
    lengths = np.empty(len(keys), np.int32)
    order = np.argsort(self._file_of[place], kind="stable")
    numbers, starts = np.unique(self._file_of[place[order]], return_index=True)
    for number, at in zip(numbers, np.split(order, starts[1:]), strict=True):
      with safe_open(str(self._paths[number]), framework="np") as file:
        lengths[at] = file.get_tensor("lengths")[self._row_of[place[at]]]
    return lengths

  def write(self, keys: np.ndarray, embeddings: np.ndarray, lengths: np.ndarray) -> None:
    """Adds a file; `refresh` makes it found."""
    from safetensors.numpy import save_file  # of the extra `text`

    raw = np.frombuffer(keys.astype(KEY).tobytes(), np.uint8).reshape(len(keys), KEY.itemsize)
    name = hashlib.sha256(raw.tobytes()).hexdigest()[:16]
    temporary = self.folder / f".{name}.{os.getpid()}.tmp"
    save_file(
      {
        "keys": raw,
        "embeddings": np.ascontiguousarray(embeddings, np.float32),
        "lengths": np.ascontiguousarray(lengths, np.int32),
      },
      str(temporary),
    )
    os.replace(temporary, self.folder / f"{name}.safetensors")

  def _places(self, keys: np.ndarray) -> np.ndarray:
    place = self.find(keys)
    if (place < 0).any():
      raise ValueError(
        f"{(place < 0).sum()} of {len(keys)} texts are not in {self.folder}: encode them first"
      )
    return place

  def _file(
    self, path: Path, *, keys_only: bool = False
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, embeddings and lengths of a file."""
    if path in self._read:
      self._read.move_to_end(path)
      return self._read[path]
    from safetensors import SafetensorError, safe_open

    try:
      with safe_open(str(path), framework="np") as file:
        keys = np.frombuffer(file.get_tensor("keys").tobytes(), KEY)
        shape = file.get_slice("embeddings").get_shape()
        if shape != [len(keys), self.width]:
          raise ValueError(f"{path}: embeddings have shape {shape}, expected width {self.width}")
        if keys_only:
          return keys, np.empty((0, self.width)), np.empty(0)
        found = keys, file.get_tensor("embeddings"), file.get_tensor("lengths")
    except SafetensorError as error:
      raise ValueError(f"{path} is no file of embeddings ({error}): delete it") from error
    self._read[path] = found
    if len(self._read) > KEPT_FILES:
      self._read.popitem(last=False)
    return found
