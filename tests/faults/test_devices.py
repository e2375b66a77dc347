"""A run that goes on with another number of devices: the same choice, the same losses but for sums.

Gradients are summed over the devices, and so in another order on another number of them, unless
they are asked to be summed in a fixed one.
"""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest

from jsel import selectors
from tests.faults.inside import FIT_STEP, Train, configuration
from tests.faults.runs import exposed, logged, saved
from tests.faults.test_resume import PAIRS
from tests.selectors.test_contract import VARIANTS, make

STEPS, CHANGE = 200, 100
CHANGES = [(8, 4), (8, 2), (8, 1), (1, 8)]
FED = [("infobatch", "resident"), ("rep_div/loss_aware", "planned"), ("loss", "super_batch")]


def pytest_generate_tests(metafunc):
  if "name" in metafunc.fixturenames:
    names = selectors.SELECTORS if metafunc.config.getoption("--faults", default=0) else ["rs2"]
    metafunc.parametrize("name", names)
  if "pair" in metafunc.fixturenames:
    pairs = PAIRS if metafunc.config.getoption("--faults", default=0) else FED
    metafunc.parametrize("pair", pairs, ids="-".join)


@pytest.fixture
def train(monkeypatch):
  return Train(monkeypatch)


def losses_after_the_change(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
  return np.array([losses[step] for step in range(CHANGE + 1, CHANGE + 51)])


def accuracy(workdir):
  return json.loads((workdir / "summary.json").read_text())["test_accuracy"]


def exposure(workdir):
  table = pyarrow.parquet.read_table(workdir / "exposure.parquet").to_pydict()
  del table["last_loss"]  # sums of another order
  return {column: np.array(values) for column, values in table.items()}


@pytest.mark.timeout(0)  # the long form takes minutes a selector
def test_a_run_goes_on_with_another_number_of_devices(name, train, tmp_path, faults, report):
  config = configuration(
    name, steps=STEPS, log_every=1, eval_every=STEPS, checkpoint_every=CHANGE, keep_checkpoints=2
  )
  changes = CHANGES if faults else [(8, 2)]
  whole = {before: tmp_path / str(before) for before, _ in changes}
  for devices, workdir in whole.items():
    assert train(config, workdir, devices=devices) == 0
  found = {}
  for before, after in changes:
    workdir = tmp_path / f"{before} to {after}"
    ignored = shutil.ignore_patterns(str(STEPS), "summary.json", "exposure.parquet")
    shutil.copytree(whole[before], workdir, ignore=ignored)
    assert train(config, workdir, devices=after) == 0
    losses, expected = (losses_after_the_change(run) for run in (workdir, whole[before]))
    selected, planned = (exposure(run) for run in (workdir, whole[before]))
    others = [
      column
      for column in ("planned", "times_selected", "first_step", "last_step")
      if (selected[column] != planned[column]).any()
    ]
    found[f"{before} to {after}"] = {
      "loss": float(np.max(np.abs(losses / expected - 1))),
      "accuracy": abs(accuracy(workdir) - accuracy(whole[before])),
      "rows": int((selected["last_step"] != planned["last_step"]).sum()),
    }
    if not make(name).feedback:
      assert not others, (before, after)
  report(injected=len(changes), survived=len(changes), found=found)
  for change, differences in found.items():
    assert differences["loss"] <= 1e-4, change  # the design's promise, as the next
    assert differences["accuracy"] <= 0.005, change


@pytest.mark.timeout(0)
def test_with_sums_in_a_fixed_order_another_number_of_devices_changes_nothing(
  pair, train, tmp_path, faults, report
):
  variant, feed = pair
  steps, change = 4 * FIT_STEP, 2 * FIT_STEP
  config = configuration(
    variant.split("/")[0],
    feed,
    steps=steps,
    constants=VARIANTS[variant],
    checkpoint_every=change,
    log_every=1,
    deterministic_reductions=8,
  )
  assert train(config, tmp_path / "1") == 0
  changes = CHANGES if faults else [(8, 2)]
  for before, after in changes:
    workdir = tmp_path / f"{before} to {after}"
    assert train(config, workdir, devices=before) == 0
    assert saved(workdir) == saved(tmp_path / "1")
    assert (logged(workdir), exposed(workdir)) == (logged(tmp_path / "1"), exposed(tmp_path / "1"))
    for name in (f"checkpoints/{steps}", "summary.json", "exposure.parquet"):
      path = workdir / name
      shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train(config, workdir, devices=after) == 0
    assert saved(workdir) == saved(tmp_path / "1")
    assert (logged(workdir), exposed(workdir)) == (logged(tmp_path / "1"), exposed(tmp_path / "1"))
  report(injected=len(changes), survived=len(changes))
