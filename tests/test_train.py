"""train.py as a person runs it: commands, exit codes, what a run leaves, and going on."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TINY_FIT = ["--config.selector.rep_div.sae_steps=20", "--config.selector.rep_div.latents=32"]


def command(workdir, *options, config="digits"):
  return [
    sys.executable,
    "train.py",
    f"--config=configs/{config}.py",
    f"--workdir={workdir}",
    *options,
  ]


def environment(devices=1):
  return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


def train(workdir, *options, config="digits", devices=1):
  return subprocess.run(
    command(workdir, *options, config=config),
    cwd=ROOT,
    env=environment(devices),
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def exposure(workdir):
  return pyarrow.parquet.read_table(workdir / "exposure.parquet").to_pydict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The default run on digits, a third as long."""
  workdir = tmp_path_factory.mktemp("run with spaces") / "digits"
  result = train(workdir, "--config.epochs=30", "--config.log_every=20", *TINY_FIT)
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_the_default_learns_digits_on_half_of_the_examples(finished):
  workdir, result = finished
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["test_accuracy"] > 0.96
  assert summary["ratio"] == 0.5
  assert summary["examples_seen"] == summary["steps"] * 64 == pytest.approx(30 * 647, abs=64)
  assert summary["wall_seconds"] > summary["fit_seconds"] > 0
  assert summary["selection_overhead_pct"] < 100
  assert "Traceback" not in result.stderr
  assert all(line.isprintable() for line in result.stdout.splitlines())  # plain when piped


def test_a_run_leaves_what_the_design_says(finished):
  workdir, _ = finished
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    "config.json",
    "manifest.json",
    "metrics.jsonl",
    "checkpoints",
    "exposure.parquet",
    "summary.json",
    "curves.png",
  }
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert any(name.startswith("events.out") for name in names)
  manifest = json.loads((workdir / "manifest.json").read_text())
  assert len(manifest["data"]["sha256"]) == 64
  config = json.loads((workdir / "config.json").read_text())
  assert config["selector"]["rep_div"]["latents"] == 32
  seen = exposure(workdir)
  assert (
    sum(seen["times_selected"])
    == json.loads((workdir / "summary.json").read_text())["examples_seen"]
  )
  # Entitlement: after 30 plans of half of the rows nobody is far from 15 visits.
  assert min(seen["times_selected"]) >= 5
  lines = metrics(workdir)
  assert all(np.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)
  assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_the_same_command_again_says_that_all_is_done(finished):
  workdir, _ = finished
  before = (workdir / "summary.json").read_bytes()
  result = train(workdir, "--config.epochs=30", "--config.log_every=20", *TINY_FIT)
  assert result.returncode == 0, result.stderr
  assert "are done" in result.stdout
  assert (workdir / "summary.json").read_bytes() == before


def test_another_configuration_in_the_same_workdir_is_refused_and_nothing_is_lost(finished):
  workdir, _ = finished
  before = (workdir / "config.json").read_bytes()
  result = train(workdir, "--config.epochs=30", "--config.seed=1", *TINY_FIT)
  assert result.returncode == 2
  assert "seed=0, this one has seed=1:" in result.stderr
  assert (workdir / "config.json").read_bytes() == before


def test_stopped_and_resumed_is_the_run_that_never_stopped(tmp_path):
  options = ("--config.steps=2000", "--config.selector.name=infobatch", "--config.log_every=25")
  options += ("--config.checkpoint_every=50",)
  whole = train(tmp_path / "whole", *options)
  assert whole.returncode == 0, whole.stderr
  workdir = tmp_path / "stopped"
  running = subprocess.Popen(
    command(workdir, *options), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
  )
  for line in running.stdout:  # type: ignore
    if line.startswith("step"):
      break
  time.sleep(0.2)
  running.send_signal(signal.SIGTERM)
  rest = running.stdout.read()  # type: ignore
  running.stdout.close()  # type: ignore
  assert running.wait(timeout=120) == 143
  assert "the same command goes on" in rest
  assert not (workdir / "summary.json").exists()
  result = train(workdir, *options)
  assert result.returncode == 0, result.stderr
  assert "going on from step" in result.stdout
  # Bitwise: every logged loss, and which example was trained on when.
  timing = ("wall_seconds", "examples_per_second", "selection_overhead_pct")
  plain = lambda lines: [
    {k: v for k, v in line.items() if k not in timing}
    for line in lines
    if "selection/share" not in line
  ]
  assert plain(metrics(workdir)) == plain(metrics(tmp_path / "whole"))
  assert exposure(workdir) == exposure(tmp_path / "whole")


