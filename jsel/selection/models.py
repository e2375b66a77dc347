"""Which model embeddings are of, so that those of two models are never compared."""

import json

from jsel.data import files
from jsel.data.parquet_columns import opened

KEY = "model"  # in the metadata of parquet and safetensors files
LENGTH = 8  # bytes of the number before a safetensors header


def model_in(path: str) -> str:
  """The model that the file ``path`` says its embeddings are of; "" where it says nothing.

  Parquet says so in the schema's metadata, safetensors in its own, both by the key "model".
  """
  if path.endswith(".parquet"):
    with opened(path) as file:
      return (file.schema_arrow.metadata or {}).get(KEY.encode(), b"").decode()
  if path.endswith(".safetensors"):
    size = int.from_bytes(files.read_ranges(path, [0], [LENGTH])[0], "little")
    try:
      header = json.loads(files.read_ranges(path, [LENGTH], [LENGTH + size])[0])
    except ValueError:
      return ""  # broken: what reads the arrays says so
    return header.get("__metadata__", {}).get(KEY, "")
  return ""


def model_of(paths: list[str], given: str, *, flag: str) -> str:
  """The model of the embeddings in ``paths``, ``given`` where they say nothing.

  Raises:
    ValueError: if they say different things.
  """
  found = given, flag
  for path in paths:
    said = model_in(path)
    if said and found[0] and not same(said, found[0]):
      raise ValueError(
        f"{path} has embeddings of the model {said!r}, {found[1]} says {found[0]!r}: give those of"
        " one model, or correct the flag"
      )
    if said:
      found = said, path
  return found[0]


def same(one: str, other: str) -> bool:
  """Whether names may be of one model: they are equal, or one is the other's without its options.

  >>> same("MiniLM", "MiniLM 5b1a mean -1 256 float32"), same("MiniLM", "MiniLM-L12")
  (True, False)
  """
  return one == other or one == other.split(" ")[0] or other == one.split(" ")[0]


def check_same(pool: str, queries: str, *, key: str) -> None:
  """Raises a ValueError that names both, unless ``pool`` and ``queries`` may be of one model."""
  if pool and queries and not same(pool, queries):
    raise ValueError(
      f"the pool has embeddings of {pool!r}, {key} of {queries!r}: embed both with the same model"
    )
