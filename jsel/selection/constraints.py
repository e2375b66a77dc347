"""What a subset must hold: rows by id, and how many of each source."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jsel.data import files
from jsel.data.parquet_columns import opened
from jsel.kernels import quotas
from jsel.selection.pool import Pool
from jsel.selectors.parts import Ranking

Amount = int | float  # rows, or a share of the budget


class Limits(NamedTuple):
  """How many rows of each source a subset holds."""

  source: np.ndarray  # [n] int32, into the names; the last is of rows without a source
  names: list[str]
  lower: np.ndarray  # [names] int64
  upper: np.ndarray  # [names] int64


def read_amounts(text: str, key: str) -> dict[str, Amount]:
  """Amounts by name; with a point a share of the budget, else rows.

  Args:
    text: as the user gave it.
    key: of the config, for messages.

  Raises:
    ValueError: if it is not of such a form.

  >>> read_amounts("web:0.2, code:5000", "caps")
  {'web': 0.2, 'code': 5000}
  """
  found: dict[str, Amount] = {}
  for piece in (piece.strip() for piece in text.split(",")):
    name, colon, amount = piece.rpartition(":")
    if name in found:
      raise ValueError(f"--config.{key} has {name!r} twice, the second as {piece!r}: give it once")
    try:
      found[name] = float(amount) if "." in amount else int(amount)
    except ValueError:
      colon = ""
    if not colon or not name:
      raise ValueError(
        f"--config.{key} has {piece!r}: give NAME:ROWS or, with a point, NAME:SHARE, separated by"
        " commas, as web:0.2,code:5000"
      )
  return found


def read_ids(path: str, key: str) -> list[Any]:
  """The ids in a text file, a line each, or in the column id, or the only one, of a parquet file.

  Raises:
    ValueError: if the file is missing, broken or has no such column.
  """
  (path,) = files.expand(path, remedy=f"correct --config.{key}")
  if not path.endswith(".parquet"):
    try:
      lines = files.read(path).decode().splitlines()
    except UnicodeDecodeError as error:
      raise ValueError(f"{path} is no text of ids, a line each: {error}") from error
    return [line.strip() for line in lines if line.strip()]
  with opened(path) as file:
    names = file.schema_arrow.names
    if "id" not in names and len(names) != 1:
      raise ValueError(f"{path} has no column 'id' among {', '.join(names)}: rename the one of ids")
    return file.read(columns=["id" if "id" in names else names[0]]).column(0).to_pylist()


def rows_of(ids: Sequence[Any] | np.ndarray, pool: Pool, key: str) -> np.ndarray:
  """The rows of ``ids``, or of row numbers where the pool has no ids, each once.

  Raises:
    ValueError: naming the first that is not there.
  """
  ids = list(ids.tolist() if isinstance(ids, np.ndarray) else ids)
  if not ids:
    return np.zeros(0, np.int32)
  if None in ids:
    raise ValueError(
      f"{key}: {ids.count(None)} of {len(ids)} ids are missing (null), the first is number"
      f" {ids.index(None)}, from 0: remove or correct them"
    )
  column = pool.columns.get("id", pa.chunked_array([pa.array(np.arange(pool.size))]))
  what = "id" if "id" in pool.columns else "row"
  try:
    # As text: a file of lines has nothing else.
    wanted = pa.array([str(value) for value in ids], pa.string())
    place = pc.index_in(wanted, value_set=column.cast(pa.string()))  # pyrefly: ignore
  except (pa.ArrowException, UnicodeError) as error:
    raise ValueError(f"{key}: ids of {column.type} are not looked up ({error})") from error
  rows = np.asarray(place.fill_null(-1))
  absent = np.flatnonzero(rows < 0)
  if absent.size:
    raise ValueError(
      f"{key}: {absent.size} of {len(ids)} are no {what} of the pool, the first is"
      f" {ids[absent[0]]!r}: remove or correct them"
    )
  _, first = np.unique(rows, return_index=True)
  return rows[np.sort(first)].astype(np.int32)


def named(pool: Pool, row: int) -> str:
  """The row as people know it: by its id, where the pool has some."""
  id_of = f"id {pool.columns['id'][int(row)].as_py()!r} of " if "id" in pool.columns else ""
  return f"{id_of}row {row}"


def check_apart(pool: Pool, must: np.ndarray, excluded: np.ndarray) -> None:
  """Raises a ValueError that names the first of the rows ``must`` that is ``excluded`` too."""
  both = must[np.isin(must, excluded)]
  if both.size:
    raise ValueError(
      f"{named(pool, both[0])} is in must_include and in must_exclude: remove it from one of them"
    )


def check_must(pool: Pool, must: np.ndarray, finite: np.ndarray, eligible: np.ndarray) -> None:
  """Raises a ValueError that names the first of the rows ``must`` that may not be taken.

  Args:
    pool: of the rows.
    must: rows that are taken in any case.
    finite: ``[n]`` bool, rows of numbers.
    eligible: ``[n]`` bool, those of them that are not excluded.
  """
  lost = must[~eligible[must]]
  if not lost.size:
    return
  why = "is excluded" if finite[lost[0]] else "holds a NaN or an infinity, or is too large"
  change = "change what is excluded" if finite[lost[0]] else "repair it"
  raise ValueError(
    f"{named(pool, lost[0])} is in must_include, but {why}: {change}, or remove it from there"
  )


def limits(
  pool: Pool,
  caps: Mapping[str, Amount],
  floors: Mapping[str, Amount],
  *,
  count: int,
  eligible: np.ndarray,
  must: np.ndarray,
) -> Limits:
  """Caps and floors as rows.

  A share of the budget is rounded down in a cap and up in a floor.

  Args:
    pool: with the column source.
    caps: the most of a source; no limit where it has none.
    floors: the least of a source.
    count: rows of the budget.
    eligible: ``[n]`` bool, the rows that may be taken.
    must: rows that are taken in any case.

  Raises:
    ValueError: if there are no sources, none of such a name, or the bounds cannot be met.
  """
  if "source" not in pool.columns:
    raise ValueError(
      "caps and floors are of sources, the pool has none: set --config.columns.source"
    )
  encoded = pool.columns["source"].cast(pa.string()).combine_chunks().dictionary_encode()
  names = encoded.dictionary.to_pylist()
  source = np.asarray(encoded.indices.fill_null(len(names))).astype(np.int32)
  for key, amounts in (("caps", caps), ("floors", floors)):
    for name in amounts:
      if name not in names:
        known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise ValueError(f"--config.{key} names {name!r}, which is no source: there are {known}")
  names.append("(none)")
  places = {name: place for place, name in enumerate(names)}
  rows = np.bincount(source[eligible], minlength=len(names))
  held = np.bincount(source[must], minlength=len(names))
  lower, upper = np.zeros(len(names), np.int64), rows.copy()
  for name, amount in caps.items():
    cap = int(np.floor(round(amount * count, 6))) if isinstance(amount, float) else amount
    upper[places[name]] = min(upper[places[name]], cap)
    _check_amount("caps", name, amount)
    if held[places[name]] > cap:
      last = must[source[must] == places[name]][cap]
      raise ValueError(
        f"must_include has {held[places[name]]} rows of {name}, its cap is {cap}: raise the cap, or"
        f" remove {named(pool, last)}"
      )
  for name, amount in floors.items():
    _check_amount("floors", name, amount)
    floor = int(np.ceil(round(amount * count, 6))) if isinstance(amount, float) else amount
    lower[places[name]] = floor
    if floor > rows[places[name]]:
      raise ValueError(
        f"source {name} has {rows[places[name]]} rows that may be taken, its floor is {floor}:"
        " lower the floor"
      )
    if floor > upper[places[name]]:
      raise ValueError(f"source {name} has floor {floor} and cap {upper[places[name]]}: change one")
  lower = np.maximum(lower, held)
  if lower.sum() > count:
    raise ValueError(
      f"floors and must_include ask for {lower.sum()} rows, the budget is {count}: raise it, or ask"
      " for fewer"
    )
  if upper.sum() < count:
    raise ValueError(f"caps leave room for {upper.sum()} rows, the budget is {count}: raise a cap")
  return Limits(source, names, lower, upper)


def _check_amount(key: str, name: str, amount: Amount) -> None:
  if amount < 0 or (isinstance(amount, float) and amount > 1):
    raise ValueError(f"--config.{key} has {name}:{amount}: give a share in [0, 1] or rows")


def put_first(ranking: Ranking, must: np.ndarray) -> Ranking:
  """The rows ``must``, then the others as they were ranked.

  What the ranking does not say of a row is NaN or -1.

  >>> ranking = Ranking(np.array([4, 2, 0]), np.array([9.0, 8, 7]))
  >>> put_first(ranking, np.array([2, 5])).score.tolist()
  [8.0, nan, 9.0, 7.0]
  """
  place = np.full(int(max(must.max(initial=0), ranking.index.max(initial=0))) + 1, -1)
  place[ranking.index] = np.arange(len(ranking.index))
  at = place[must]
  rest = np.flatnonzero(~np.isin(ranking.index, must))

  def column(values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
      return None
    unknown = np.nan if values.dtype.kind == "f" else -1
    first = np.where(at >= 0, values[np.maximum(at, 0)], unknown).astype(values.dtype)
    return np.concatenate([first, values[rest]])

  columns = ranking._replace(index=None)  # pyrefly: ignore
  index = np.concatenate([must.astype(ranking.index.dtype), ranking.index[rest]])
  return Ranking(*map(column, columns))._replace(index=index)


def keep(ranking: Ranking, limits: Limits, lower: np.ndarray, count: int) -> np.ndarray | None:
  """Which of a ranking are taken: ``lower`` of each source, then what has room, by rank.

  Returns:
    ``[m]`` bool of ``count`` rows; None where a longer ranking is needed to tell.
  """
  source = limits.source[ranking.index]
  rows = np.bincount(source, minlength=len(limits.names))
  if (rows < lower).any() or np.minimum(rows, limits.upper).sum() < count:
    return None
  rank = jnp.arange(len(ranking.index), dtype=jnp.int32)
  bounds = {"lower": lower.astype(np.int32), "upper": limits.upper.astype(np.int32)}
  return np.asarray(quotas.bounds_mask(-rank, jnp.asarray(source), count, **bounds))