@pytest.mark.parametrize("name", ["random", "rs2", "rep_div"])
def test_eight_devices_choose_what_one_does(tmp_path, name):
  # NPROC, as conftest.py sets it, pins the thread pool, so that the fit is the same too.
  options = (
    "--config.steps=100",
    f"--config.selector.name={name}",
    "--config.log_every=1",
    *TINY_FIT,
  )
  one = train(tmp_path / "1", *options)
  eight = train(tmp_path / "8", *options, devices=8)
  assert one.returncode == eight.returncode == 0, one.stderr + eight.stderr
  a, b = exposure(tmp_path / "1"), exposure(tmp_path / "8")
  for column in ("times_selected", "first_step", "last_step", "planned"):
    assert a[column] == b[column]
  losses = lambda run: [m["train/loss"] for m in metrics(tmp_path / run) if "train/loss" in m][:50]
  np.testing.assert_allclose(losses("1"), losses("8"), rtol=1e-4)  # the design's promise
  score = lambda run: json.loads((tmp_path / run / "summary.json").read_text())["test_accuracy"]
  assert abs(score("1") - score("8")) <= 0.005


def test_a_late_fit_takes_the_features_of_the_model(tmp_path):
  options = ("--config.steps=60", "--config.selector.fit_step=25", *TINY_FIT)
  result = train(tmp_path / "run", *options)
  assert result.returncode == 0, result.stderr
  assert "fitted at step 25" in result.stdout


def test_a_trace_and_compiled_programs_are_left_where_asked_and_bfloat16_trains(tmp_path):
  options = ("--config.steps=60", "--config.selector.name=rs2", "--config.model.dtype=bfloat16")
  options += ("--config.profile=True", f"--config.compilation_cache={tmp_path / 'cache'}")
  result = train(tmp_path / "run", *options)
  assert result.returncode == 0, result.stderr
  assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
  assert list((tmp_path / "cache").iterdir())
  assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] > 0.85
  assert all(np.isfinite(line.get("train/loss", 0)) for line in metrics(tmp_path / "run"))


def test_fashion_mnist_trains_the_cnn(tmp_path):
  if not pathlib.Path("/usr/share/datasets/fashion-mnist").exists():
    pytest.skip("apt-get install dataset-fashion-mnist")
  options = ("--config.steps=40", "--config.log_every=20", "--config.selector.rep_div.sae_steps=20")
  result = train(tmp_path / "run", *options, config="fashion_mnist")
  assert result.returncode == 0, result.stderr
  assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] > 0.6


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--config.selector.nam=rs2"], "no such key: --config.selector.nam: did you mean 'name'?"),
    (["--config=configs/digit.py"], "there is no config file configs/digit.py: correct --config"),
    (["--config.selector.name=rs3"], "did you mean 'rs2'"),
    (["--config.selector.ratio=1.5", "--config.selector.name=rs2"], r"must be in (0, 1], got 1.5"),
    (
      ["--config.selector.name=infobatch", "--config.selector.ratio=0.3"],
      "no meaning for infobatch",
    ),
    (["--config.data.name=digit"], "did you mean 'digits'"),
    (["--config.model.name=mpl"], "did you mean 'mlp'"),
    (["--config.batch_size=5000"], "less than a batch of 5000"),
    (["--config.batch_size=none"], "batch_size"),
    (["--config.feed=planed"], "feed must be 'resident' or 'planned' or 'super_batch', got"),
    (["--config.feed=super_batch", "--config.selector.name=infobatch"], "rep_div_plain, rs2"),
    (["--config.feed=planned"], "set selector.fit_step to a later step"),
    (
      ["--config.selector.fit_step=9", "--config.selector.rep_div.rank=500"],
      "rank must be in [1, 256] for rows of 256 columns, got 500",
    ),
    (["--config.accumulate=3"], "accumulate=3 does not cut batch_size=64"),
    (["--config.deterministic_reductions=3"], "=3 is no power of two that divides batch_size=64"),
    (["--config.data.name=own", "--config.data.train=/nowhere/x.npz"], "/nowhere/x.npz"),
    (["stray"], "unexpected argument 'stray'"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, options, message):
  result = train(tmp_path / "run", *options)
  assert result.returncode == 2, result.stderr
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
  assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    ("nan", "column 2 of row 17 is nan"),
    ("label", "label -1"),
    ("truncated", "rows.npz"),
    ("shape", "30 labels"),
  ],
)
def test_broken_data_is_one_line_and_leaves_the_run_that_is_there(tmp_path, damage, message):
  rng = np.random.default_rng(0)
  inputs, labels = rng.standard_normal((400, 6)).astype(np.float32), np.arange(400) % 3
  if damage == "nan":
    inputs[17, 2] = np.nan
  if damage == "label":
    labels[5] = -1
  if damage == "shape":
    labels = labels[:30]
  path = tmp_path / "rows.npz"
  np.savez(path, inputs=inputs, labels=labels)
  if damage == "truncated":
    path.write_bytes(path.read_bytes()[:-1000])
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / "config.json").write_text("of a run before")
  result = train(workdir, f"--config.data.train={path}", config="own_data")
  assert result.returncode == 2, result.stderr
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
  assert [(p.name, p.read_text()) for p in workdir.iterdir()] == [
    ("config.json", "of a run before")
  ]


def test_a_batch_that_does_not_divide_among_the_devices_is_refused(tmp_path):
  result = train(tmp_path / "run", "--config.batch_size=60", devices=8)
  assert result.returncode == 2
  assert "batch_size=60 does not divide among 8 devices" in result.stderr


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  result = train(tmp_path / "file" / "run")
  assert result.returncode == 2
  assert "cannot write to workdir" in result.stderr
