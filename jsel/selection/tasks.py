"""Several sets of queries, one a task, that share a budget."""

from collections.abc import Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import quotas
from jsel.selectors.parts import Cost, Method, Pass, Ranking, Take, Task


def by_tasks(
  method: Method,
  key: jax.Array,
  task: Task,
  count: int,
  queries: Mapping[str, np.ndarray],
  shares: np.ndarray,
) -> Generator[Pass | Take | Ranking, Any, None]:
  """Ranks once for each set of ``queries``; then the sets take turns, and no row comes twice.

  A set has its largest-remainder share of the budget, exactly. Turns are spread evenly: the j-th
  of a set that has q comes at time (j + 1/2) / q. A set whose next row is taken already goes on
  to its next one that is free.

  Args:
    method: that needs queries.
    key: of the method, the same for every set.
    task: without queries.
    count: rows to rank.
    queries: ``[q, d]`` by name.
    shares: ``[sets]``, in proportion.
  """
  each = [method.rank(key, task._replace(queries=x), count) for x in queries.values()]
  rankings: list[Ranking] = []
  for requests in each:
    rankings.append((yield from _advance(requests, None)))
  while True:
    count = yield merge(rankings, quotas_of(shares, count), task.size)
    for place, requests in enumerate(each):
      rankings[place] = (yield from _advance(requests, count)) or rankings[place]


def _advance(requests: Generator[Any, Any, None], answer: int | None) -> Generator[Any, Any, Any]:
  """The next ranking; None where there is none."""
  try:
    request = requests.send(answer)  # pyrefly: ignore
    while not isinstance(request, Ranking):
      request = requests.send((yield request))
    return request
  except StopIteration:
    return None


def tasks_cost(method: Method, task: Task, count: int, queries: Mapping[str, np.ndarray]) -> Cost:
  """Of `by_tasks`."""
  each = [method.cost(task._replace(queries=x), count) for x in queries.values()]
  return Cost(*(float(sum(part)) for part in zip(*each, strict=True)))


def quotas_of(shares: np.ndarray, count: int) -> np.ndarray:
  """Whole parts of ``count`` in proportion to ``shares``.

  >>> quotas_of(np.array([0.5, 0.25, 0.25]), 7).tolist()
  [3, 2, 2]
  """
  return np.asarray(quotas.largest_remainder(jnp.asarray(shares, jnp.float32), count))


def merge(rankings: list[Ranking], quota: np.ndarray, size: int) -> Ranking:
  """One ranking in which ranking t has ``quota[t]`` of the rows.

  >>> ranking = lambda *rows: Ranking(np.array(rows), np.zeros(len(rows), np.float32))
  >>> merged = merge([ranking(0, 1, 2), ranking(0, 2, 3)], np.array([2, 2]), 4)
  >>> merged.index.tolist(), merged.task.tolist()
  ([0, 2, 1, 3], [0, 1, 0, 1])
  """
  turns = np.repeat(np.arange(len(quota)), quota)
  place = np.concatenate([np.arange(q) for q in quota])
  turns = turns[np.lexsort((turns, (place + 0.5) / quota[turns]))]
  lists = [ranking.index.tolist() for ranking in rankings]
  taken, at = bytearray(size), [0] * len(lists)
  found: list[tuple[int, int]] = []
  for turn in turns.tolist():
    rows, position = lists[turn], at[turn]
    while position < len(rows) and taken[rows[position]]:
      position += 1
    if position < len(rows):
      taken[rows[position]] = 1
      found.append((turn, position))
    at[turn] = position + 1
  task, position = np.array(found, np.int32).reshape(-1, 2).T
  columns = {}
  for name in Ranking._fields:
    parts = [getattr(ranking, name) for ranking in rankings]
    if name == "task" or any(part is None for part in parts):
      continue
    column = np.empty(len(task), parts[0].dtype)
    for turn, part in enumerate(parts):
      column[task == turn] = part[position[task == turn]]
    columns[name] = column
  return Ranking(**columns, task=task)
