"""A subset of a pool: the call that the command makes, for arrays too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jsel import sharding
from jsel.selection.pool import ArrayPart, Pool
from jsel.selection.walk import Walker, block_rows
from jsel.selectors import methods
from jsel.selectors.parts import Ranking, Task


class Checked(NamedTuple):
  """What a first walk finds out."""

  finite: np.ndarray  # [n] bool
  zero: int  # rows without a direction


def select(
  pool: Pool | np.ndarray,
  method: str,
  budget: float,
  *,
  unit: str = "fraction",
  queries: np.ndarray | None = None,
  columns: dict[str, Any] | None = None,
  exclude: np.ndarray | None = None,
  on_nonfinite: str = "raise",
  seed: int = 0,
  report: Callable[[str, int, int], Any] = lambda *_: None,
  stop: Callable[[], bool] = lambda: False,
  **constants: Any,
) -> Ranking:
  """The rows of ``pool`` that ``method`` takes within ``budget``, by rank.

  Args:
    pool: embeddings ``[n, d]``, or a `Pool`.
    method: a key of `jsel.selectors.methods.METHODS`.
    budget: a share of the pool, rows, or tokens (of the column "length").
    unit: "fraction", "rows" or "tokens".
    queries: ``[q, d]``, for methods that need some.
    columns: of an array: "id", "length", "score".
    exclude: ``[n]`` bool, rows that may not be taken: leaked or doubled ones, say.
    on_nonfinite: "raise" where a row has a NaN or an infinity, or "drop" it.
    seed: of what is random.
    report: told the walk, its rows so far and in all.
    stop: asked between blocks whether to end with `jsel.selection.walk.Stopped`.
    **constants: of the method.

  Raises:
    ValueError: if an input is missing or not as it should be.

  >>> x = np.eye(4, dtype=np.float32)
  >>> select(x, "rds", 2, unit="rows", queries=x[2:]).index.tolist()
  [2, 3]
  """
  if isinstance(pool, np.ndarray):
    if not len(pool):
      raise ValueError("the pool has no rows: a pool needs at least one")
    pool = Pool([ArrayPart(pool, columns)])
  if on_nonfinite not in ("raise", "drop"):
    raise ValueError(f'on_nonfinite must be "raise" or "drop", got {on_nonfinite!r}')
  chosen = methods.make(method, **constants)
  length, score = pool.numbers("length"), pool.numbers("score")
  given = {"queries": queries, "length": length, "score": score}
  for need in chosen.needs:
    if given[need] is None:
      remedy = "--config.queries" if need == "queries" else f"--config.columns.{need}"
      raise ValueError(f"method {method} needs {need}, the pool comes without: set {remedy}")
  if queries is not None:
    check_queries(queries, pool.width)
  pool.check_ids()
  checked = check_rows(pool, report)
  if on_nonfinite == "raise" and not checked.finite.all():
    bad = np.flatnonzero(~checked.finite)
    raise ValueError(
      f"{bad.size} rows of the pool hold a NaN or an infinity, the first is row {bad[0]}: repair"
      " them, or set --config.on_nonfinite=drop"
    )
  eligible = checked.finite if exclude is None else checked.finite & ~exclude
  count = rows_wanted(budget, unit, int(eligible.sum()), length, chosen.weighted)
  mesh = sharding.make_mesh()
  walker = Walker(pool, eligible, mesh, report=report, stop=stop)
  queries = None if queries is None else queries.astype(np.float32)
  axis = sharding.row_axes(mesh)
  task = Task(pool.size, pool.width, eligible, axis, queries, score, length)
  requests = chosen.rank(jax.random.key(seed), task, count)
  request = next(requests)
  while True:
    if not isinstance(request, Ranking):
      request = requests.send(walker(request))
      continue
    taken = within(request, budget if unit == "tokens" else None, count, length)
    if taken is not None:
      return taken
    if count >= eligible.sum():
      raise ValueError(
        f"method {method} ranks {len(request.index)} rows, the budget is {count}: lower it, or give"
        " rows without a direction (all zeros) one"
      )
    count = min(2 * count, int(eligible.sum()))
    request = requests.send(count)


def check_queries(queries: np.ndarray, width: int) -> None:
  """Raises a ValueError unless ``queries`` are finite rows of ``width`` columns."""
  if queries.ndim != 2 or not len(queries) or queries.shape[1] != width:
    raise ValueError(
      f"queries have shape {queries.shape}, the pool has {width} columns: embed both with the same"
      " model"
    )
  bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
  if bad.size:
    raise ValueError(f"query {bad[0]} holds a NaN or an infinity: repair it")


def check_rows(pool: Pool, report: Callable[[str, int, int], Any]) -> Checked:
  """Looks at every row once."""
  finite, zero, start = np.empty(pool.size, bool), 0, 0
  for x in pool.blocks(block_rows(pool.size, pool.width)):
    with np.errstate(over="ignore", invalid="ignore"):
      norm2 = np.einsum("ij,ij->i", x, x)
    finite[start : start + len(x)] = np.isfinite(norm2)
    zero += int((norm2 == 0).sum())
    start += len(x)
    report("checking", start, pool.size)
  return Checked(finite, zero)


def rows_wanted(
  budget: float, unit: str, rows: int, length: np.ndarray | None, weighted: bool
) -> int:
  """How many rows to rank at first for a budget.

  >>> rows_wanted(0.035, "fraction", 2_000_000, None, False)
  70000
  """
  if unit not in ("fraction", "rows", "tokens"):
    raise ValueError(f"budget_unit must be fraction, rows or tokens, got {unit!r}")
  if unit == "tokens":
    if length is None:
      raise ValueError("a budget of tokens needs the column length: set --config.columns.length")
    if weighted:
      raise ValueError("weights hold for a number of rows: give a budget of fraction or rows")
    if not np.isfinite(length).all() or (length < 0).any():
      raise ValueError("lengths must be numbers of at least 0")
    if not 0 < budget <= length.sum():
      raise ValueError(f"the budget must be in (0, {length.sum():.0f}] tokens, got {budget}")
    return int(np.clip(np.ceil(budget / max(length.mean(), 1e-9)), 1, rows))
  if unit == "rows" and budget != int(budget):
    raise ValueError(f"a budget of rows is a whole number, got {budget}: or set fraction")
  count = round(budget * rows) if unit == "fraction" else int(budget)
  if not 1 <= count <= rows or (unit == "fraction" and budget > 1):
    raise ValueError(f"the budget is {budget} {unit} of a pool of {rows} rows: give 1 to all rows")
  return count


def within(
  ranking: Ranking, tokens: float | None, count: int, length: np.ndarray | None
) -> Ranking | None:
  """The first rows of a ranking within the budget; None if it is too short to tell."""
  m = min(count, len(ranking.index))
  if tokens is not None:
    assert length is not None
    total = np.cumsum(length[ranking.index])
    m = int(np.searchsorted(total, tokens, side="right"))
    if m == len(total) and m < len(length):
      return None
  elif ranking.weight is None and m < count:
    return None
  return Ranking(*(None if column is None else column[:m] for column in ranking))
