"""A run that is stopped at any step and goes on is bitwise the run that never stopped."""

import shutil

import numpy as np
import pytest

from jsel.training.setup import FEEDS
from tests import tiny_bert
from tests.faults.inside import FIT_STEP, Train, configuration
from tests.faults.runs import exposed, logged, saved
from tests.selectors.test_contract import VARIANTS, make

PAIRS = [
  (variant, feed) for feed in FEEDS for variant in VARIANTS if FEEDS[feed] in make(variant).scope
]
SHORT = [("infobatch", "planned"), ("loss", "super_batch")]  # the resident one is below


def pytest_generate_tests(metafunc):
  if "pair" in metafunc.fixturenames:
    pairs = PAIRS if metafunc.config.getoption("--faults", default=0) else SHORT
    metafunc.parametrize("pair", pairs, ids="-".join)


@pytest.fixture
def train(monkeypatch):
  return Train(monkeypatch)


@pytest.mark.timeout(0)  # the long form takes minutes a pair
def test_stopped_after_every_step(pair, train, tmp_path, faults, report):
  variant, feed = pair
  steps = 30 if faults else FIT_STEP + 2
  config = configuration(
    variant.split("/")[0],
    feed,
    steps=steps,
    constants=VARIANTS[variant],
    checkpoint_every=1,
    keep_checkpoints=steps,
  )
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  assert train(config, whole) == 0
  lines = logged(whole)
  assert lines[-1]["step"] == steps
  for step in range(1, steps):
    assert train(config, stopped, stop_after=1) == 143
    assert saved(stopped) == saved(whole, step), step
    assert logged(stopped) == [line for line in lines if line["step"] <= step]
  assert train(config, stopped) == 0
  starts = [FIT_STEP, FIT_STEP]  # twice from one checkpoint, and just before a fit
  starts += [1, steps - 1] if faults else []
  going_on = [tmp_path / str(number) for number in range(len(starts))]
  for workdir, start in zip(going_on, starts, strict=True):
    # As a process that died after many more steps would leave it, without those checkpoints.
    shutil.copytree(whole, workdir, ignore=shutil.ignore_patterns("[0-9]*", "summary.json"))
    shutil.copytree(whole / "checkpoints" / str(start), workdir / "checkpoints" / str(start))
    assert train(config, workdir) == 0
  for workdir in (stopped, *going_on):
    assert saved(workdir) == saved(whole, steps)
    assert logged(workdir) == lines
    assert exposed(workdir) == exposed(whole)
  resumes = steps - 1 + len(starts)
  report(injected=resumes, survived=resumes)


def test_a_resumed_run_takes_the_same_programs_at_the_same_steps(train, tmp_path, faults):
  # 13 or 14 steps a plan: one or ten steps a dispatch, which are two programs.
  config = configuration("rs2", steps=70, batch_size=48, log_every=25)
  assert train(config, tmp_path / "whole") == 0
  whole = train.dispatched
  assert 10 in np.diff(whole)
  starts = range(len(whole) - 1) if faults else [whole.index(13)]
  for number, start in enumerate(starts):
    assert train(config, tmp_path / str(number), stop_after=start + 1) == 143
    assert train(config, tmp_path / str(number)) == 0
    assert train.dispatched == whole[start + 1 :]
    assert exposed(tmp_path / str(number)) == exposed(tmp_path / "whole")


def test_an_encoder_that_is_fine_tuned_goes_on(train, tmp_path, rng):
  for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package, reason="pip install 'jsel[text]'")
  tokens = rng.integers(0, 204, (200, 7)).astype(np.int32)
  np.savez(tmp_path / "texts.npz", inputs=tokens, labels=np.arange(200) % 3)
  config = configuration("rs2", steps=4, checkpoint_every=1, keep_checkpoints=4).unlock()
  config.batch_size, config.data.name = 16, "own"
  config.data.train, config.data.validation_fraction = str(tmp_path / "texts.npz"), 0.0
  config.model.name = "fine_tuned_bert"
  config.model.fine_tuned_bert.encoder = str(tiny_bert.write(tmp_path / "tiny"))
  config.model.fine_tuned_bert.train_layers = 1
  config.lock()
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  assert train(config, whole) == 0
  for step in range(1, 4):
    assert train(config, stopped, stop_after=1) == 143
    assert saved(stopped) == saved(whole, step), step
  assert train(config, stopped) == 0
  assert saved(stopped) == saved(whole, 4)
  assert (logged(stopped), exposed(stopped)) == (logged(whole), exposed(whole))
