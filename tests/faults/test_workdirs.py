"""What happens to a workdir: damage, a second run, a full disk, signals, other data."""

import os
import shutil
import signal
import subprocess

import numpy as np
import pytest

from tests.faults.runs import one_line, outcome, run, start
from tests.harms import HARMS

SHORT = ("--config.steps=40",)
PAGE = 4096  # bytes that tmpfs gives a file at a time
NAMESPACE = ("unshare", "--map-root-user", "--mount")
# On a small disk: the run, which fails; with more space the run again; then a copy of its folder.
ON_A_DISK = """
set -e
disk=$1 unfinished=$2 small=$3 large=$4 after=$5; shift 5
mount -t tmpfs -o size=$small tmpfs $disk
cp -r $unfinished $disk/run
code=0; "$@" || code=$?
echo ended with $code
mount -o remount,size=$large $disk
"$@"
cp -r $disk/run $after
"""
DISKS = "a folder that cannot be written needs another user than root"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run to its end, and what it came to."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  code, _, err = run(workdir, *SHORT)
  assert code == 0, err
  return workdir, outcome(workdir)


@pytest.fixture
def unfinished(whole, tmp_path):
  """The same run as a process that died at step 40 left it: checkpoints of steps 36 and 40."""
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  (workdir / "summary.json").unlink()
  (workdir / "exposure.parquet").unlink()
  return workdir


def test_a_damaged_file_costs_a_checkpoint_and_no_more(
  whole, unfinished, tmp_path, faults, report, rng
):
  newest = unfinished / "checkpoints" / "40"
  files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.stat().st_size)
  files = [name for name in files if (newest / name).is_file()]
  tries = [(harm, name) for harm in HARMS for name in files]
  if not faults:
    tries = [("flipped", files[rng.integers(len(files))])]  # test_checkpoint.py has them all
  survived = 0
  for number, (harm, name) in enumerate(tries):
    workdir = tmp_path / str(number)
    shutil.copytree(unfinished, workdir)
    HARMS[harm](workdir / "checkpoints" / "40" / name)
    code, out, err = run(workdir, *SHORT)
    assert code == 0, err
    assert str(name) in err, (harm, name, err)
    assert "Traceback" not in err
    if name.name != "digests.json" or harm != "deleted":  # without it, the rest is whole
      assert "going on from step 36" in out
    assert outcome(workdir) == whole[1], (harm, name)
    survived += 1
    shutil.rmtree(workdir)
  report(injected=len(tries), survived=survived)


def test_a_second_run_is_refused_and_a_dead_one_is_no_obstacle(tmp_path):
  with start(tmp_path / "run", "--config.steps=100000") as first:
    try:
      for line in first.stdout:
        if line.startswith("step"):
          break
      code, _, err = run(tmp_path / "run", "--config.steps=100000")
      assert (code, one_line(err)) == (2, True), err
      assert f"another run is at work in {tmp_path / 'run'}" in err
      assert first.poll() is None
    finally:
      first.kill()
  _, _, err = run(tmp_path / "run", "--config.steps=100000", "--config.seed=1")
  assert "seed=0, this one has seed=1" in err  # the lock died with its holder


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_once_there_is_space(
  whole, unfinished, tmp_path
):
  shutil.rmtree(unfinished / "checkpoints" / "40")
  # No file may be longer: arrays are, the small files of a run are not.
  limit = ("bash", "-c", 'ulimit -Sf 64; exec "$@"', "limited")  # KiB
  code, _, err = run(unfinished, *SHORT, prefix=limit)
  assert code == 2, err
  assert "Traceback" not in err
  told = [line for line in err.splitlines() if line.startswith("train.py: error:")]
  assert len(told) == 1, err
  assert f"a checkpoint cannot be written to {unfinished / 'checkpoints'}" in told[0]
  code, out, err = run(unfinished, *SHORT)
  assert code == 0, err
  assert "going on from step 36" in out
  assert outcome(unfinished) == whole[1]


