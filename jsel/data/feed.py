"""The batches of a run in the order of its steps, read by Grain ahead of the training loop.

The loop says which rows a step is made of, a plan or any other block of steps at a time; workers
read them as soon as they know. They stay over all blocks, so the next batches are already being
read where one plan ends and another begins, if the other one was published by then.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from typing import Any

import grain
import numpy as np
from absl import flags

from jsel.data.board import Board, Client, Server
from jsel.data.rows import Rows

STEPS = 2**31 - 1  # of a run, at most


class Feed:
  """An iterator over the batches of the steps from ``start`` on, each a dict of NumPy arrays.

  A batch is what ``rows.take`` gives for the step's ids, ``inputs[b, ...]`` and int32
  ``labels[b]``, and those ``ids`` as int32[b]. It is a function of the step and of what was
  published for it, so a run goes on by another feed that starts at the step to come: there is no
  state to save. With several hosts each has a feed of its own, of its columns of the ids
  (`jsel.data.device.local_columns`).

  Call `publish` before `next`, as early as the ids are known, and `close` at the end (or use
  ``with``). What is read ahead is at most ``max(ahead, threads)`` batches with threads, and
  ``2 * ahead + threads + 2`` a process with processes.

  Args:
    rows: what to read from.
    start: the step of the first batch.
    workers: processes that read, each every ``workers``-th step; 0 reads in threads of this one.
      A process costs some seconds to start (in the background) and 0.2 GB; choose it where
      decoding holds Python's lock.
    threads: that read, in every process.
    ahead: batches that wait, read: in all with threads, of each process with processes.

  Raises:
    ValueError: for numbers of workers, threads or batches that cannot be.

  >>> from jsel.data.rows import ArrayRows
  >>> rows = ArrayRows(np.zeros((4, 2), np.float32), np.array([5, 6, 7, 8]))
  >>> with Feed(rows, start=7, workers=0, threads=1, ahead=1) as feed:
  ...   feed.publish(7, np.array([[3, 1], [0, 2]], np.int32))
  ...   print(next(feed)["labels"], next(feed)["labels"], feed.step)
  [8 6] [5 7] 9
  """

  def __init__(self, rows: Rows, *, start: int, workers: int, threads: int, ahead: int):
    for name, value, least in (
      ("start", start, 0),
      ("workers", workers, 0),
      ("threads", threads, 1),
      ("ahead", ahead, 1),
    ):
      if value < least:
        raise ValueError(f"a feed needs {name} of at least {least}, got {value}")
    self._size, self._start, self._step = rows.size, start, start
    self._board = Board(start)
    self._server = Server(self._board) if workers else None
    source = _Steps(rows, self._server.client() if self._server else self._board, start)
    dataset = grain.MapDataset.source(source).to_iter_dataset(
      grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=threads if workers else max(threads, ahead)
      )
    )
    if workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain looks at some of its own; not every program parses any
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead),
        worker_init_fn=_init_worker,
      )
    iterator = iter(dataset)
    iterator.get_state()  # makes the iterators of the processes, for the next line to start
    iterator.start_prefetch()
    self._iterator: grain.DatasetIterator[dict[str, Any]] | None = iterator  # None once closed

  @property
  def step(self) -> int:
    """The step of the next batch."""
    return self._step

  @property
  def published(self) -> int:
    """The first step that nothing is published for: `next` works up to the one before."""
    return self._board.end

  def publish(self, first: int, ids: np.ndarray) -> None:
    """Says which rows the steps ``[first, first + steps)`` are made of.

    Args:
      first: `published`; in the first call also a step before it, whose rows are then passed over:
        a resumed run publishes the plan that it was in the middle of.
      ids: ``[steps, b]`` int32 in [0, rows.size); copied.

    Raises:
      ValueError: for steps that do not follow, ids of another shape or dtype, or out of range.
    """
    if self._iterator is None:
      raise ValueError("the feed is closed: no more steps can be published")
    if ids.ndim != 2 or not ids.size or ids.dtype != np.int32:
      raise ValueError(
        f"ids of steps are int32 [steps, b], got {ids.dtype} {list(ids.shape)}: cut them so"
      )
    fresh = self._board.end == self._start
    if first != self._board.end and not (fresh and first < self._start < first + len(ids)):
      raise ValueError(
        f"steps from {first} on do not follow those published: publish from {self._board.end} on"
      )
    outside = (ids < 0) | (ids >= self._size)
    if outside.any():
      step, column = (int(i) for i in np.argwhere(outside)[0])
      raise ValueError(
        f"step {first + step} names row {ids[step, column]} of {self._size} rows: ids are in"
        f" [0, {self._size})"
      )
    skipped = self._board.end - first
    self._board.publish(self._board.end, ids[skipped:].copy())

  def __iter__(self) -> "Feed":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """The batch of `step`, which must be published; waits until it is read.

    Raises:
      ValueError: if the step is not published, or the feed is closed; also one that ``rows.take``
        raised.
      RuntimeError: if a worker process was killed; other errors that a process met, with their
        trace as a note. After an error of a worker the feed is closed.
    """
    if self._iterator is None:
      raise ValueError(f"the feed is closed: there is no batch of step {self._step}")
    if self._step >= self._board.end:
      raise ValueError(f"step {self._step} is not published: it would be waited for in vain")
    try:
      batch = next(self._iterator)
      if "error" in batch:
        raise batch["error"]
    except Exception:
      self.close()  # Grain would go on with the step after it
      raise
    self._board.passed(self._step)
    self._step += 1
    return {name: np.asarray(column) for name, column in batch.items()}  # of Grain's own class

  def close(self) -> None:
    """Ends workers, waiting or not; may be called again."""
    self._board.close()  # first: the iterator waits for threads that wait at the board
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None
    if self._server is not None:
      self._server.close()
      self._server = None

  def __enter__(self) -> "Feed":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


class _Steps:
  """What Grain reads from: item i is the batch of step ``start + i``, {} once that is closed."""

  def __init__(self, rows: Rows, board: Board | Client, start: int):
    self._rows, self._board, self._start = rows, board, start

  def __len__(self) -> int:
    return STEPS - self._start

  def __getitem__(self, index: int) -> dict[str, Any]:
    ids = self._board.wait(self._start + index)
    if ids is None:
      return {}
    try:
      return {**self._rows.take(ids), "ids": ids}
    except Exception as error:
      # Given back, not raised: Grain waits for the readers beside this one before it tells.
      return {"error": _portable(error) if isinstance(self._board, Client) else error}

  def __repr__(self) -> str:
    return f"the steps from {self._start} on of {self._rows}"


def _portable(error: Exception) -> Exception:
  """What can go from one process to another whatever ``error`` consists of."""
  if type(error) is ValueError:
    portable = ValueError(str(error))
  else:
    portable = RuntimeError(f"{type(error).__name__}: {error}")
  portable.add_note("".join(traceback.format_exception(error)))
  return portable


def _init_worker(index: int, count: int) -> None:
  """In a worker process: it ends with the training process, and not before."""
  del index, count
  # Both are sent to the whole group, where the loop means to finish its step and save.
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
