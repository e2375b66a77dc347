"""Which pool a subset is of: told in its file's metadata, held against what is trained on."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from os.path import basename, expanduser
from typing import NamedTuple

import pyarrow as pa
from ml_collections import ConfigDict

from jsel.data import files
from jsel.data.digest import files_sha256
from jsel.data.parquet_columns import opened

KEY = b"jsel.pool"  # in the metadata of subset.parquet
ROWS = 65_536  # whose ids are hashed at a time


class PoolFacts(NamedTuple):
  """What tells one pool from another."""

  rows: int
  width: int  # columns of an embedding
  columns: list[str]  # those that it had beside it, by their names in jsel.select
  files: list[str]  # their names, without folders
  files_sha256: str  # as `jsel.data.digest.files_sha256` makes it
  id_column: str = ""  # its name in the files; "": rows had no ids
  ids_sha256: str = ""  # as `ids_sha256` makes it


def metadata(facts: PoolFacts) -> dict[bytes, bytes]:
  """``facts`` as metadata of a parquet file."""
  return {KEY: json.dumps(facts._asdict()).encode()}


def facts_in(schema: pa.Schema) -> PoolFacts | None:
  """The facts in the metadata of ``schema``, None where there are none.

  >>> facts = PoolFacts(2, 3, ["id"], ["a.npy"], "ab")
  >>> facts_in(pa.schema([], metadata(facts))) == facts, facts_in(pa.schema([]))
  (True, None)
  """
  said = (schema.metadata or {}).get(KEY)
  return PoolFacts(**json.loads(said)) if said else None


def ids_sha256(arrays: Iterable[pa.Array | pa.ChunkedArray]) -> str:
  """SHA-256 of ids as text, in their order, however they are cut into arrays.

  >>> ids_sha256([pa.array([1, 2])]) == ids_sha256([pa.array(["1"]), pa.array(["2"])])
  True
  """
  digest = hashlib.sha256()
  for array in arrays:
    for start in range(0, len(array), ROWS):
      texts = map(str, array.slice(start, ROWS).to_pylist())
      pieces = "".join(f"{len(text)}:{text}" for text in texts)
      digest.update(pieces.encode(errors="surrogatepass"))
  return digest.hexdigest()


def check_pool(facts: PoolFacts, size: int, config: ConfigDict, *, name: str) -> None:
  """Raises a ValueError if the training set is not the pool of ``facts``, as far as can be seen.

  The number of rows always can; the hash of the files where files of the same names are trained on;
  the ids where they are in a column of the same name.

  Args:
    facts: of the pool.
    size: rows of the training set as the source gives it.
    config: the section ``data``.
    name: of the subset's file.
  """
  remedy = (
    "train on the pool that it was selected from, or set --config.data.allow_other_pool=True if its"
    " rows are those of the training set all the same"
  )
  if facts.rows != size:
    raise ValueError(
      f"{name} is of a pool of {facts.rows:,} rows, the training set has {size:,}: {remedy}"
    )
  if config.name not in ("own", "parquet"):
    return
  paths = files.expand(expanduser(config.train), remedy="correct --config.data.train")
  same_names = [basename(path) for path in paths] == facts.files
  if same_names and files_sha256(paths) != facts.files_sha256:
    raise ValueError(f"{', '.join(facts.files)} is not what {name} was selected from: {remedy}")
  if config.name != "parquet" or not facts.id_column:
    return
  if not all(_has(path, facts.id_column) for path in paths):
    return
  if ids_sha256(ids for path in paths for ids in _ids(path, facts.id_column)) != facts.ids_sha256:
    raise ValueError(
      f"the ids in column {facts.id_column} of {config.train} are not those of the pool that"
      f" {name} was selected from, or in another order: {remedy}"
    )


def _has(path: str, column: str) -> bool:
  with opened(path) as file:
    return column in file.schema_arrow.names


def _ids(path: str, column: str) -> Iterator[pa.Array]:
  with opened(path, in_order=True) as file:
    for batch in file.iter_batches(ROWS, columns=[column]):
      yield batch.column(0)
