"""Caps, floors, rows that must or must not be there, and tasks, against loops of what they mean."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsel.selection import constraints, select, tasks
from jsel.selectors.parts import Ranking


def loop(order, source, count, must, lower, upper):
  """Rows that must be there, the first of each source up to its floor, the others by rank."""
  taken = list(must)
  of = lambda name: sum(source[row] == name for row in taken)
  for name, floor in lower.items():
    for row in order:
      if of(name) < floor and source[row] == name and row not in taken:
        taken.append(row)
  for row in order:
    if len(taken) < count and row not in taken and of(source[row]) < upper.get(source[row], 1e9):
      taken.append(row)
  return sorted(taken)


@pytest.mark.parametrize(
  ("method", "caps", "floors", "must"),
  [
    ("random", {"web": 40}, {}, []),
    ("random", {"web": 0.25, "code": 0.5}, {}, [3, 9]),
    ("longest", {}, {"books": 0.3}, []),
    ("rds", {"web": 50}, {"books": 33, "code": 20}, [700, 1, 2]),
  ],
)
def test_limits_are_kept_by_rank(method, caps, floors, must, pool, columns):
  call = lambda count, **options: select(
    pool, method, count, unit="rows", queries=pool[:3] + 0.1, columns=columns, **options
  )
  order = call(1500).index.tolist()
  found = call(100, caps=caps, floors=floors, must_include=must)
  as_rows = lambda amounts: {n: a if isinstance(a, int) else 100 * a for n, a in amounts.items()}
  expected = loop(order, columns["source"], 100, must, as_rows(floors), as_rows(caps))
  assert sorted(found.index.tolist()) == expected
  assert found.index[: len(must)].tolist() == must
  rank = {row: place for place, row in enumerate(order)}
  rest = [rank[row] for row in found.index[len(must) :].tolist()]
  assert rest == sorted(rest)
  assert (found.taken_by[: len(must)] == "must_include").all()
  # A floor takes what would not be there without it.
  free = set(call(100, caps=caps, must_include=must).index.tolist())
  by_floor = set(found.index[found.taken_by == "floor"].tolist())
  assert by_floor == set(found.index.tolist()) - free


def test_shares_round_so_that_no_cap_is_passed_and_each_floor_is_met(pool, columns):
  found = select(pool, "random", 77, unit="rows", columns=columns, caps={"web": 0.1})
  assert (columns["source"][found.index] == "web").sum() == 7
  found = select(pool, "random", 77, unit="rows", columns=columns, floors={"books": 0.7})
  assert (columns["source"][found.index] == "books").sum() == 54


def test_tokens_are_kept_to_with_rows_that_must_be_there(pool, columns):
  found = select(pool, "random", 900, unit="tokens", columns=columns, must_include=[1400, 7])
  assert found.index[:2].tolist() == [1400, 7]
  assert 800 < columns["length"][found.index].sum() <= 900


def test_a_budget_of_all_the_tokens_that_are_left_takes_all_rows_that_are(pool, columns):
  left = float(columns["length"][700:].sum())
  gone = np.arange(700)
  found = select(pool, "random", left, unit="tokens", columns=columns, must_exclude=gone)
  assert sorted(found.index.tolist()) == list(range(700, 1500))
  with pytest.raises(ValueError, match="budget must be in"):
    select(pool, "random", left + 1, unit="tokens", columns=columns, must_exclude=gone)


def test_ids_name_rows_and_excluded_ones_are_no_part_of_the_pool(pool, columns):
  columns = {**columns, "id": [f"r{i}" for i in range(1500)]}
  first = select(pool, "rds", 50, unit="rows", queries=pool[:3], columns=columns).index
  gone = [f"r{i}" for i in first[:20]]
  left = select(
    pool, "rds", 50, unit="rows", queries=pool[:3], columns=columns, must_exclude=gone
  ).index
  assert not set(left.tolist()) & set(first[:20].tolist())
  zeroed = pool.copy()
  zeroed[first[:20]] = 0  # what has no direction is never a match
  assert left.tolist() == select(zeroed, "rds", 50, unit="rows", queries=pool[:3]).index.tolist()


def test_weights_hold_for_a_smaller_pool_but_not_for_rows_that_must_be_there(pool, columns):
  options = {"columns": columns, "clusters": 8}
  found = select(pool, "sensitivity", 0.1, must_exclude=np.arange(700), **options)
  assert found.index.min() >= 700
  for change in ({"must_include": [1]}, {"caps": {"web": 9}}, {"floors": {"web": 9}}):
    with pytest.raises(ValueError, match="no weight would hold"):
      select(pool, "sensitivity", 0.1, **options, **change)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"must_include": ["r1", "x9", "x7"]}, "2 of 3 are no id of the pool, the first is 'x9'"),
    ({"must_exclude": ["nobody"]}, "must_exclude: 1 of 1"),
    ({"must_include": ["r5"], "must_exclude": ["r5"]}, "row 5 is in must_include"),
    ({"must_include": [f"r{i}" for i in range(101)]}, "has 101 rows, the budget is 100"),
    ({"floors": {"books": 99}}, r"source books has \d+ rows that may be taken, its floor is 99"),
    ({"floors": {"web": 60, "code": 41}}, "ask for 101 rows, the budget is 100"),
    ({"caps": {"web": 5, "code": 5, "books": 5}}, "leave room for 15 rows"),
    ({"caps": {"web": 5}, "floors": {"web": 6}}, "floor 6 and cap 5"),
    ({"caps": {"wbe": 5}}, "'wbe', which is no source: there are"),
    ({"caps": {"web": 1.5}}, r"give a share in \[0, 1\]"),
    ({"caps": {"web": 1}, "must_include": "web"}, "must_include has 2 rows of web, its cap is 1"),
    ({"caps": {"web": 5}, "unit": "tokens", "budget": 500}, "caps and floors count rows"),
  ],
)
def test_what_cannot_be_met_is_told(change, message, pool, columns):
  columns = {**columns, "id": [f"r{i}" for i in range(1500)]}
  if change.get("must_include") == "web":
    change["must_include"] = [f"r{i}" for i in np.flatnonzero(columns["source"] == "web")[:2]]
  arguments = {"budget": 100, "unit": "rows", "columns": columns} | change
  with pytest.raises(ValueError, match=message):
    select(pool, "random", **arguments)


def test_ids_are_read_from_text_and_parquet(tmp_path):
  (tmp_path / "ids.txt").write_text("a\n\n b \n")
  assert constraints.read_ids(str(tmp_path / "ids.txt"), "must_include") == ["a", "b"]
  pq.write_table(pa.table({"x": [1], "id": [7]}), tmp_path / "ids.parquet")
  assert constraints.read_ids(str(tmp_path / "ids.parquet"), "must_include") == [7]
  pq.write_table(pa.table({"x": [1], "y": [7]}), tmp_path / "none.parquet")
  with pytest.raises(ValueError, match="no column 'id' among x, y"):
    constraints.read_ids(str(tmp_path / "none.parquet"), "must_include")


@pytest.mark.parametrize("text", ["web", "web:", ":3", "web:x", "web:0.2,,code:1"])
def test_amounts_that_are_none_are_refused(text):
  with pytest.raises(ValueError, match="give NAME:ROWS"):
    constraints.read_amounts(text, "caps")


def test_tasks_have_their_quotas_and_each_takes_turns_within(pool, rng):
  near = lambda rows: pool[rows] + 0.2 * rng.standard_normal((len(rows), 36)).astype(np.float32)
  queries = {"a": near([1, 2, 3]), "b": near([2, 3]), "c": near([700])}
  shares = {"a": 0.5, "b": 0.3, "c": 0.2}
  found = select(pool, "rds", 94, unit="rows", queries=queries, task_quotas=shares)
  assert found.tasks == ("a", "b", "c")
  assert np.bincount(found.task).tolist() == [47, 28, 19]  # 47, 28.2, 18.8
  assert len(set(found.index.tolist())) == 94
  order = {n: select(pool, "rds", 94, unit="rows", queries=q).index for n, q in queries.items()}
  taken = set()
  for row, task in zip(found.index.tolist(), found.task, strict=True):
    name = found.tasks[task]
    assert row == next(i for i in order[name].tolist() if i not in taken)
    taken.add(row)
  # Each has had its part at every time, to a row.
  for m in (10, 40, 80):
    assert np.abs(np.bincount(found.task[:m]) - m * np.array([47, 28, 19]) / 94).max() <= 1.5


def test_tasks_share_equally_if_not_told_and_limits_hold_over_them(pool, columns):
  queries = {"a": pool[:2] + 0.1, "b": pool[5:6] + 0.1}
  found = select(pool, "rds", 60, unit="rows", queries=queries, columns=columns, caps={"web": 20})
  assert (columns["source"][found.index] == "web").sum() == 20
  assert np.bincount(select(pool, "rds", 60, unit="rows", queries=queries).task).tolist() == [
    30,
    30,
  ]
  with pytest.raises(ValueError, match="name the same tasks"):
    select(pool, "rds", 60, unit="rows", queries=queries, task_quotas={"a": 1, "c": 1})


def test_queries_that_a_method_has_no_use_for_are_told(pool):
  warned = []
  found = select(pool, "random", 9, unit="rows", queries={"a": pool[:2]}, warn=warned.append)
  assert found.task is None
  assert "needs no queries" in warned[0]
  assert select(pool, "rds", 9, unit="rows", queries={"a": pool[:2] + 1}).tasks == ("a",)


def test_a_task_whose_list_is_over_leaves_the_ranking_short():
  ranking = lambda *rows: Ranking(np.array(rows), np.zeros(len(rows), np.float32))
  merged = tasks.merge([ranking(0), ranking(0, 1, 2)], np.array([2, 2]), 3)
  assert merged.index.tolist() == [0, 1, 2]