def test_a_file_system_that_is_full_keeps_the_last_good_checkpoint(whole, unfinished, tmp_path):
  """As the one before on a disk of a few pages: any write may fail, not that of large files."""
  mounted = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
  if mounted.returncode:
    pytest.skip(f"a disk of its own needs Linux's user namespaces: {mounted.stderr.strip()}")
  shutil.rmtree(unfinished / "checkpoints" / "40")
  pages = sum(1 + path.stat().st_size // PAGE for path in unfinished.rglob("*"))
  disk, after = tmp_path / "disk", tmp_path / "after"
  disk.mkdir()
  small, large = (f"{(pages + more) * PAGE // 1024}k" for more in (12, 10_000))
  of_disk = ("bash", "-c", ON_A_DISK, "disk", str(disk), str(unfinished), small, large, str(after))
  code, out, err = run(disk / "run", *SHORT, prefix=(*NAMESPACE, *of_disk))
  assert code == 0, err
  assert "Traceback" not in err
  first, second = out.split("ended with ")[:2]
  assert second.startswith("2\n"), out
  told = [line for line in err.splitlines() if line.startswith("train.py: error:")]
  assert len(told) == 1, err
  assert str(disk / "run") in told[0]
  assert "going on from step 36" in first
  assert "going on from step 36" in second
  assert outcome(after) == whole[1]


def test_a_workdir_that_may_not_be_written_is_refused(whole, unfinished):
  if os.geteuid() == 0:
    pytest.skip(DISKS)
  before = sorted(path.name for path in unfinished.iterdir())
  unfinished.chmod(0o555)
  try:
    code, _, err = run(unfinished, *SHORT)
  finally:
    unfinished.chmod(0o755)
  assert (code, one_line(err)) == (2, True), err
  assert f"cannot write to workdir {unfinished}: Permission denied" in err
  assert sorted(path.name for path in unfinished.iterdir()) == before


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):  # SIGTERM is in test_train.py
  with start(tmp_path / "run", "--config.steps=100000") as process:
    try:
      for line in process.stdout:
        if line.startswith("step"):
          break
      process.send_signal(signal.SIGINT)
      out, err = process.communicate(timeout=120)
    finally:
      process.kill()
  assert process.returncode == 130, err
  assert "Traceback" not in err
  assert "the same command goes on from there" in out
  step = out.split("saved at step ")[1].split(":")[0]
  assert (tmp_path / "run" / "checkpoints" / step / "digests.json").exists()


def test_incompatible_keys_are_refused_by_name_and_harmless_ones_are_not(unfinished):
  # The second changes the leaves too; what was asked for is what is told.
  for name, value in (("optimizer.learning_rate", "0.5"), ("model.mlp.hidden", "(32, 32)")):
    code, _, err = run(unfinished, *SHORT, f"--config.{name}={value}")
    assert (code, one_line(err)) == (2, True), err
    assert f"this one has {name}=" in err
  code, out, err = run(unfinished, *SHORT, "--config.checkpoint_every=7", "--config.threads=2")
  assert code == 0, err
  assert "going on from step 40" in out


def test_changed_data_is_refused_unless_allowed(tmp_path):
  rng = np.random.default_rng(0)
  inputs, labels = rng.standard_normal((400, 6)).astype(np.float32), np.arange(400) % 3
  path = tmp_path / "rows.npz"
  np.savez(path, inputs=inputs, labels=labels)
  options = ("--config.data.name=own", f"--config.data.train={path}", "--config.batch_size=16")
  code, _, err = run(tmp_path / "run", *options, *SHORT)
  assert code == 0, err
  (tmp_path / "run" / "summary.json").unlink()
  np.savez(path, inputs=inputs + 1, labels=labels)
  code, _, err = run(tmp_path / "run", *options, *SHORT)
  assert (code, one_line(err)) == (2, True), err
  assert "its hash was" in err
  assert "--config.allow_data_change" in err
  code, out, err = run(tmp_path / "run", *options, *SHORT, "--config.allow_data_change")
  assert code == 0, err
  assert "going on from step 40" in out
