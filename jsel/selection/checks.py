"""What is looked at before anything is ranked."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jsel.selection.walk import Walks
from jsel.selectors.parts import Method


class Checked(NamedTuple):
  """What a first walk finds out."""

  finite: np.ndarray  # [n] bool, rows whose squared length is a number in float32
  large: np.ndarray  # [n] bool, of the others those that overflow, though no entry is infinite
  zero: np.ndarray  # [n] bool, rows without a direction


def check_rows(walks: Walks, on_nonfinite: str) -> Checked:
  """Looks at every row once.

  Raises:
    ValueError: naming the first row that is not finite or too large, unless such rows are to be
      dropped.
  """
  if on_nonfinite not in ("raise", "drop"):
    raise ValueError(f'on_nonfinite must be "raise" or "drop", got {on_nonfinite!r}')

  def step(state: tuple[()], found: dict[str, np.ndarray], start: int, x: np.ndarray) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
      norm2 = np.einsum("ij,ij->i", x, x)
    over, large = np.flatnonzero(~np.isfinite(norm2)), np.zeros(len(x), bool)
    large[over] = np.isfinite(x[over]).all(axis=1)
    # A square may be lost where the entry is not 0.
    none, zero = np.flatnonzero(norm2 == 0), np.zeros(len(x), bool)
    zero[none] = ~x[none].any(axis=1)
    seen = Checked(np.isfinite(norm2), large, zero)
    for name, column in walks.whole(seen._asdict(), start).items():
      found[name][start : start + len(column)] = column
    return state

  size = walks.pool.size
  begin = {name: np.zeros(size, bool) for name in Checked._fields}
  checked = Checked(**walks("checking", (), begin, step)[1])
  bad = np.flatnonzero(~(checked.finite | checked.large))
  if on_nonfinite == "raise" and bad.size:
    raise ValueError(
      f"{bad.size} rows of the pool hold a NaN or an infinity, the first is row {bad[0]}: repair"
      " them (as float32 a number above 3.4e38 is infinite), or set --config.on_nonfinite=drop"
    )
  large = np.flatnonzero(checked.large)
  if on_nonfinite == "raise" and large.size:
    raise ValueError(
      f"{large.size} rows of the pool are too large for float32 squares, the first is row"
      f" {large[0]}: scale all embeddings by one number so that lengths are below 1e19, or set"
      " --config.on_nonfinite=drop"
    )
  if not checked.finite.any():
    raise ValueError("no row of the pool is finite: there is nothing to choose from")
  return checked


def dropped(checked: Checked) -> str:
  """What rows that are not finite are told to be.

  >>> dropped(Checked(np.array([True, False]), np.array([False, False]), np.array([False, False])))
  '1 rows hold a NaN or an infinity: they are dropped'
  """
  large = int(checked.large.sum())
  bad = int((~checked.finite).sum()) - large
  told = [f"{bad:,} rows hold a NaN or an infinity"] if bad else []
  told += [f"{large:,} rows are too large for float32 squares"] if large else []
  return f"{' and '.join(told)}: they are dropped"


def check_left(finite: np.ndarray, exclude: np.ndarray | None, eligible: np.ndarray) -> None:
  """Raises a ValueError that says why, if no row is ``eligible``.

  Args:
    finite: ``[n]`` bool, of `Checked`.
    exclude: ``[n]`` bool, rows that searches or the caller took out.
    eligible: ``[n]`` bool, what these and must_exclude left.
  """
  if eligible.any():
    return
  out = np.zeros_like(finite) if exclude is None else exclude & finite
  reasons = {
    "hold a NaN or an infinity, or are too large (on_nonfinite)": ~finite,
    "are excluded (exclude, dedup, dedup_text, or empty texts)": out,
    "are in must_exclude": finite & ~out,
  }
  told = [f"{rows.sum():,} {reason}" for reason, rows in reasons.items() if rows.any()]
  raise ValueError(
    f"no row of {len(finite):,} is left to choose from: {', '.join(told)}. Exclude fewer"
  )


def too_few(method: str, ranked: int, rows: int, zeros: int, budget: str) -> str:
  """What is told where a ranking is shorter than the budget.

  Args:
    method: that ranked.
    ranked: rows.
    rows: that there were to rank.
    zeros: of them, those that are all zeros.
    budget: as it was asked for.

  >>> too_few("rds", 0, 9, 9, "2 rows")
  'method rds ranks no row: all 9 are zeros, without a direction. Take a method without queries'
  """
  if not ranked and zeros == rows:
    why = f"all {rows} are zeros, without a direction. Take a method without queries"
  elif not ranked:
    why = (
      f"none of {rows} has a direction, {zeros} being zeros and the others, to a method that"
      " centres, equal to the mean. Take rds, or a method without queries"
    )
  else:
    return (
      f"method {method} ranks {ranked} rows, too few for a budget of {budget}: the others have no"
      f" direction, being all zeros ({zeros} rows) or, to a method that centres, equal to the mean."
      " Lower the budget, or take a method without queries"
    )
  return f"method {method} ranks no row: {why}"


def check_queries(queries: Mapping[str, np.ndarray], width: int) -> None:
  """Raises a ValueError unless all ``queries`` are rows of ``width`` columns that float32 can hold.

  Each has a direction, and a squared length that is a number.
  """
  for name, x in queries.items():
    what = f"queries {name}" if name else "queries"
    if x.ndim != 2:
      raise ValueError(f"{what} have shape {x.shape}: give rows [q, d], one query as [1, d]")
    if not len(x) or x.shape[1] != width:
      raise ValueError(
        f"{what} have shape {x.shape}, the pool has {width} columns: embed both with the same model"
      )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
      raise ValueError(f"row {bad[0]} of {what} holds a NaN or an infinity: repair it")
    zero = np.flatnonzero(~x.any(axis=1))
    if zero.size:
      raise ValueError(f"row {zero[0]} of {what} is all zeros, without a direction: remove it")
    with np.errstate(over="ignore"):
      single = x.astype(np.float32)
      large = np.flatnonzero(~np.isfinite(np.einsum("ij,ij->i", single, single)))
    small = np.flatnonzero(~single.any(axis=1))
    for rows, fault in ((large, "too large for float32 squares"), (small, "all zeros as float32")):
      if rows.size:
        raise ValueError(
          f"row {rows[0]} of {what} is {fault}, its largest entry is {np.abs(x[rows[0]]).max():g}:"
          " scale the queries by one number so that lengths are near 1"
        )


def check_needs(method: str, chosen: Method, given: Mapping[str, Any]) -> None:
  """Raises a ValueError that names the first thing that ``method`` needs and that is not there."""
  for need in chosen.needs:
    if given[need] is None:
      remedy = "--config.queries" if need == "queries" else f"--config.columns.{need}"
      raise ValueError(f"method {method} needs {need}, the pool comes without: set {remedy}")
    # A quality score may be missing for some rows, a length may not.
    if need != "score":
      continue
    score = given[need]
    if not np.isfinite(score).any():
      raise ValueError(f"method {method} needs score, no row of the pool has a finite one")
    infinite = np.flatnonzero(np.isinf(score))
    if infinite.size:
      raise ValueError(
        f"the score of row {infinite[0]} is {score[infinite[0]]}: give a finite one, or none (NaN)"
        " where it is not known"
      )


def check_lengths(length: np.ndarray | None) -> None:
  """Raises a ValueError unless all lengths are numbers of at least 0."""
  if length is None:
    return
  bad = np.flatnonzero(~(np.isfinite(length) & (length >= 0)))
  if bad.size:
    raise ValueError(
      f"lengths must be numbers of at least 0, that of row {bad[0]} is {length[bad[0]]}: repair it"
    )


def check_budget(budget: float, unit: str, weighted: bool) -> None:
  """Raises a ValueError for a budget that is none of any pool."""
  if unit not in ("fraction", "rows", "tokens"):
    raise ValueError(f"budget_unit must be fraction, rows or tokens, got {unit!r}")
  if not math.isfinite(budget):
    raise ValueError(f"the budget is {budget}: give a number of {unit}")
  if unit == "tokens" and weighted:
    raise ValueError("weights hold for a number of rows: give a budget of fraction or rows")
  if unit == "rows" and budget != int(budget):
    raise ValueError(f"a budget of rows is a whole number, got {budget}: or set fraction")
  if budget <= 0 or (unit == "fraction" and budget > 1):
    most = "a share in (0, 1]" if unit == "fraction" else f"a number of {unit} above 0"
    raise ValueError(f"the budget is {budget} {unit}: give {most}")


def rows_wanted(
  budget: float, unit: str, rows: int, length: np.ndarray | None, weighted: bool
) -> int:
  """How many rows to rank at first for a budget.

  >>> rows_wanted(0.035, "fraction", 2_000_000, None, False)
  70000
  """
  check_budget(budget, unit, weighted)
  if unit == "tokens":
    if length is None:
      raise ValueError("a budget of tokens needs the column length: set --config.columns.length")
    if not 0 < budget <= length.sum():
      raise ValueError(f"the budget must be in (0, {length.sum():.0f}] tokens, got {budget}")
    return int(np.clip(np.ceil(budget / max(length.mean(), 1e-9)), 1, rows))
  count = round(budget * rows) if unit == "fraction" else int(budget)
  if not 1 <= count <= rows:
    raise ValueError(f"the budget is {budget} {unit} of a pool of {rows} rows: give 1 to all rows")
  return count
