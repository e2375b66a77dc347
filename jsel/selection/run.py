"""A subset of a pool: the call that the command makes, for arrays too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jsel import sharding
from jsel.selection import checks, constraints, plan, subset, tasks
from jsel.selection.answers import Answers
from jsel.selection.constraints import Amount
from jsel.selection.pool import ArrayPart, Pool
from jsel.selection.subset import Subset
from jsel.selection.walk import Walker, Walks
from jsel.selectors import methods
from jsel.selectors.parts import Ranking, Task


def select(
  pool: Pool | np.ndarray,
  method: str,
  budget: float,
  *,
  unit: str = "fraction",
  queries: np.ndarray | Mapping[str, np.ndarray] | None = None,
  task_quotas: Mapping[str, float] | None = None,
  columns: Mapping[str, Any] | None = None,
  exclude: np.ndarray | None = None,
  must_include: Sequence[Any] | np.ndarray = (),
  must_exclude: Sequence[Any] | np.ndarray = (),
  caps: Mapping[str, Amount] | None = None,
  floors: Mapping[str, Amount] | None = None,
  on_nonfinite: str = "raise",
  seed: int = 0,
  report: Callable[[str, int, int], Any] = lambda *_: None,
  warn: Callable[[str], Any] = lambda _: None,
  stop: Callable[[], bool] = lambda: False,
  answers: Answers | None = None,
  approve: Callable[[plan.Plan], Any] | None = None,
  **constants: Any,
) -> Subset:
  """The rows of ``pool`` that ``method`` takes within ``budget``, by rank.

  Args:
    pool: embeddings ``[n, d]``, or a `Pool`.
    method: a key of `jsel.selectors.methods.METHODS`.
    budget: a share of the pool, rows, or tokens (of the column "length").
    unit: "fraction", "rows" or "tokens".
    queries: ``[q, d]``, for methods that need some; or several such sets by name, that take turns
      (`jsel.selection.tasks`).
    task_quotas: the sets' parts of the budget, in proportion; equal if None.
    columns: of an array: "id", "source", "length", "score" and others.
    exclude: ``[n]`` bool, rows that may not be taken: leaked or doubled ones, say.
    must_include: ids (row numbers where the pool has no ids) that are taken first; within the
      budget and caps.
    must_exclude: ids that are no part of the pool.
    caps: the most rows of a source, an int, or a float as a share of the budget.
    floors: the least rows of a source.
    on_nonfinite: "raise" where a row has a NaN or an infinity, or "drop" it.
    seed: of what is random.
    report: told the walk, its rows so far and in all.
    warn: told what is not as it might be expected.
    stop: asked between blocks whether to end with `jsel.selection.walk.Stopped`.
    answers: where walks are kept for a later call with the same arguments.
    approve: is shown what the ranking will take before it is begun, and may raise.
    **constants: of the method.

  Raises:
    ValueError: if an input is missing or not as it should be.

  >>> x = np.eye(4, dtype=np.float32)
  >>> select(x, "rds", 2, unit="rows", queries=x[2:]).index.tolist()
  [2, 3]
  >>> select(x, "rds", 2, unit="rows", queries=x[2:], must_include=[1]).index.tolist()
  [1, 2]
  """
  if isinstance(pool, np.ndarray):
    if not len(pool):
      raise ValueError("the pool has no rows: a pool needs at least one")
    pool = Pool([ArrayPart(pool, columns)])
  chosen = methods.make(method, **constants)
  sets = _sets(queries)
  length, score = pool.numbers("length"), pool.numbers("score")
  given = {"queries": sets or None, "length": length, "score": score}
  checks.check_needs(method, chosen, given)
  checks.check_queries(sets, pool.width)
  checks.check_lengths(length)
  pool.check_ids()
  names = list(sets)
  shares = _shares(names, task_quotas)
  must = constraints.rows_of(must_include, pool, "must_include")
  excluded = constraints.rows_of(must_exclude, pool, "must_exclude")
  caps, floors = caps or {}, floors or {}
  _check_constraints(method, chosen.weighted, unit, must.size, bool(caps or floors))

  # What a ranking takes is told before the pool is walked over: as if every row might be taken.
  mesh = sharding.make_mesh()
  axis, everything = sharding.row_axes(mesh), np.ones(pool.size, bool)
  task = Task(pool.size, pool.width, everything, axis, None, score, length)
  sets = {name: x.astype(np.float32) for name, x in sets.items()}
  if len(sets) == 1:
    task = task._replace(queries=next(iter(sets.values())))
  count = checks.rows_wanted(budget, unit, pool.size, length, chosen.weighted)
  if approve:
    many = tasks.tasks_cost(chosen, task, count, sets) if len(sets) > 1 else None
    approve(plan.make_plan(pool, many or chosen.cost(task, count)))

  walks = Walks(pool, report=report, stop=stop, answers=answers)
  checked = checks.check_rows(walks, on_nonfinite)
  if not checked.finite.all():
    warn(f"{(~checked.finite).sum():,} rows hold a NaN or an infinity: they are dropped")
  if sets and checked.zero.any():
    first = np.flatnonzero(checked.zero)[0]
    warn(
      f"{checked.zero.sum():,} rows are all zeros, the first is row {first}: no query finds them"
    )
  eligible = checked.finite.copy() if exclude is None else checked.finite & ~exclude
  eligible[excluded] = False
  lost = must[~eligible[must]]
  if lost.size:
    raise ValueError(f"row {lost[0]} is in must_include, but is excluded or not finite: decide")
  count = checks.rows_wanted(budget, unit, int(eligible.sum()), length, chosen.weighted)
  task = task._replace(eligible=eligible)
  limits = None
  if caps or floors:
    limits = constraints.limits(pool, caps, floors, count=count, eligible=eligible, must=must)
  elif must.size > count and unit != "tokens":
    raise ValueError(f"must_include has {must.size} rows, the budget is {count}")

  key = jax.random.key(seed)
  walker = Walker(walks, eligible, mesh)
  if len(sets) > 1:
    requests = tasks.by_tasks(chosen, key, task, count, sets, shares)
  else:
    requests = chosen.rank(key, task, count)
  request, asked = next(requests), count
  while True:
    if not isinstance(request, Ranking):
      request = requests.send(walker(request))
      continue
    ranking = constraints.put_first(request, must) if must.size else request
    if limits is None:
      tokens = budget if unit == "tokens" else None
      taken = subset.within(ranking, count, tokens=tokens, length=length, must=must.size)
    else:
      taken = subset.within_limits(ranking, count, limits, must)
    if taken is not None:
      return taken if taken.task is None else taken._replace(tasks=tuple(names))
    asked *= 2
    try:
      if asked >= 2 * eligible.sum():
        raise StopIteration
      request = requests.send(min(asked, int(eligible.sum())))
    except StopIteration:
      raise ValueError(
        f"method {method} ranks {len(request.index)} rows, too few for a budget of {budget:g}"
        f" {unit}: the others have no direction, being all zeros ({checked.zero.sum()} rows) or, to"
        " a method that centres, equal to the mean. Lower the budget, or take a method without"
        " queries"
      ) from None


def _sets(queries: np.ndarray | Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
  if queries is None:
    return {}
  return dict(queries) if isinstance(queries, Mapping) else {"": queries}


def _shares(names: list[str], quotas: Mapping[str, float] | None) -> np.ndarray:
  """The parts of sets of queries in a budget, in their order."""
  quotas = dict.fromkeys(names, 1.0) if quotas is None else quotas
  if sorted(quotas) != sorted(names):
    raise ValueError(
      f"task_quotas are of {', '.join(quotas)}, queries of {', '.join(names)}: name the same tasks"
    )
  shares = np.array([float(quotas[name]) for name in names])
  if names and not (np.isfinite(shares).all() and (shares >= 0).all() and shares.any()):
    raise ValueError(f"task_quotas must be at least 0 and not all 0, got {dict(quotas)}")
  return shares


def _check_constraints(method: str, weighted: bool, unit: str, must: int, bounded: bool) -> None:
  if weighted and (must or bounded):
    raise ValueError(
      f"method {method} weights rows so that sums over them are unbiased; must_include, caps and"
      " floors would change who is drawn, and no weight would hold: leave them out (must_exclude"
      " makes the pool smaller, and is fine)"
    )
  if unit == "tokens" and bounded:
    raise ValueError("caps and floors count rows: give a budget of fraction or rows")
