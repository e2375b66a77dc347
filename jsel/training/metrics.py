"""What a run reports while it goes: metrics.jsonl, TensorBoard events, a line on the screen."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import rich.console
import rich.progress
from etils import epath
from tensorboardX import SummaryWriter

from jsel.training import outputs
from jsel.training.amounts import clock

_REMOTE_SECONDS = 60.0  # an object store takes a file whole: not at every line


class MetricsWriter:
  """Appends to ``workdir/metrics.jsonl`` and to TensorBoard event files beside it.

  A line is ``{"step": 100, "train/loss": 0.5, ...}``; NaN and infinities are null,
  and are left out of the events.
  A run that resumes at step s drops the lines after s, which it will write again,
  so that a stopped run leaves what an unstopped one does.

  Args:
    workdir: a directory, made if missing.
    process_index: only process 0 writes.
    resume_step: the step that the run goes on from; None starts anew.

  Example:
    >>> import tempfile
    >>> workdir = epath.Path(tempfile.mkdtemp())
    >>> with MetricsWriter(workdir) as writer:
    ...   writer.write(1, {"train/loss": 0.5})
    >>> (workdir / "metrics.jsonl").read_text()
    '{"step": 1, "train/loss": 0.5}\\n'
  """

  def __init__(
    self,
    workdir: os.PathLike[str] | str,
    *,
    process_index: int = 0,
    resume_step: int | None = None,
  ):
    self._path = epath.Path(workdir) / "metrics.jsonl"
    self._events = None
    if process_index != 0:
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if resume_step is None else read_metrics(workdir)
    self._text = "".join(_line(line) for line in lines if line["step"] <= (resume_step or 0))
    outputs.put(self._path, self._text.encode())
    self._remote = outputs.is_remote(self._path)
    self._put_at = time.monotonic()
    self._file = None if self._remote else open(self._path, "a", encoding="utf-8")  # noqa: SIM115
    self._events = SummaryWriter(
      str(workdir),
      purge_step=0 if resume_step is None else resume_step + 1,
      flush_secs=10,
      # Named by the second alone, a quick restart would overwrite the file before.
      filename_suffix=f".{time.time_ns() % 10**9:09}",
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes ``values``, numbers by tag, as of ``step``; the line is in the file on return.

    On an object store the file is put at most once a minute, and by `close`.
    """
    if self._events is None:
      return
    values = {tag: outputs.json_ready(value, tag) for tag, value in values.items()}
    for tag, value in values.items():
      if value is not None:
        self._events.add_scalar(tag, value, step)
    line = _line({"step": int(step), **values})
    if self._file:
      self._file.write(line)
      self._file.flush()
      return
    self._text += line
    if time.monotonic() - self._put_at > _REMOTE_SECONDS:
      outputs.put(self._path, self._text.encode())
      self._put_at = time.monotonic()

  def close(self) -> None:
    """Writes what is not yet written and closes the files."""
    if self._events is None:
      return
    self._events.close()
    self._events = None
    if self._file:
      self._file.close()
    else:
      outputs.put(self._path, self._text.encode())

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def read_metrics(workdir: os.PathLike[str] | str) -> list[dict[str, Any]]:
  """The lines of ``workdir/metrics.jsonl``, none if there is no such file.

  A last line without its end, as a killed process leaves, is no line.

  Raises:
    ValueError: if another line is not JSON, naming it.
  """
  path = epath.Path(workdir) / "metrics.jsonl"
  if not path.exists():
    return []
  whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
  lines = []
  for number, text in enumerate(whole.split("\n") if whole else [], 1):
    try:
      lines.append(json.loads(text))
      lines[-1]["step"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{path}:{number} is no line of metrics: {text[:80]!r}") from error
  return lines


def _line(values: dict[str, Any]) -> str:
  return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def progress_line(
  step: int, total: int, *, eta_seconds: float | None, values: Mapping[str, Any]
) -> str:
  """One line of what a person wants to know; what ``values`` lacks is left out.

  >>> progress_line(1200, 8438, eta_seconds=52, values={
  ...   "examples_per_second": 13412.3, "train/loss": 0.27131, "train/accuracy": 0.909,
  ...   "selection_overhead_pct": 0.41})
  'step  1200/8438  14%  eta 0:52  13,412 ex/s  loss 0.2713  acc 90.9 %  select 0.4 %'
  """
  width = len(str(total))
  parts = [f"step  {step:>{width}}/{total} {100 * step // max(total, 1):>3}%"]
  parts += [f"eta {clock(eta_seconds)}"]
  for tag, form in (
    ("examples_per_second", lambda value: f"{value:,.0f} ex/s"),
    ("train/loss", lambda value: f"loss {value:.4f}"),
    ("train/accuracy", lambda value: f"acc {100 * value:.1f} %"),
    ("selection_overhead_pct", lambda value: f"select {value:.1f} %"),
  ):
    if values.get(tag) is not None:
      parts.append(form(float(values[tag])))
  return "  ".join(parts)


class Progress:
  """The progress of a run on the screen: a live bar on a terminal, else a line a call.

  Args:
    total_steps: the step that the run ends at.
    start_step: the step that it goes on from; the ETA counts from there.
    process_index: only process 0 speaks.
    stream: where to; standard output if None.
    clock: seconds, for the ETA.

  Example:
    >>> with Progress(10, clock=iter([0.0, 4.0]).__next__) as progress:
    ...   progress.update(4, {"train/loss": 0.5})
    step   4/10  40%  eta 0:06  loss 0.5000
  """

  def __init__(
    self,
    total_steps: int,
    *,
    start_step: int = 0,
    process_index: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._stream = sys.stdout if stream is None else stream
    self._total, self._start, self._clock = total_steps, start_step, clock
    self._silent = process_index != 0
    self._began = clock()
    self._bar = None
    if not self._silent and self._stream.isatty():
      self._bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TextColumn("{task.description}", markup=False),
        console=rich.console.Console(file=self._stream, highlight=False),
      )
      self._task = self._bar.add_task("", total=total_steps, completed=start_step)
      self._bar.start()

  def update(self, step: int, values: Mapping[str, Any]) -> None:
    """Shows ``step`` and what `progress_line` takes of ``values``."""
    if self._silent:
      return
    done = step - self._start
    elapsed = self._clock() - self._began
    eta = elapsed / done * (self._total - step) if done > 0 else None
    line = progress_line(step, self._total, eta_seconds=eta, values=values)
    if self._bar:
      self._bar.update(self._task, completed=step, description=line)
    else:
      print(line, file=self._stream, flush=True)

  def note(self, text: str) -> None:
    """Prints ``text`` on a line of its own, above the bar where there is one."""
    if self._bar:
      self._bar.console.print(text, markup=False)
    elif not self._silent:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the last line on the screen."""
    if self._bar:
      self._bar.stop()
      self._bar = None

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
