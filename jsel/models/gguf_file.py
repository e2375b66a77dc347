"""GGUF files: a model's settings, its tensors in float32, and its vocabulary."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install 'jsel[gguf]'"


class GGUFFile:
  """A GGUF file, of which tensors are read and dequantised when they are asked for.

  Args:
    path: of the file.

  Raises:
    ValueError: if it is missing or broken, or the package gguf is not installed.
  """

  def __init__(self, path: Path):
    if importlib.util.find_spec("gguf") is None:
      raise ValueError(f"gguf is not installed, {path} cannot be read: {INSTALL}")
    if not path.is_file():
      raise ValueError(f"there is no {path}: give a GGUF file")
    self.path = path
    said = path.stat()
    self._reader = opened(path, said.st_size, said.st_mtime_ns)
    self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

  def __contains__(self, name: str) -> bool:
    return name in self._tensors

  def get(self, key: str, default: Any = None) -> Any:
    """The setting ``key``, or ``default`` if there is none."""
    field = self._reader.get_field(key)
    return default if field is None else field.contents()

  def __getitem__(self, key: str) -> Any:
    """The setting ``key``.

    Raises:
      ValueError: if there is none.
    """
    found = self.get(key)
    if found is None:
      raise ValueError(f"{self.path} has no {key}: it holds a model of another kind")
    return found

  def __call__(self, name: str, *shape: int) -> np.ndarray:
    """The tensor ``name`` in float32, rows first, as safetensors have it.

    Raises:
      ValueError: if it is missing, has another shape, or is quantised in a way that is not known.
    """
    if name not in self:
      raise ValueError(f"{self.path} has no tensor {name}: it holds a model of another kind")
    tensor = self._tensors[name]
    found = tuple(reversed(tensor.shape.tolist()))
    if found != shape:
      raise ValueError(
        f"{self.path}: {name} has shape {found}, its settings say {shape}: the file is broken"
      )
    from gguf.quants import dequantize  # of the extra `gguf`

    try:
      return dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    except NotImplementedError as error:
      raise ValueError(
        f"{self.path}: {name} is quantised as {tensor.tensor_type.name}, which gguf does not"
        " dequantise: take a file quantised otherwise"
      ) from error


@functools.lru_cache(maxsize=1)  # a large vocabulary takes the package seconds to go through
def opened(path: Path, size: int, modified: int) -> Any:
  """The reader of a file of that size and time; the file is mapped to memory, not read."""
  del size, modified
  import gguf  # of the extra `gguf`

  try:
    return gguf.GGUFReader(path)
  except Exception as error:  # the package raises what NumPy and Python do
    raise ValueError(f"{path} is broken or cut short ({error}): copy it again") from error
