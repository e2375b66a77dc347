"""kill -9 at random moments, saves and renames among them: the run ends as if undisturbed."""

import os
import time

import numpy as np
import pytest

from tests.faults.runs import outcome, run, start

WHEN = ("any", "saving", "renamed", "any")


def wait_for(moment, process, workdir, rng):
  """Returns at ``moment`` of a run, or when the run has ended."""
  checkpoints = workdir / "checkpoints"
  names = lambda: set(os.listdir(checkpoints)) if checkpoints.exists() else set()
  before, began = names(), time.monotonic()
  if moment == "any":
    for line in process.stdout:  # the steps are about to be run, or they are being compiled
      if "steps of" in line:
        break
    time.sleep(rng.uniform(0, 5))
    return
  new = 0
  wanted = int(rng.integers(1, 6))  # of the saves of this start
  while process.poll() is None and time.monotonic() - began < 120:
    after = names()
    fresh = after - before
    before |= after
    new += sum(("tmp" in name) if moment == "saving" else name.isdigit() for name in fresh)
    if new >= wanted:
      time.sleep(rng.uniform(0, 0.02))  # anywhere in the save, or before its digests
      return


@pytest.mark.timeout(0)  # the long form takes hours; every start of a run has a limit of its own
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(tmp_path, faults, report):
  rng = np.random.default_rng(faults)
  kills, survived, runs = faults or 2, 0, 0
  code, _, err = run(tmp_path / "whole")
  assert code == 0, err
  whole = outcome(tmp_path / "whole")
  injected = dict.fromkeys(WHEN, 0)
  of_run, number = 0, 0
  workdir = tmp_path / "0"
  while survived < kills:
    if survived + of_run >= kills:
      code, _, err = run(workdir)
      ended = True
    else:
      moment = WHEN[number % len(WHEN)]
      number += 1
      with start(workdir) as process:
        wait_for(moment, process, workdir, rng)
        ended = process.poll() is not None
        process.kill()
        _, err = process.communicate()
        code = process.returncode
      if not ended:
        injected[moment] += 1
        of_run += 1
    if not ended:
      continue
    assert code == 0, err
    assert outcome(workdir) == whole, f"after {of_run} kills of {workdir}"
    runs, survived, of_run = runs + 1, survived + of_run, 0
    report(injected=sum(injected.values()), survived=survived, runs=runs, when=injected)
    workdir = tmp_path / str(runs)
  assert sum(injected.values()) == survived
