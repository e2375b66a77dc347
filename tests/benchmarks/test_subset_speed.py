"""What selection by queries is measured against does the same work."""

import numpy as np
import pytest

from benchmarks import subset_speed
from jsel.selection import select


def test_dictionaries_take_the_same_rows():
  x, queries = subset_speed.unit_rows(600, 16, 0), subset_speed.unit_rows(7, 16, 1)
  taken = subset_speed.by_dictionaries(x, queries, 50)
  assert taken == select(x, "rds", 50, unit="rows", queries=queries).index.tolist()


@pytest.mark.parametrize("case", subset_speed.CASES)
def test_a_case_is_timed_and_watched(case):
  found = subset_speed.watched_case(case, 2000, 16, 5)
  assert 0 < found["seconds"] < 60
  # Python, JAX and what it compiled.
  assert 2**26 < found["beside_pool_bytes"] < 2**30


def test_projections_are_timed_a_row():
  found = subset_speed.projections(512, 2, layers=3, width=30)
  assert min(found["jsel"], found["signs_anew"]) > 0


def test_randomised_components_are_off_and_the_kernel_s_are_not():
  found = subset_speed.cosine_errors(800, 300, 16, seeds=2)
  assert found["jsel"] < 1e-3
  assert np.min(found["randomized"]) > 0.02


def test_the_table_says_what_is_extrapolated():
  runs = [
    {"case": case, "rows": rows, "seconds": 2.0, "beside_pool_bytes": 2**30}
    for case, rows in (("dictionaries", 20), ("jsel", 20), ("jsel", 200))
  ]
  lines = subset_speed.table(runs).splitlines()
  assert lines[2:4] == ["| dictionaries | 20 | 2.0 | 1.00 |", "| jsel | 20 | 2.0 | 1.00 |"]
  assert lines[-1] == "| dictionaries | 200, extrapolated from 20 | 20.0 | 10.00 |"
