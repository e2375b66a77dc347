"""A run that reads its pool needs little memory."""

import pytest

from benchmarks import big_pool

ROWS, ROW_BYTES = 4096, 32 * 32 * 3  # 12 MB
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pool")
  big_pool.prepare(folder, shape="smoke", rows=ROWS, test_rows=64, shards=2)
  return folder


def test_what_the_pool_consists_of(folder):
  facts = big_pool.facts(folder)
  assert facts["rows"] == ROWS
  assert facts["bytes"] == ROWS * ROW_BYTES
  assert facts["files"] == 2


def test_a_run_that_reads_stays_small(folder):
  found = big_pool.train(folder, feed="planned", selector="loss", steps=20, batch_size=64)
  # 0.5 GiB of Python, JAX and compiled programs, and of the pool a few batches.
  assert 0.2 * 1024 * MIB < found["peak_bytes"] < 0.9 * 1024 * MIB
  assert len(found["examples_per_second"]) == 9


def test_runs_over_the_limit_are_named():
  results = [{"feed": "planned", "selector": name, "peak_bytes": 100 * MIB} for name in "ab"]
  results[1]["peak_bytes"] += 1
  assert big_pool.over(results, 100 / 1024) == results[1:]
