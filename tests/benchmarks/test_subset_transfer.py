"""Shares of sources, on made-up sources and files."""

import json

import numpy as np
import pytest

from benchmarks import subset_transfer

LAYERS = 7
CASE = {case[0]: case for case in subset_transfer.cases(LAYERS)}


@pytest.fixture(scope="module")
def pool():
  """Five sources of 240 rows around middles of their own, in two groups, seven layers of 12."""
  rng = np.random.default_rng(0)
  source = np.repeat(np.arange(5), 240)
  group = np.array([0, 0, 1, 1, 1])[source]
  middles = rng.standard_normal((2, 7 * 12))[[0, 0, 1, 1, 1]] + rng.standard_normal((5, 7 * 12))
  x = middles[source] + 0.3 * rng.standard_normal((1200, 7 * 12))
  return x.astype(np.float32), source, group


@pytest.mark.parametrize("name", CASE)
def test_what_comes_from_the_source_of_the_queries(pool, name):
  found = subset_transfer.shares(*pool, CASE[name], asked=1, seed=0, all_layers=LAYERS)
  assert found["taken"] == round(subset_transfer.BUDGET * 1192)
  assert found["most_of_source"] == found["most_of_group"] == 1
  assert found["of_group"] >= found["of_source"]
  if name == "random":
    assert 0 < found["of_source"] < 0.5
  else:
    assert found["of_source"] > 0.9


def test_the_largest_share_leaves_out_the_queries(pool, monkeypatch):
  monkeypatch.setattr(subset_transfer, "BUDGET", 0.5)
  found = subset_transfer.shares(*pool, CASE["rds"], asked=1, seed=0, all_layers=LAYERS)
  assert found["most_of_source"] == pytest.approx(232 / 596)
  assert found["most_of_group"] == pytest.approx(472 / 596)
  assert found["of_source"] <= found["most_of_source"]


def test_a_slice_of_every_source_is_read(tmp_path):
  names = ("subtask001_one_task", "subtask002_misc_task", "subtask003_miscellany_task")
  for number, name in enumerate(names):
    (tmp_path / name).mkdir()
    rows = [{"input": f"{name} {row}", "target": ""} for row in range(3 + number)]
    (tmp_path / name / "task.json").write_text(json.dumps({"examples": rows + rows[:1]}))
  found = subset_transfer.read(tmp_path, 4)
  assert found.source.tolist() == [0] * 3 + [1] * 4 + [2] * 4
  assert found.group.tolist() == [1] * 3 + [0] * 8
  assert (found.groups, found.there) == (["misc", "one"], 15)
  assert len(set(found.texts)) == 11
  with pytest.raises(ValueError, match="--folder has those of BIG-bench"):
    subset_transfer.read(tmp_path / "none", 4)


def test_the_table_compares_with_rds():
  most = {"most_of_source": 0.5, "most_of_group": 1.0, "of_group": 0.4}
  value = {"rds": (0.1, 0.2, 0.3), "crds_w": (0.2, 0.1, 0.6)}
  runs = [
    {"case": case, "source": source, "seed": seed, "of_source": of + 0.02 * seed, **most}
    for case, values in value.items()
    for source, of in enumerate(values)
    for seed in range(2)
  ]
  lines = subset_transfer.table(runs).splitlines()
  assert lines[2].startswith("| rds | 21.0 ± 24.8 | 42.0 ± 49.7 | 40.0 ± 0.0 | 40.0 ± 0.0 |  |")
  assert "| 2, 1 | 10.0 ±" in lines[3]
