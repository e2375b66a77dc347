"""Arrays as callers have them: of other libraries, with numbers beyond float32, or none at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from jsel.selection import select


@pytest.mark.parametrize("scale", [1e18, 1e-30])
def test_rows_and_queries_that_float32_cannot_square_are_told_from_infinities(scale, pool):
  x, small = pool * np.float32(10), scale < 1
  calls = [
    lambda: select(x * np.float32(scale), "rds", 9, unit="rows", queries=x[:3]).index,
    lambda: select(x, "rds", 9, unit="rows", queries=x[:3] * np.float32(scale)).index,
  ]
  if small:  # a direction is left, and nothing overflows
    expected = select(x, "rds", 9, unit="rows", queries=x[:3]).index.tolist()
    assert [call().tolist() for call in calls] == [expected] * 2
    return
  with pytest.raises(ValueError, match=r"1500 rows of the pool are too large .* row 0: scale all"):
    calls[0]()
  with pytest.raises(ValueError, match=r"row 0 of queries is too large .*: scale the queries"):
    calls[1]()


def test_rows_that_are_too_large_are_dropped_apart_from_infinities(pool):
  pool[3], pool[8, 1] = 1e19, np.inf
  with pytest.raises(ValueError, match=r"1 rows of the pool hold a NaN .* row 8"):
    select(pool, "random", 0.5)
  told = []
  found = select(pool, "random", 1.0, on_nonfinite="drop", warn=told.append)
  assert sorted({*range(1500)} - {*found.index.tolist()}) == [3, 8]
  (line,) = told
  assert (
    line == "1 rows hold a NaN or an infinity and 1 rows are too large for float32 squares:"
    " they are dropped"
  )


@pytest.mark.parametrize(
  ("entry", "message"),
  [(1e300, r"too large for float32 .* is 1e.300: scale"), (1e-300, r"zeros as float32, .* 1e-300")],
)
def test_queries_that_float32_does_not_hold_are_refused(entry, message, pool):
  with pytest.raises(ValueError, match=f"row 1 of queries is .*{message}"):
    select(pool, "rds", 9, unit="rows", queries=np.vstack([np.ones(36), np.full(36, entry)]))


@pytest.mark.parametrize("as_kind", [jnp.asarray, np.ndarray.tolist, np.float64, np.asfortranarray])
def test_arrays_of_any_library_choose_the_same_rows(as_kind, pool):
  expected = select(pool, "rds", 9, unit="rows", queries=pool[:3]).index.tolist()
  found = select(as_kind(pool), "rds", 9, unit="rows", queries=as_kind(pool[:3]))
  assert found.index.tolist() == expected


def test_bfloat16_is_what_it_is_as_float32(pool):
  low = jnp.asarray(pool, jnp.bfloat16)
  same = np.asarray(low, np.float32)
  expected = select(same, "rds", 9, unit="rows", queries=same[:3]).index.tolist()
  for x in (low, np.asarray(low)):
    assert select(x, "rds", 9, unit="rows", queries={"": x[:3]}).index.tolist() == expected


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"pool": [[1.0], [1.0, 2.0]]}, "pool: no array can be made of this"),
    ({"pool": np.array([["a"]])}, r"pool: <U1\(1, 1\) are no numbers"),
    ({"pool": np.ones((4, 36), np.complex64)}, "pool: complex64.* are no numbers"),
    ({"pool": np.zeros((0, 36), np.float32)}, "the pool has no rows"),
    ({"pool": []}, "the pool has no rows"),
    ({"pool": None}, "pool: object.* are no numbers"),
    ({"queries": "queries.npy"}, "queries: <U11.* are no numbers"),
    ({"queries": np.ones(36)}, r"queries have shape \(36,\): give rows"),
    ({"exclude": np.zeros(7, bool)}, "exclude has 7 values, the pool 1500 rows"),
    ({"exclude": np.zeros((1500, 1), bool)}, r"exclude is bool\(1500, 1\)"),
    ({"exclude": [3, 4]}, "exclude is int64.*or row numbers in must_exclude"),
  ],
)
def test_what_is_no_array_of_rows_is_told(change, message, pool):
  arguments = {"pool": pool, "method": "rds", "budget": 0.1, "queries": pool[:2]} | change
  with pytest.raises(ValueError, match=message):
    select(**arguments)
