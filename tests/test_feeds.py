"""train.py with feeds that read, as a person runs it."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pyarrow.parquet
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHORT = ("--config.steps=60", "--config.log_every=10", "--config.selector.name=rs2")


def command(workdir, *options):
  return [
    sys.executable,
    "train.py",
    "--config=configs/digits.py",
    f"--workdir={workdir}",
    *options,
  ]


def environment(devices=1):
  return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


def run(*arguments, devices=1):
  return subprocess.run(
    arguments,
    cwd=ROOT,
    env=environment(devices),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def train(workdir, *options, devices=1):
  result = run(*command(workdir, *options), devices=devices)
  assert result.returncode == 0, result.stderr
  assert not result.stderr, result.stderr
  return result.stdout


def metrics(workdir):
  """The logged values, less those that a clock says."""
  timing = ("wall_seconds", "examples_per_second", "selection_overhead_pct")
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  lines = [line for line in lines if "selection/share" not in line]
  return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def exposure(workdir):
  found = pyarrow.parquet.read_table(workdir / "exposure.parquet").to_pydict()
  del found["last_loss"]  # NaN where never trained on; and in their last bits devices differ
  del found["source_row"]  # a set that was prepared has no rows but those trained on
  return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Short runs of rs2 by feed and devices, each made when it is first asked for."""
  made = {}

  def workdir(feed, devices=1):
    if (feed, devices) not in made:
      path = tmp_path_factory.mktemp(f"{feed}-{devices}") / "run"
      made[feed, devices] = path
      train(path, *SHORT, f"--config.feed={feed}", devices=devices)
    return made[feed, devices]

  return workdir


@pytest.mark.parametrize("feed", ["planned", "super_batch"])
def test_a_feed_brings_eight_devices_what_it_brings_one(finished, feed):
  seen = exposure(finished(feed))
  assert seen == exposure(finished(feed, devices=8))
  assert sum(seen["times_selected"]) == 60 * 64
  summary = json.loads((finished(feed) / "summary.json").read_text())
  assert summary["feed"] == feed
  assert summary["ratio"] == 0.5
  assert summary["test_accuracy"] > 0.85


def test_the_planned_feed_trains_on_what_the_resident_pool_does(finished):
  assert exposure(finished("planned")) == exposure(finished("resident"))


@pytest.mark.parametrize(("feed", "name"), [("planned", "infobatch"), ("super_batch", "loss")])
def test_stopped_and_resumed_is_the_run_that_never_stopped(tmp_path, feed, name):
  options = ("--config.steps=1000", f"--config.selector.name={name}", f"--config.feed={feed}")
  options += ("--config.log_every=25", "--config.checkpoint_every=50", "--config.eval_every=500")
  train(tmp_path / "whole", *options)
  workdir = tmp_path / "stopped"
  running = subprocess.Popen(
    command(workdir, *options), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
  )
  try:
    for line in running.stdout:
      if line.startswith("step"):
        break
    running.send_signal(signal.SIGTERM)
    rest = running.communicate(timeout=120)[0]
  finally:
    running.kill()
    running.wait()
  assert running.returncode == 143
  assert "the same command goes on" in rest
  assert "going on from step" in train(workdir, *options)
  assert metrics(workdir) == metrics(tmp_path / "whole")
  assert exposure(workdir) == exposure(tmp_path / "whole")


def test_a_prepared_set_is_read_by_a_worker_process(tmp_path, finished):
  written = run(
    sys.executable,
    "-m",
    "jsel.data.prepare",
    "--config=configs/digits.py",
    f"--out={tmp_path / 'set'}",
    "--shards=3",
  )
  assert written.returncode == 0, written.stderr
  source = ("--config.data.name=array_record", f"--config.data.dir={tmp_path / 'set'}")
  # The set has its own validation part.
  options = (*SHORT, *source, "--config.data.validation_fraction=0", "--config.feed=planned")
  train(tmp_path / "run", *options, "--config.workers=1")
  assert exposure(tmp_path / "run") == exposure(finished("planned"))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--config.feed=super_batch", "--config.selector.name=infobatch"], "rep_div_plain, rs2"),
    (["--config.feed=planned"], "set selector.fit_step to a later step"),
    (["--config.feed=planned", "--config.dispatch=scan", SHORT[2]], "needs feed='resident'"),
    (["--config.feed=planned", "--config.workers=-1", SHORT[2]], "workers of at least 0, got -1"),
  ],
)
def test_what_does_not_go_together_is_one_line_and_exit_code_2(tmp_path, options, message):
  result = run(*command(tmp_path / "run", *options))
  assert result.returncode == 2, result.stderr
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
