"""A process of several is killed: the others end and say why, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys

import numpy as np

from tests.faults.runs import ROOT
from tests.test_hosts import SECONDS, Hosts, exposure, free_port, train

OPTIONS = ("--config.steps=400", "--config.log_every=20", "--config.eval_every=400")
OPTIONS += ("--config.checkpoint_every=40", "--config.feed=planned", "--config.selector.name=rs2")
OPTIONS += ("--config.host_timeout=20",)
LONG = [(2, 0), (2, 1), (4, 0), (4, 3)]  # processes, and the one that is killed
# What a run of train.py does as for its processes, and nothing else.
MEETING = """
from absl import flags
from jax.experimental import multihost_utils
import numpy as np
from jsel import sharding
from jsel.training.command import run_main
flags.DEFINE_string("config", "", "A file, not looked at.")
def main(argv):
  sharding.join_hosts(timeout=20)
  while True:
    multihost_utils.process_allgather(np.int32(1))
    print("met", flush=True)
run_main(main, default_config="train.py")
"""


def pytest_generate_tests(metafunc):
  if "count" in metafunc.fixturenames:
    is_long = metafunc.config.getoption("--faults", default=0)
    metafunc.parametrize(("count", "victim"), LONG if is_long else [])


def test_a_process_whose_peer_is_killed_ends_with_a_line():
  told = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", MEETING],
      cwd=ROOT,
      env={**os.environ, **told, "JAX_PLATFORMS": "cpu", "JAX_PROCESS_ID": str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    assert "met\n" in processes[1].stdout  # read up to there, past what Gloo says
    processes[1].kill()
    _, err = processes[0].communicate(timeout=SECONDS)
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  assert processes[0].returncode == 1, err
  assert "error: another process of this run is gone: the same command" in err
  assert "Traceback" not in err


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def test_the_others_end_with_a_line_and_the_run_goes_on(count, victim, tmp_path, faults, report):
  whole, workdir = tmp_path / "whole", tmp_path / "killed"
  train(count, whole, *OPTIONS)
  with Hosts(count, workdir, *OPTIONS) as hosts:
    for line in hosts.processes[0].stdout:
      if line.startswith("step  100"):
        break
    hosts.processes[victim].send_signal(signal.SIGKILL)
    codes, texts = hosts.finish()  # which does not wait for long
  for process, (code, text) in enumerate(zip(codes, texts, strict=True)):
    if process == victim:
      assert code == -signal.SIGKILL
      continue
    # jsel's way out; or JAX's, where process 0 is gone, or a save waited for the one that is.
    assert code in (1, -signal.SIGABRT), text
    assert ("another process of this run is gone" if code == 1 else "another task died") in text
    assert code != 1 or "Traceback" not in text, text
  assert not (workdir / "summary.json").exists()
  texts = train(count, workdir, *OPTIONS)
  assert "going on from step" in texts[0]
  assert exposure(workdir, "planned") == exposure(whole, "planned")
  found, expected = losses(workdir), losses(whole)
  assert list(found) == list(expected)  # each once, in order
  # Gloo may add the processes' gradients in another order.
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
  report(injected=1, survived=1)
