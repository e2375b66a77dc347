"""Embeddings in a folder of safetensors files, found by the hash of their text."""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jsel.data.digest import combined
from jsel.training import outputs

KEY = np.dtype("S16")  # bytes of a text's hash
NAME = 16  # hexadecimal digits of a file's name
KEPT_FILES = 4  # in memory


def text_keys(texts: Sequence[str]) -> np.ndarray:
  """The hash of each text, ``[n]`` of 16 bytes."""
  digest = lambda text: hashlib.blake2b(text.encode(), digest_size=KEY.itemsize).digest()
  return np.array([digest(text) for text in texts], KEY)


class EmbeddingCache:
  """The embeddings of one encoder: finished files alone count, and files are only added.

  Each file has a temporary name until it is whole, and then one from the keys in it: processes may
  share the folder, and folders are merged by copying the files of one into the other. Its metadata
  has the SHA-256 of each of its other arrays, which is held against what is read.

  Args:
    cache_dir: holds a folder for each encoder.
    encoder: its name, which tells apart weights and options.
    width: of an embedding.

  Raises:
    ValueError: if a file is not what this class writes, or damaged: by any method that reads it.
  """

  def __init__(self, cache_dir: str | Path, *, encoder: str, width: int):
    name = f"{encoder.split(' ', maxsplit=1)[0]}-{combined(encoder)[:16]}"
    self.folder = Path(cache_dir).expanduser() / name
    self.width = width
    self.folder.mkdir(parents=True, exist_ok=True)
    outputs.put(self.folder / "encoder.txt", f"{encoder}\n".encode())
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
    place = self._places(keys)
    lengths = np.empty(len(keys), np.int32)
    order = np.argsort(self._file_of[place], kind="stable")
    numbers, starts = np.unique(self._file_of[place[order]], return_index=True)
    for number, at in zip(numbers, np.split(order, starts[1:]), strict=True):
      with _opened(self._paths[number]) as file:
        lengths[at] = _sound(file, "lengths", self._paths[number])[self._row_of[place[at]]]
    return lengths

  def write(self, keys: np.ndarray, embeddings: np.ndarray, lengths: np.ndarray) -> None:
    """Adds a file; `refresh` makes it found."""
    from safetensors.numpy import save  # of the extra `text`

    raw = np.frombuffer(keys.astype(KEY).tobytes(), np.uint8).reshape(len(keys), KEY.itemsize)
    arrays = {
      "embeddings": np.ascontiguousarray(embeddings, np.float32),
      "lengths": np.ascontiguousarray(lengths, np.int32),
    }
    hashes = {name: _sha256(array) for name, array in arrays.items()}
    path = self.folder / f"{_sha256(raw)[:NAME]}.safetensors"
    with outputs.whole_file(path) as file:
      file.write(save({"keys": raw, **arrays}, hashes))

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
    with _opened(path) as file:
      raw = file.get_tensor("keys")
      if _sha256(raw)[:NAME] != path.stem:
        raise _damaged(path, "its keys are not those of its name")
      keys = np.frombuffer(raw.tobytes(), KEY)
      shape = file.get_slice("embeddings").get_shape()
      if shape != [len(keys), self.width]:
        raise ValueError(f"{path}: embeddings have shape {shape}, expected width {self.width}")
      if keys_only:
        return keys, np.empty((0, self.width)), np.empty(0)
      found = keys, _sound(file, "embeddings", path), _sound(file, "lengths", path)
    self._read[path] = found
    if len(self._read) > KEPT_FILES:
      self._read.popitem(last=False)
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
  """The file, closed afterwards; what safetensors says of it, or a lack of arrays, names it."""
  from safetensors import SafetensorError, safe_open  # of the extra `text`

  try:
    with safe_open(str(path), framework="np") as file:
      yield file
  except SafetensorError as error:
    raise _damaged(path, str(error)) from error


def _sound(file: Any, name: str, path: Path) -> np.ndarray:
  """The array of that name, if it is what was written."""
  array = file.get_tensor(name)
  if (file.metadata() or {}).get(name) != _sha256(array):
    raise _damaged(path, f"the SHA-256 of its {name} is not the one that was written with it")
  return array


def _damaged(path: Path, reason: str) -> ValueError:
  return ValueError(
    f"{path} is no whole file of embeddings ({reason}): delete it, and the same command encodes its"
    " texts again"
  )


def _sha256(array: np.ndarray) -> str:
  return hashlib.sha256(array.tobytes()).hexdigest()
