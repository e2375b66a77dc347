"""What measures memory sees all of it, and nothing twice."""

import sys

import pytest

from benchmarks.watch import watched

MIB = 1 << 20


def test_memory_of_a_child_is_seen(tmp_path):
  # The child holds 200 MiB, the process that is watched holds none.
  child = f"x = bytearray({200 * MIB}); import time; time.sleep(3)"
  parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
  found = watched([sys.executable, "-c", parent], tmp_path / "log")
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
  found = watched([sys.executable, "-c", code], tmp_path / "log")
  assert found["most_processes"] == 2
  # Counted for each process it were 400. A look while the child touches it for the first time may
  # find all of it with the parent and, a moment later, half of it with the child.
  assert 200 * MIB < found["peak_bytes"] < 340 * MIB


def test_a_command_that_fails_is_an_error(tmp_path):
  with pytest.raises(RuntimeError, match="ended with 3"):
    watched([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log")
