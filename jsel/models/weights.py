"""Weights in folders as Hugging Face has them: config.json and safetensors, whole or in parts."""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

INSTALL = "pip install 'jsel[text]'"  # safetensors and tokenizers
EDGE = 1 << 16  # bytes hashed at the beginning and at the end of a file


class Tensors:
  """The tensors of a folder by name, read when they are asked for.

  Args:
    folder: with model.safetensors, or its parts and model.safetensors.index.json.
    prefixes: a name is looked for as it is, and with each of these before it.

  Raises:
    ValueError: if there are no such files, one is broken, or safetensors is not installed.
  """

  def __init__(self, folder: Path, *, prefixes: Sequence[str] = ()):
    if importlib.util.find_spec("safetensors") is None:
      raise ValueError(f"safetensors is not installed, {folder} cannot be read: {INSTALL}")
    self.folder, self._prefixes = folder, ("", *prefixes)
    self._of: dict[str, Any] = {}
    for path in weight_files(folder):
      file = opened(path)
      self._of.update(dict.fromkeys(file.keys(), file))

  def __contains__(self, name: str) -> bool:
    return self._found(name) is not None

  def _found(self, name: str) -> str | None:
    return next((p + name for p in self._prefixes if p + name in self._of), None)

  def __call__(self, name: str, *shape: int) -> np.ndarray:
    """The tensor ``name`` in float32.

    Raises:
      ValueError: if it is missing or has another shape than the config says.
    """
    found = self._found(name)
    if found is None:
      raise ValueError(f"{self.folder} has no tensor {name}: it holds a model of another kind")
    tensor = self._of[found].get_tensor(found)
    if tensor.shape != shape:
      raise ValueError(
        f"{self.folder}: {found} has shape {tensor.shape}, config.json says {shape}: the two files"
        " are of different models"
      )
    return np.asarray(tensor, np.float32)

  def kernel(self, name: str, fan_in: int, fan_out: int) -> np.ndarray:
    """The weight ``name``, stored as ``[fan_out, fan_in]``, as a kernel ``[fan_in, fan_out]``."""
    return self(name, fan_out, fan_in).T


def weight_files(folder: Path) -> list[Path]:
  """The safetensors files of ``folder``, in order.

  Raises:
    ValueError: if it is no folder, or a file is not there or not directly in it.
  """
  if not folder.is_dir():
    raise ValueError(
      f"there is no folder {folder}: give one with config.json and model.safetensors"
    )
  index = folder / "model.safetensors.index.json"
  names = ["model.safetensors"]
  if index.is_file():
    names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
  for name in names:
    if Path(name).name != name:
      raise ValueError(f"{index} names {name!r}, which leads out of the folder: copy it again")
    if not (folder / name).is_file():
      raise ValueError(
        f"{folder} has no {name}: weights are read from safetensors alone, never from pickles"
      )
  return [folder / name for name in names]


def opened(path: Path) -> Any:
  """``path`` as an open safetensors file."""
  from safetensors import SafetensorError, safe_open  # of the extra `text`

  try:
    return safe_open(str(path), framework="np")
  except (SafetensorError, OSError) as error:
    raise ValueError(f"{path} is broken or cut short ({error}): copy it again") from error


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    ValueError: if the file is missing or holds something else.
  """
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise ValueError(f"{path.parent} has no {path.name}: it is part of every model") from error
  except ValueError as error:
    raise ValueError(f"{path} is no JSON ({error}): copy it again") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} holds a {type(found).__name__}, expected an object")
  return found


class Settings(dict[str, Any]):
  """The object in ``folder``/config.json, whose missing keys are told by name."""

  @classmethod
  def of(cls, folder: Path) -> Self:
    found = cls(read_json(folder / "config.json"))
    found.folder = folder
    return found

  folder = Path()

  def __missing__(self, key: str) -> Any:
    raise ValueError(f"{self.folder}/config.json has no {key}: it is of a model of another kind")


def filled(make: Callable[[], nnx.Module], arrays: Mapping[str, Any]) -> Any:
  """The module that ``make`` makes, with ``arrays`` for its parameters and none drawn at random.

  Args:
    make: of the module.
    arrays: by the parameter's path, with dots between.

  >>> model = filled(lambda: nnx.Linear(2, 1, rngs=nnx.Rngs(0)),
  ...                {"kernel": np.ones((2, 1), np.float32), "bias": np.zeros(1, np.float32)})
  >>> model(jnp.ones((1, 2))).item()
  2.0
  """
  graph, abstract = nnx.split(nnx.eval_shape(make))
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
  wanted = {
    name(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(abstract))
  }
  assert wanted == arrays.keys(), wanted ^ arrays.keys()

  def fill(path: Any, leaf: Any) -> jax.Array:
    array = arrays[name(path)]
    assert leaf.shape == array.shape, (path, leaf.shape, array.shape)
    return jnp.asarray(array, leaf.dtype)

  pure = jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(abstract))
  nnx.replace_by_pure_dict(abstract, pure)
  return nnx.merge(graph, abstract)


def weights_sha256(paths: Sequence[Path]) -> str:
  """SHA-256 of the files' sizes and of their first and last 64 KiB: tells one model from another.

  Folders and names do not count: the same files elsewhere are the same model.
  """
  digest = hashlib.sha256()
  for path in paths:
    size = path.stat().st_size
    digest.update(f"{size};".encode())
    with path.open("rb") as file:
      digest.update(file.read(EDGE))
      file.seek(max(0, size - EDGE))
      digest.update(file.read(EDGE))
  return digest.hexdigest()
