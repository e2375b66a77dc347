"""The host's side of the feeds: order, blocks early and late, errors, and that all ends."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from jsel.data.board import Board
from jsel.data.feed import Feed, _portable
from jsel.data.rows import ArrayRows

PATIENCE = 60  # seconds for what takes milliseconds, on whatever machine
SHARED_MEMORY = pathlib.Path("/dev/shm")


def patiently(reached):
  """Waits until ``reached()``."""
  deadline = time.monotonic() + PATIENCE
  while not reached():
    assert time.monotonic() < deadline, "it never came to that"
    time.sleep(0.002)


@pytest.fixture
def rows(rng):
  inputs = rng.integers(0, 256, (50, 4, 4, 1)).astype(np.uint8)
  return ArrayRows(inputs, np.arange(50) % 7)


@pytest.fixture
def ids(rng):
  return rng.integers(0, 50, (12, 6)).astype(np.int32)


def threads_feed(rows, *, start=0, ahead=3):
  return Feed(rows, start=start, workers=0, threads=2, ahead=ahead)


def process_feed(rows, *, start=0):
  return Feed(rows, start=start, workers=1, threads=2, ahead=1)


def processes_feed(rows, *, start=0):
  return Feed(rows, start=start, workers=2, threads=1, ahead=1)


def check(batch, rows, ids):
  assert list(map(type, batch.values())) == [np.ndarray] * 3
  for name, column in {**rows.take(ids), "ids": ids}.items():
    np.testing.assert_array_equal(batch[name], column)
    assert batch[name].dtype == column.dtype


class Recorder:
  """Rows that tell which ids were asked for, in which order."""

  size = 1000

  def __init__(self):
    self.taken = []

  def take(self, ids):
    self.taken.append(ids.tolist())
    return {"inputs": ids.astype(np.float32), "labels": ids}


def published_as_it_goes(feed, ids, first):
  """All batches of ``ids``, the blocks late, early and two ahead in turn."""
  borders = [0, 3, 4, 5, 9, len(ids)]
  blocks = [(first + a, ids[a:b]) for a, b in itertools.pairwise(borders)]
  ahead = iter((0, 1, 2, 0, 0))
  batches = []
  while feed.step < first + len(ids):
    if feed.step == feed.published or not batches:
      for block in blocks[: 1 + next(ahead)]:
        feed.publish(*block)
        blocks.remove(block)
    batches.append(next(feed))
  return batches


def test_threads_and_processes_give_what_was_published_and_leave_nothing(rows, ids):
  names = lambda: {path.name for path in SHARED_MEMORY.glob("psm_*")}
  threads_before, names_before = set(threading.enumerate()), names()
  found = {}
  for kind in (threads_feed, processes_feed):
    with kind(rows, start=2) as feed:  # in the middle of the first block
      found[kind] = published_as_it_goes(feed, ids, first=0)
      # What is on the devices stays as it is while the workers go on.
      on_devices = jax.device_put(found[kind])
      feed.publish(12, ids[:8])
      for step in range(8):
        check(next(feed), rows, ids[step])
      # Now all workers wait for step 20.
    assert not multiprocessing.active_children()
    for step, batch in enumerate(jax.device_get(on_devices), start=2):
      check(batch, rows, ids[step])
    del on_devices, batch
  for one, other in zip(*found.values(), strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
  found.clear()
  del one, other
  ours = lambda: [t.name for t in set(threading.enumerate()) - threads_before]
  patiently(lambda: not [name for name in ours() if name.startswith(("jsel", "grain"))])
  gc.collect()  # which is when JAX drops what it has borrowed
  made = names() - names_before
  patiently(lambda: not made & names())


def test_a_feed_goes_on_from_every_step(rows, ids):
  for start in range(len(ids)):
    with threads_feed(rows, start=start) as feed:
      feed.publish(0, ids)  # the plan that the run was in the middle of
      assert (feed.step, feed.published) == (start, len(ids))
      for step in range(start, len(ids)):
        check(next(feed), rows, ids[step])
      assert feed.step == feed.published


def test_the_next_block_is_read_before_the_last_one_ends():
  rows = Recorder()
  ids = np.arange(8, dtype=np.int32).reshape(4, 2)
  with threads_feed(rows, ahead=4) as feed:
    feed.publish(0, ids[:2])
    feed.publish(2, ids[2:])
    patiently(lambda: len(rows.taken) == 4)  # and nobody has called next


def test_what_is_read_ahead_is_bounded_and_published():
  rows = Recorder()
  ids = np.arange(200, dtype=np.int32).reshape(100, 2)
  with threads_feed(rows, ahead=5) as feed:
    feed.publish(0, ids[:3])
    next(feed)
    patiently(lambda: len(rows.taken) == 3)
    feed.publish(3, ids[3:])
    next(feed)
    patiently(lambda: len(rows.taken) == 7)  # two are out, five wait
    time.sleep(0.05)
    assert sorted(rows.taken) == ids[:7].tolist()


def test_blocks_are_let_go_once_passed():
  board = Board(0)
  for step in range(0, 6, 2):
    board.publish(step, np.full((2, 1), step, np.int32))
  board.passed(2)  # the second block has a step to come
  assert board.wait(3).tolist() == [2]
  board.passed(3)
  assert [first for first, _ in board._blocks] == [4]


def test_published_ids_are_kept_from_changes(rows, ids):
  with threads_feed(rows, ahead=1) as feed:
    mine = ids.copy()
    feed.publish(0, mine)
    mine[:] = 0
    for step in range(len(ids)):
      check(next(feed), rows, ids[step])


def test_a_step_that_is_not_published_is_not_waited_for(rows, ids):
  with threads_feed(rows, start=3) as feed:
    with pytest.raises(ValueError, match="step 3 is not published"):
      next(feed)
    feed.publish(3, ids[:1])
    check(next(feed), rows, ids[0])
    with pytest.raises(ValueError, match="step 4 is not published"):
      next(feed)
    feed.publish(4, ids[1:])  # nothing is lost
    check(next(feed), rows, ids[1])


@pytest.mark.parametrize(
  ("first", "block", "match"),
  [
    (6, np.zeros((2, 3), np.int32), "steps from 6 on do not follow .* publish from 5 on"),
    (4, np.zeros((1, 3), np.int32), "steps from 4 on do not follow"),  # ends where the feed starts
    (5, np.zeros((2, 3), np.int64), r"int32 \[steps, b\], got int64 \[2, 3\]"),
    (5, np.zeros(3, np.int32), r"int32 \[steps, b\], got int32 \[3\]"),
    (5, np.zeros((0, 3), np.int32), r"int32 \[steps, b\], got int32 \[0, 3\]"),
    (5, np.array([[1], [50]], np.int32), "step 6 names row 50 of 50 rows"),
    (5, np.array([[-1]], np.int32), "step 5 names row -1 of 50 rows"),
  ],
)
def test_blocks_that_cannot_be_are_refused(rows, first, block, match):
  with threads_feed(rows, start=5) as feed, pytest.raises(ValueError, match=match):
    feed.publish(first, block)


def test_a_second_block_may_not_begin_before_the_end_of_the_first(rows, ids):
  with threads_feed(rows, start=5) as feed:
    feed.publish(3, ids[:4])
    with pytest.raises(ValueError, match=r"steps from 6 on do not follow .* publish from 7 on"):
      feed.publish(6, ids[:4])


@pytest.mark.parametrize("field", ["start", "workers", "threads", "ahead"])
def test_numbers_that_cannot_be_are_refused(rows, field):
  numbers = {"start": 0, "workers": 0, "threads": 1, "ahead": 1} | {field: -1}
  with pytest.raises(ValueError, match=f"needs {field} of at least .*, got -1"):
    Feed(rows, **numbers)


@pytest.mark.parametrize("kind", [threads_feed, process_feed])
def test_a_bad_row_reaches_the_caller_as_it_was_said(ids, kind):
  labels = np.zeros(50, np.int32)
  labels[33] = 9
  rows = ArrayRows(np.zeros((50, 3), np.float32), labels, what="mine", classes=9)
  ids[ids == 33] = 0
  ids[7, 2] = 33
  feed = kind(rows)
  feed.publish(0, ids)  # the other readers wait for step 12 meanwhile
  for step in range(7):
    check(next(feed), rows, ids[step])
  with pytest.raises(ValueError, match=r"^mine: .*row 33.*") as raised:
    next(feed)
  assert "\n" not in str(raised.value)
  assert not multiprocessing.active_children()
  with pytest.raises(ValueError, match="the feed is closed: there is no batch of step 7"):
    next(feed)
  with pytest.raises(ValueError, match="the feed is closed"):
    feed.publish(12, ids)
  feed.close()  # may be called again


def test_an_error_of_any_kind_can_go_to_another_process():
  class Odd(ValueError):
    def __init__(self, one, two):
      super().__init__(one)
      self.lock = threading.Lock()

  try:
    raise Odd("a", "b")
  except Odd as error:
    with pytest.raises((TypeError, AttributeError)):
      pickle.dumps(error)
    portable = pickle.loads(pickle.dumps(_portable(error)))
  assert (type(portable), str(portable)) == (RuntimeError, "Odd: a")
  assert "test_feed.py" in portable.__notes__[0]
  portable = pickle.loads(pickle.dumps(_portable(ValueError("row 3 is bad"))))
  assert (type(portable), str(portable)) == (ValueError, "row 3 is bad")


def test_a_killed_worker_is_an_error_and_what_the_group_is_sent_is_none(rows, ids):
  feed = process_feed(rows)
  feed.publish(0, ids[:3])
  check(next(feed), rows, ids[0])
  (worker,) = multiprocessing.active_children()
  for signum in (signal.SIGINT, signal.SIGTERM):  # of a terminal, of a scheduler
    os.kill(worker.pid, signum)
  for step in (1, 2):
    check(next(feed), rows, ids[step])
  feed.publish(3, ids[3:4])
  check(next(feed), rows, ids[3])
  os.kill(worker.pid, signal.SIGKILL)  # while it waits
  feed.publish(4, ids[4:])
  with pytest.raises(RuntimeError, match="exit code -9"):
    list(itertools.islice(feed, len(ids) - 4))
  assert not multiprocessing.active_children()
  feed.close()


OUTLIVED = """
import multiprocessing, sys, time
import numpy as np
from jsel.data.feed import Feed
from jsel.data.rows import ArrayRows

if __name__ == "__main__":
  workers = int(sys.argv[1])
  rows = ArrayRows(np.zeros((4, 2), np.float32), np.zeros(4))
  feed = Feed(rows, start=0, workers=workers, threads=2, ahead=2)
  feed.publish(0, np.zeros((1, 2), np.int32))
  next(feed)
  print([process.pid for process in multiprocessing.active_children()], flush=True)
  if workers:
    time.sleep(600)
  raise KeyError("nobody closed the feed")
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_outlives_the_training_process(tmp_path, workers):
  script = tmp_path / "outlived.py"
  script.write_text(OUTLIVED)
  process = subprocess.Popen(
    [sys.executable, script, str(workers)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    pids = process.stdout.readline().strip("[]\n").split(",")
    if workers:
      process.kill()
      for pid in pids:
        patiently(lambda pid=pid: not is_running(int(pid)))
    _, errors = process.communicate(timeout=PATIENCE)
    assert workers or "KeyError: 'nobody closed the feed'" in errors
  finally:
    with contextlib.suppress(OSError):
      process.kill()
    process.communicate()


def is_running(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False
