"""What is looked at before anything is ranked."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jsel.selection.walk import Walks
from jsel.selectors.parts import Method


class Checked(NamedTuple):
  """What a first walk finds out."""

  finite: np.ndarray  # [n] bool
  zero: np.ndarray  # [n] bool, rows without a direction


def check_rows(walks: Walks, on_nonfinite: str) -> Checked:
  """Looks at every row once.

  Raises:
    ValueError: naming the first row that is not finite, unless such rows are to be dropped.
  """
  if on_nonfinite not in ("raise", "drop"):
    raise ValueError(f'on_nonfinite must be "raise" or "drop", got {on_nonfinite!r}')

  def step(state: tuple[()], found: dict[str, np.ndarray], start: int, x: np.ndarray) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
      norm2 = np.einsum("ij,ij->i", x, x)
    # A square may be lost where the entry is not 0.
    none, zero = np.flatnonzero(norm2 == 0), np.zeros(len(x), bool)
    zero[none] = ~x[none].any(axis=1)
    for name, column in walks.whole({"finite": np.isfinite(norm2), "zero": zero}, start).items():
      found[name][start : start + len(column)] = column
    return state

  size = walks.pool.size
  begin = {"finite": np.zeros(size, bool), "zero": np.zeros(size, bool)}
  checked = Checked(**walks("checking", (), begin, step)[1])
  if on_nonfinite == "raise" and not checked.finite.all():
    bad = np.flatnonzero(~checked.finite)
    raise ValueError(
      f"{bad.size} rows of the pool hold a NaN or an infinity, the first is row {bad[0]}: repair"
      " them, or set --config.on_nonfinite=drop"
    )
  if not checked.finite.any():
    raise ValueError("no row of the pool is finite: there is nothing to choose from")
  return checked


def check_queries(queries: Mapping[str, np.ndarray], width: int) -> None:
  """Raises a ValueError unless all ``queries`` are finite rows of ``width`` columns."""
  for name, x in queries.items():
    what = f"queries {name}" if name else "queries"
    if x.ndim != 2 or not len(x) or x.shape[1] != width:
      raise ValueError(
        f"{what} have shape {x.shape}, the pool has {width} columns: embed both with the same model"
      )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
      raise ValueError(f"row {bad[0]} of {what} holds a NaN or an infinity: repair it")
    zero = np.flatnonzero(~x.any(axis=1))
    if zero.size:
      raise ValueError(f"row {zero[0]} of {what} is all zeros, without a direction: remove it")


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


def rows_wanted(
  budget: float, unit: str, rows: int, length: np.ndarray | None, weighted: bool
) -> int:
  """How many rows to rank at first for a budget.

  >>> rows_wanted(0.035, "fraction", 2_000_000, None, False)
  70000
  """
  if unit not in ("fraction", "rows", "tokens"):
    raise ValueError(f"budget_unit must be fraction, rows or tokens, got {unit!r}")
  if not math.isfinite(budget):
    raise ValueError(f"the budget is {budget}: give a number of {unit}")
  if unit == "tokens":
    if length is None:
      raise ValueError("a budget of tokens needs the column length: set --config.columns.length")
    if weighted:
      raise ValueError("weights hold for a number of rows: give a budget of fraction or rows")
    if not 0 < budget <= length.sum():
      raise ValueError(f"the budget must be in (0, {length.sum():.0f}] tokens, got {budget}")
    return int(np.clip(np.ceil(budget / max(length.mean(), 1e-9)), 1, rows))
  if unit == "rows" and budget != int(budget):
    raise ValueError(f"a budget of rows is a whole number, got {budget}: or set fraction")
  count = round(budget * rows) if unit == "fraction" else int(budget)
  if not 1 <= count <= rows or (unit == "fraction" and budget > 1):
    raise ValueError(f"the budget is {budget} {unit} of a pool of {rows} rows: give 1 to all rows")
  return count
