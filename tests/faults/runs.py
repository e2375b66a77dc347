"""Small runs of train.py to break, and what has to be equal in two of them."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import numpy as np
import pyarrow.parquet
from orbax.checkpoint import v1 as ocp

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = ("--config.steps=120", "--config.selector.name=infobatch", "--config.log_every=5")
OPTIONS += ("--config.checkpoint_every=4", "--config.eval_every=40")
TIMES = {"wall_seconds", "examples_per_second", "selection_overhead_pct"}


def start(workdir, *options, prefix=()):
  """train.py on digits, in one process on one device, with its output in pipes."""
  return subprocess.Popen(
    [
      *prefix,
      sys.executable,
      "train.py",
      "--config=configs/digits.py",
      f"--workdir={workdir}",
      *OPTIONS,
      *options,
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "NPROC": "2"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(workdir, *options, prefix=()):
  """The exit code and both outputs of a run to its end."""
  process = start(workdir, *options, prefix=prefix)
  try:
    out, err = process.communicate(timeout=280)
  finally:
    process.kill()
  return process.returncode, out, err


def plain(leaf):
  """The numbers of an array, PRNG keys too."""
  is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def saved(workdir, step=None):
  """What the checkpoint of ``step`` holds, or the newest one, without times."""
  steps = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
  path = workdir / "checkpoints" / str(step or max(map(int, steps)))  # others were set aside
  about = json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Sharding info not provided")  # one device then and now
    state = ocp.load(path, checkpointable_name="state")
  return {
    "step": path.name,
    "state": {name: plain(leaf).tobytes() for name, leaf in state.items()},
    "scalars": about["scalars"],
    "unlogged": about["metadata"]["unlogged"],
  }


def logged(workdir):
  """The metrics of a run, without times."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  # What selection costs is measured, at another step after a resume.
  lines = [line for line in lines if "selection/share" not in line]
  return [{tag: x for tag, x in line.items() if tag not in TIMES} for line in lines]


def exposed(workdir):
  """The exposure log of a run."""
  exposure = pyarrow.parquet.read_table(workdir / "exposure.parquet").to_pydict()
  return {name: np.asarray(x).tobytes() for name, x in exposure.items()}


def outcome(workdir):
  """What a run came to, without its times: its last state, its metrics and its exposure log."""
  return {**saved(workdir), "metrics": logged(workdir), "exposure": exposed(workdir)}


def one_line(text):
  """Whether ``text`` is what a person is told of a mistake: a line, no traceback."""
  return len(text.strip().splitlines()) == 1 and "Traceback" not in text
