"""A long run: memory, live arrays and compiled programs stay what they were after its beginning."""

import gc
import os
import pathlib

import jax
import pytest

from tests.faults.inside import Train, configuration

COMPILED = "/jax/core/compile/backend_compile_duration"
LOOK = 50  # steps between looks, each at the same place between two log steps
# What a leak of a kilobyte a step would add in the second half of 10,000 steps is 5 MiB. Arenas of
# the allocator and of Arrow, and buffers of checkpoints in flight, come and go by less than this.
GROWTH = 4 * 2**20


class Watch:
  """Looks at this process every `LOOK` steps."""

  def __init__(self):
    self.compiled, self.looks = [], []

  def on_duration(self, event, seconds, **about):
    if event == COMPILED:
      self.compiled.append(about.get("fun_name", "?"))

  def __call__(self, step):
    if step % LOOK:
      return
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    self.looks.append((step, resident, len(jax.live_arrays()), len(self.compiled)))


@pytest.fixture
def watch():
  watch = Watch()
  jax.monitoring.register_event_duration_secs_listener(watch.on_duration)
  yield watch
  jax.monitoring.unregister_event_duration_listener(watch.on_duration)


@pytest.mark.timeout(0)  # the long form takes minutes
def test_a_long_run_stays_as_it_was(monkeypatch, watch, tmp_path, faults, report):
  if not pathlib.Path("/proc/self/statm").exists():
    pytest.skip("resident memory is read from /proc")
  steps = 10_000 if faults else 300
  train = Train(monkeypatch, on_step=watch)
  # Under the transfer guard, as every run of train.py.
  config = configuration(
    "rep_div", steps=steps, log_every=10, eval_every=LOOK, checkpoint_every=2 * LOOK
  )
  assert train(config, tmp_path / "run") == 0
  assert [step for step, *_ in watch.looks] == list(range(LOOK, steps + 1, LOOK))
  settled = watch.looks[len(watch.looks) // 2 :]
  _, resident, arrays, compiled = zip(*settled, strict=True)
  before = watch.looks[: -len(settled)]
  half = len(settled) // 2
  growth = min(resident[half:]) - min(resident[:half])
  report(
    injected=steps,
    survived=steps,
    growth=growth,
    resident=[look[1] for look in watch.looks[:: max(len(watch.looks) // 10, 1)]],
    arrays=min(arrays),
    compiled=compiled[-1],
  )
  assert compiled[0] == compiled[-1], watch.compiled[compiled[0] :]
  # The least: a look while a checkpoint is being written finds its arrays as well, and whether it
  # still is depends on the disk. What leaks is there at every look.
  assert min(arrays) <= max(live for _, _, live, _ in before)
  assert growth <= GROWTH
