"""A subset of a pool: the call that the command makes, for arrays too."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jsel import sharding
from jsel.kernels.random import key_of_seed
from jsel.selection import checks, constraints, hosts, plan, subset, tasks
from jsel.selection.answers import Answers
from jsel.selection.arrays import as_mask, as_numbers
from jsel.selection.constraints import Amount
from jsel.selection.pool import ArrayPart, Pool
from jsel.selection.subset import Subset
from jsel.selection.walk import Walker, Walks
from jsel.selectors import methods
from jsel.selectors.parts import Note, Ranking, Task


def select(
  pool: Pool | ArrayLike,
  method: str,
  budget: float,
  *,
  unit: str = "fraction",
  queries: ArrayLike | Mapping[str, ArrayLike] | None = None,
  task_quotas: Mapping[str, float] | None = None,
  columns: Mapping[str, Any] | None = None,
  exclude: np.ndarray | Callable[[], np.ndarray | None] | None = None,
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
  tell: Callable[[Note], Any] = lambda _: None,
  **constants: Any,
) -> Subset:
  """The rows of ``pool`` that ``method`` takes within ``budget``, by rank.

  With several processes (`jsel.sharding.join_hosts`) each has to make the same call, and has the
  same result.

  Args:
    pool: embeddings ``[n, d]``, of NumPy or JAX or lists of rows, or a `Pool`.
    method: a key of `jsel.selectors.methods.METHODS`.
    budget: a share of the pool, rows, or tokens (of the column "length").
    unit: "fraction", "rows" or "tokens".
    queries: ``[q, d]``, for methods that need some; or several such sets by name, that take turns
      (`jsel.selection.tasks`).
    task_quotas: the sets' parts of the budget, in proportion; equal if None.
    columns: of an array: "id", "source", "length", "score" and others.
    exclude: ``[n]`` bool, rows that may not be taken: leaked or doubled ones, say; or a function
      that finds them, called once the plan is approved.
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
    approve: is shown, in process 0, what the ranking will take before it is begun, and may raise.
    tell: is handed what the method has to say of its way to the ranking.
    **constants: of the method.

  Raises:
    ValueError: if an input is missing or not as it should be.

  >>> x = np.eye(4, dtype=np.float32)
  >>> select(x, "rds", 2, unit="rows", queries=x[2:]).index.tolist()
  [2, 3]
  >>> select(x, "rds", 2, unit="rows", queries=x[2:], must_include=[1]).index.tolist()
  [1, 2]
  """
  if not isinstance(pool, Pool):
    x = as_numbers(pool, "pool")
    if not x.size:
      raise ValueError(f"the pool has no rows, its shape is {x.shape}: a pool needs at least one")
    pool = Pool([ArrayPart(x, columns)])
  chosen = methods.make(method, **constants)
  if queries is not None and "queries" not in chosen.needs:
    warn(f"method {method} needs no queries: those that are given are not used")
    queries = task_quotas = None
  sets = _sets(queries)
  # A column that is not needed may hold anything.
  length = pool.numbers("length") if "length" in chosen.needs or unit == "tokens" else None
  score = pool.numbers("score") if "score" in chosen.needs else None
  given = {"queries": sets or None, "length": length, "score": score}
  checks.check_needs(method, chosen, given)
  checks.check_queries(sets, pool.width)
  checks.check_lengths(length)
  pool.check_ids()
  names = list(sets)
  shares = _shares(names, task_quotas)
  must = constraints.rows_of(must_include, pool, "must_include")
  excluded = constraints.rows_of(must_exclude, pool, "must_exclude")
  constraints.check_apart(pool, must, excluded)
  caps, floors = caps or {}, floors or {}
  _check_constraints(method, chosen.weighted, unit, must.size, bool(caps or floors))

  # What a ranking takes is told before the pool is walked over: as if every row might be taken.
  mesh = sharding.make_mesh()
  axis, everything = sharding.row_axes(mesh), np.ones(pool.size, bool)
  task = Task(pool.size, pool.width, everything, axis, None, score, length)
  sets = {name: x.astype(np.float32) for name, x in sets.items()}
  by_task = bool(sets) and "" not in sets
  if not by_task:
    task = task._replace(queries=sets.get(""))
  count = checks.rows_wanted(budget, unit, pool.size, length, chosen.weighted)
  if approve:
    cost = tasks.tasks_cost(chosen, task, count, sets) if by_task else chosen.cost(task, count)
    hosts.of_first(lambda: approve(plan.make_plan(pool, cost)))
  if callable(exclude):
    exclude = exclude()
  if exclude is not None:
    exclude = as_mask(exclude, pool.size, "exclude")

  walks = Walks(pool, mesh, report=report, stop=stop, answers=answers)
  checked = checks.check_rows(walks, on_nonfinite)
  if not checked.finite.all():
    warn(checks.dropped(checked))
  if sets and checked.zero.any():
    first = np.flatnonzero(checked.zero)[0]
    warn(
      f"{checked.zero.sum():,} rows are all zeros, the first is row {first}: no query finds them"
    )
  eligible = checked.finite.copy() if exclude is None else checked.finite & ~exclude
  constraints.check_must(pool, must, checked.finite, eligible)
  eligible[excluded] = False
  checks.check_left(checked.finite, exclude, eligible)
  rows, left = int(eligible.sum()), None if length is None else length[eligible]
  count = checks.rows_wanted(budget, unit, rows, left, chosen.weighted)
  task = task._replace(eligible=eligible)
  limits = None
  if caps or floors:
    limits = constraints.limits(pool, caps, floors, count=count, eligible=eligible, must=must)
  elif must.size > count and unit != "tokens":
    raise ValueError(
      f"must_include has {must.size} rows, the budget is {count}: raise the budget, or remove ids"
      f" from {constraints.named(pool, must[count])} on"
    )

  def fit(ranking: Ranking) -> Subset | None:
    ranking = constraints.put_first(ranking, must) if must.size else ranking
    if limits is not None:
      return subset.within_limits(ranking, count, limits, must)
    tokens = length[ranking.index] if unit == "tokens" and length is not None else None
    return subset.within(ranking, count, must.size, tokens=tokens, budget=budget, rows=rows)

  key = key_of_seed(seed)
  if by_task:
    requests = tasks.by_tasks(chosen, key, task, count, sets, shares)
  else:
    requests = chosen.rank(key, task, count)
  found, ranked = first_fit(requests, Walker(walks, eligible, tell=tell), fit, count, rows)
  if found is None:
    zeros = int((checked.zero & eligible).sum())
    raise ValueError(checks.too_few(method, ranked, rows, zeros, f"{budget:g} {unit}"))
  return found._replace(tasks=tuple(names) if by_task else ())


def first_fit(
  requests: Generator[Any, Any, None],
  walker: Walker,
  fit: Callable[[Ranking], Subset | None],
  count: int,
  most: int,
) -> tuple[Subset | None, int]:
  """What ``fit`` makes of the first ranking that is long enough for it.

  Args:
    requests: of a method, which was asked for ``count`` rows.
    walker: that answers them.
    fit: gives None where it needs a longer ranking.
    count: rows that were asked for.
    most: rows that there are to ask for.

  Returns:
    The subset, None if no ranking was long enough; and the rows that the last one had.
  """
  request, ranked = next(requests), 0
  while True:
    if not isinstance(request, Ranking):
      request = requests.send(walker(request))
      continue
    found, ranked = fit(request), len(request.index)
    if found is not None or count >= most:
      return found, ranked
    count = min(2 * count, most)
    try:
      request = requests.send(count)
    except StopIteration:
      return None, ranked


def _sets(queries: ArrayLike | Mapping[str, ArrayLike] | None) -> dict[str, np.ndarray]:
  if queries is None:
    return {}
  sets = queries if isinstance(queries, Mapping) else {"": queries}
  return {name: as_numbers(x, f"queries {name}".strip()) for name, x in sets.items()}


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
