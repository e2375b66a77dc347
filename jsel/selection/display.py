"""Walks on the screen, with the time that is left, and what they took."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

import rich.console
import rich.progress

from jsel.training.amounts import clock

EVERY = 10.0  # seconds between two lines where there is no terminal


class Display:
  """Told of the walks over a pool: a live bar on a terminal, else a line now and then.

  Args:
    stream: where to; standard error if None.
    now: seconds, for rates.

  Example:
    >>> display = Display(sys.stdout, now=iter([0.0, 0.0, 20.0, 30.0, 30.0]).__next__)
    >>> for done in (0, 50, 100):
    ...   display("matching", done, 100)
    jsel: matching, 50 of 100 rows, 2 a second, eta 0:20
    jsel: matching, 100 of 100 rows in 0:30
    >>> display.seconds
    {'matching': 30.0}
  """

  def __init__(self, stream: TextIO | None = None, *, now: Callable[[], float] = time.monotonic):
    self._stream = sys.stderr if stream is None else stream
    self._now = now
    self.seconds: dict[str, float] = {}  # of walks, by what they do
    self.walks = 0
    self._told = now()
    self._bar: rich.progress.Progress | None = None

  def __call__(self, name: str, done: int, total: int) -> None:
    """Shows that ``done`` of ``total`` rows are walked over; the first call of a walk begins it."""
    now = self._now()
    if self.walks == 0 or self._done:
      self.walks += 1
      self._began, self._start = now, done
      if self._stream.isatty():
        self._bar = rich.progress.Progress(
          rich.progress.TextColumn("{task.description:<16}", markup=False),
          rich.progress.BarColumn(bar_width=24),
          rich.progress.MofNCompleteColumn(),
          rich.progress.TextColumn("eta"),
          rich.progress.TimeRemainingColumn(compact=True),
          console=rich.console.Console(file=self._stream, highlight=False),
        )
        self._task = self._bar.add_task(name, total=total, completed=done)
        self._bar.start()
    self._done = done >= total
    seconds = now - self._began
    if self._bar:
      self._bar.update(self._task, completed=done)
    elif self._done:
      print(f"jsel: {name}, {done:,} of {total:,} rows in {clock(seconds)}", file=self._stream)
    elif now - self._told > EVERY and done > self._start:
      rate = (done - self._start) / seconds
      left = clock((total - done) / rate)
      text = f"jsel: {name}, {done:,} of {total:,} rows, {rate:,.0f} a second, eta {left}"
      print(text, file=self._stream, flush=True)
      self._told = now
    if self._done:
      self.seconds[name] = self.seconds.get(name, 0.0) + seconds
      self.close()

  def close(self) -> None:
    """Leaves the bar as it is."""
    if self._bar:
      self._bar.stop()
      self._bar = None
