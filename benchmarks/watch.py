"""The memory of a command and of all processes that it starts."""

import pathlib
import subprocess
import time
from typing import Any, NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
SECONDS = 0.2  # between two looks at the memory


class Memory(NamedTuple):
  """Bytes of a process, or of several together."""

  whole: int  # Pss
  unbacked: int  # Pss of anonymous and shared memory: without what files back


def tree(pid: int) -> list[int]:
  """``pid`` and all processes that it started, directly or not, and that are there."""
  children: dict[int, list[int]] = {}
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      text = path.read_text()
    except (FileNotFoundError, ProcessLookupError):
      continue  # it ended
    # "pid (name) state parent ...", and the name may hold anything.
    children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
  found = [pid]
  for parent in found:
    found += children.get(parent, [])
  return found


def memory(pid: int) -> Memory:
  """Of one process; nothing of one that ended."""
  try:
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
  except (FileNotFoundError, ProcessLookupError):
    return Memory(0, 0)
  kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
  return Memory(1024 * kib["Pss"], 1024 * (kib["Pss_Anon"] + kib["Pss_Shmem"]))


def watched(command: list[str], log: pathlib.Path) -> dict[str, Any]:
  """Runs ``command`` to its end and looks at its memory all the while.

  Raises:
    RuntimeError: if it fails, with the end of what it said.
  """
  looks: list[tuple[float, int, Memory]] = []
  began = time.perf_counter()
  with log.open("w") as file:
    run = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
      while run.poll() is None:
        found = [memory(pid) for pid in tree(run.pid)]
        total = Memory(*(sum(part) for part in zip(*found, strict=True)))
        looks.append((time.perf_counter() - began, len(found), total))
        time.sleep(SECONDS)
    finally:
      run.terminate()
      run.wait()
  if run.returncode:
    said = "\n".join(log.read_text().splitlines()[-20:])
    raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}:\n{said}")
  at, _, peak = max(looks, key=lambda look: look[2].whole)
  return {
    "seconds": time.perf_counter() - began,
    "looks": len(looks),
    "most_processes": max(count for _, count, _ in looks),
    "peak_bytes": peak.whole,
    "peak_at_seconds": at,
    "peak_unbacked_bytes": max(total.unbacked for *_, total in looks),
    "median_bytes": float(np.median([total.whole for *_, total in looks])),
    "bytes_each_5_seconds": [total.whole for *_, total in looks[:: round(5 / SECONDS)]],
  }
