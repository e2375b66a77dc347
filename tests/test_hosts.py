"""train.py as several hosts run it: two processes of two CPU devices each, joined over Gloo."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHORT = ("--config.steps=40", "--config.log_every=5", "--config.eval_every=40")
SHORT += ("--config.checkpoint_every=15", "--config.keep_checkpoints=5")
TINY_FIT = ("--config.selector.rep_div.sae_steps=20", "--config.selector.rep_div.latents=32")
OF_FEED = {
  "resident": ("--config.selector.name=rep_div", *TINY_FIT),
  "planned": ("--config.feed=planned", "--config.selector.name=rs2"),
  "super_batch": ("--config.feed=super_batch", "--config.selector.name=rs2"),
}
SECONDS = 280  # on a machine that is busy
TRAIN = ("train.py", "--config=configs/digits.py")
# What Gloo prints piece by piece, of several threads at once: their pieces may be in one line.
GLOO = re.compile(
  r"(\[Gloo\] Rank |\d| is connected to "
  r"| peer ranks\. Expected number of connected peer ranks is : )*"
)


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


class Hosts:
  """Processes that run one command together; all of them are gone when the block ends."""

  def __init__(self, count, workdir, *options, command=TRAIN):
    self.processes, self.outputs = [], []
    port = free_port()
    for index in range(count):
      # NPROC as one process with all of the devices has it: it pins the order of sums.
      environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "32"}
      environment["JAX_NUM_CPU_DEVICES"] = str(4 // count)
      if count > 1:
        environment |= {
          "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
          "JAX_NUM_PROCESSES": str(count),
          "JAX_PROCESS_ID": str(index),
        }
      self.processes.append(
        subprocess.Popen(
          [sys.executable, *command, f"--workdir={workdir}", *options],
          cwd=ROOT,
          env=environment,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
        )
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.wait()
      process.stdout.close()

  def finish(self):
    """The exit codes and what was printed."""
    texts = [process.communicate(timeout=SECONDS)[0] for process in self.processes]
    return [process.returncode for process in self.processes], texts


def told(text):
  """What a process says, line by line, without Gloo."""
  return [line for line in text.splitlines() if not GLOO.fullmatch(line)]


def train(count, workdir, *options):
  with Hosts(count, workdir, *options) as hosts:
    codes, texts = hosts.finish()
  assert codes == [0] * count, "\n".join(texts)
  return texts


def exposure(workdir, *columns):
  table = pyarrow.parquet.read_table(workdir / "exposure.parquet").to_pydict()
  return {name: table[name] for name in (*columns, "times_selected", "first_step", "last_step")}


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  found = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
  assert list(found) == list(range(5, 41, 5))  # each once, in order
  return np.array(list(found.values()))


def same_run(workdir, other):
  assert exposure(workdir, "planned") == exposure(other, "planned")
  # Gradients are summed over the devices in another order.
  np.testing.assert_allclose(losses(workdir), losses(other), rtol=1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The workdir of a feed's run in one or two processes, which is made when it is first asked."""
  made = {}

  def run(feed, count):
    if (feed, count) not in made:
      workdir = tmp_path_factory.mktemp(f"{feed}-{count}") / "run"
      made[feed, count] = workdir, train(count, workdir, *SHORT, *OF_FEED[feed])
    return made[feed, count]

  return run


@pytest.mark.parametrize("feed", OF_FEED)
def test_two_processes_train_as_one_with_as_many_devices(runs, feed):
  workdir, texts = runs(feed, 2)
  assert "4 x cpu, 2 processes" in texts[0]
  assert "test accuracy" in texts[0]
  # The other one is silent and writes no file of its own.
  assert not [x for x in texts[1].splitlines() if x.startswith(("jsel:", "step")) or "rror" in x]
  names = [path.name for path in workdir.iterdir()]
  events = [name for name in names if name.startswith("events.out")]
  assert len(events) == 1
  singles = ("config", "manifest", "summary")
  expected = {f"{name}.json" for name in singles} | {"metrics.jsonl", "exposure.parquet"}
  assert {*names} == {*events, *expected, "curves.png", "checkpoints"}
  manifest = json.loads((workdir / "manifest.json").read_text())
  assert manifest["devices"]["processes"] == 2
  same_run(workdir, runs(feed, 1)[0])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(runs, tmp_path, before, after):
  whole, _ = runs("planned", before)
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  for name in ("checkpoints/30", "checkpoints/40"):
    shutil.rmtree(workdir / name)
  for name in ("summary.json", "exposure.parquet"):
    (workdir / name).unlink()
  texts = train(after, workdir, *SHORT, *OF_FEED["planned"])
  assert "going on from step 15" in texts[0]  # in the middle of a plan
  same_run(workdir, whole)


def test_the_same_command_again_says_in_every_process_that_all_is_done(runs):
  workdir, _ = runs("planned", 2)
  before = (workdir / "summary.json").read_bytes()
  assert "are done" in train(2, workdir, *SHORT, *OF_FEED["planned"])[0]
  assert (workdir / "summary.json").read_bytes() == before


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
  # And what is not the same choice anywhere: a fit on the model's features, in two processes.
  options = ("--config.steps=100000", "--config.log_every=5", "--config.feed=planned")
  options += ("--config.selector.fit_step=5", *OF_FEED["resident"])
  with Hosts(2, tmp_path / "run", *options) as hosts:
    seen = []
    for line in hosts.processes[0].stdout:
      seen.append(line)
      if line.startswith("step") and int(line.split("/")[0].split()[1]) >= 15:
        break
    assert any("fitted at step 5" in line for line in seen), "".join(seen)
    hosts.processes[1].send_signal(signal.SIGTERM)
    codes, texts = hosts.finish()
  assert codes == [143, 143], "".join(seen) + "\n".join(texts)
  stopped = next(line for line in texts[0].splitlines() if "stopped and saved at step" in line)
  step = int(stopped.split("saved at step ")[1].split(":")[0])
  assert step >= 15
  assert step % 5 == 0
  steps = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
  assert max(map(int, steps)) == step
  assert not (tmp_path / "run" / "summary.json").exists()


def test_a_mistake_ends_every_process_with_one_line(tmp_path):
  with Hosts(2, tmp_path / "run", "--config.batch_size=62") as hosts:
    codes, texts = hosts.finish()
  assert codes == [2, 2], "\n".join(texts)
  for text in texts:
    (line,) = [line for line in told(text) if not line.startswith("jsel:")]
    assert "batch_size=62 does not divide among 4 devices" in line
