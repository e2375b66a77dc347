"""A run that reads its pool needs little memory, and what measures that would see more."""

import sys

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


def test_memory_of_a_child_is_seen(tmp_path):
  # The child holds 200 MiB, the process that is watched holds none.
  child = f"x = bytearray({200 * MIB}); import time; time.sleep(3)"
  parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
  found = big_pool.watched([sys.executable, "-c", parent], tmp_path / "log")
  assert found["most_processes"] == 2
  # Two interpreters take some 10 MiB each.
  assert 200 * MIB < found["peak_unbacked_bytes"] < 260 * MIB
  assert found["peak_unbacked_bytes"] <= found["peak_bytes"]


def test_memory_that_processes_share_counts_once(tmp_path):
  code = "\n".join(
    (
      "import mmap, os, time",
      f"x = mmap.mmap(-1, {200 * MIB})",
      f"for at in range(0, {200 * MIB}, {MIB}): x[at : at + {MIB}] = bytes({MIB})",
      "os.fork()",
      "x[::4096]",
      "time.sleep(3)",
    )
  )
  found = big_pool.watched([sys.executable, "-c", code], tmp_path / "log")
  assert found["most_processes"] == 2
  # Counted for each process it were 400. A look while the child touches it for the first time may
  # find all of it with the parent and, a moment later, half of it with the child.
  assert 200 * MIB < found["peak_bytes"] < 340 * MIB


def test_a_command_that_fails_is_an_error(tmp_path):
  with pytest.raises(RuntimeError, match="ended with 3"):
    big_pool.watched([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log")


def test_a_run_that_reads_stays_small(folder):
  found = big_pool.train(folder, feed="planned", selector="loss", steps=20, batch_size=64)
  # 0.5 GiB of Python, JAX and compiled programs, and of the pool a few batches.
  assert 0.2 * 1024 * MIB < found["peak_bytes"] < 0.9 * 1024 * MIB
  assert len(found["examples_per_second"]) == 9


def test_runs_over_the_limit_are_named():
  results = [{"feed": "planned", "selector": name, "peak_bytes": 100 * MIB} for name in "ab"]
  results[1]["peak_bytes"] += 1
  assert big_pool.over(results, 100 / 1024) == results[1:]
