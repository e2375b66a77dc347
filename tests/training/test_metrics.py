"""The metrics of a run: every step once, stopped or not; the line a person reads."""

import io
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jsel.training.metrics import MetricsWriter, Progress, progress_line, read_metrics


def read_events(workdir):
  """(step, tag, value) of the scalars, and the purge steps, in the order that TensorBoard reads."""
  scalars, purges = [], []
  for path in sorted(workdir.glob("events.out.tfevents*")):
    content = path.read_bytes()
    while content:
      size = int.from_bytes(content[:8], "little")  # then 4 bytes of CRC, the event, 4 of CRC
      event = Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
      if event.session_log.status:
        purges.append(event.step)
  return scalars, purges


def test_a_line_is_in_the_file_when_write_returns(tmp_path):
  with MetricsWriter(tmp_path / "a b ü") as writer:
    writer.write(5, {"train/loss": jnp.float32(0.5), "eval/accuracy": np.float32(0.25), "n": 3})
    text = (tmp_path / "a b ü" / "metrics.jsonl").read_text()
    assert text == '{"step": 5, "train/loss": 0.5, "eval/accuracy": 0.25, "n": 3}\n'


def test_values_come_back(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for step in (1, 2):
      writer.write(step, {"train/loss": 1 / step, "half": jnp.bfloat16(1.5)})
  assert read_metrics(tmp_path) == [
    {"step": step, "train/loss": 1 / step, "half": 1.5} for step in (1, 2)
  ]
  assert read_events(tmp_path)[0] == [
    (step, tag, value)
    for step in (1, 2)
    for tag, value in (("train/loss", 1 / step), ("half", 1.5))
  ]


def test_what_is_not_finite_is_null(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write(1, {"a": float("nan"), "b": jnp.float32(jnp.inf), "c": -np.inf, "d": None, "e": 1})
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  refuse = lambda name: pytest.fail(f"{name} is no JSON")
  assert json.loads(line, parse_constant=refuse) == {
    "step": 1, "a": None, "b": None, "c": None, "d": None, "e": 1
  }  # fmt: skip
  assert read_events(tmp_path)[0] == [(1, "e", 1.0)]


def test_a_resumed_run_has_every_step_once(tmp_path):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  values = lambda step: {"train/loss": 1 / step}
  with MetricsWriter(whole) as writer:
    for step in range(1, 11):
      writer.write(step, values(step))
  with MetricsWriter(stopped) as writer:  # ran to 7, and its last checkpoint is of 4
    for step in range(1, 8):
      writer.write(step, values(step))
  with (stopped / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "train/lo')  # killed while it wrote
  with MetricsWriter(stopped, resume_step=4) as writer:
    for step in range(5, 11):
      writer.write(step, values(step))
  text = (stopped / "metrics.jsonl").read_bytes()
  assert text == (whole / "metrics.jsonl").read_bytes()
  scalars, purges = read_events(stopped)
  assert purges == [0, 5]  # TensorBoard forgets what came before from step 5 on
  assert [step for step, _, _ in scalars] == [*range(1, 8), *range(5, 11)]


def test_a_new_run_starts_a_new_file(tmp_path):
  for loss in (1.0, 2.0):
    with MetricsWriter(tmp_path) as writer:
      writer.write(1, {"loss": loss})
  assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_resuming_where_nothing_was_written_is_good(tmp_path):
  with MetricsWriter(tmp_path, resume_step=4) as writer:
    writer.write(5, {"loss": 1})
  assert read_metrics(tmp_path) == [{"step": 5, "loss": 1}]


def test_a_failing_trim_leaves_the_old_lines(tmp_path, monkeypatch):
  with MetricsWriter(tmp_path) as writer:
    for step in (1, 2):
      writer.write(step, {"loss": 1})
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def full(*_):
    raise OSError("no space left")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(OSError, match="no space left"):
    MetricsWriter(tmp_path, resume_step=1)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_only_process_0_writes(tmp_path):
  with MetricsWriter(tmp_path / "run", process_index=1) as writer:
    writer.write(1, {"loss": 1})
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', ""])
def test_a_damaged_line_is_named(tmp_path, line):
  (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is no line of metrics"):
    read_metrics(tmp_path)


def test_no_file_is_no_lines(tmp_path):
  assert read_metrics(tmp_path) == []


def test_what_is_not_a_number_is_refused(tmp_path):
  with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="loss is a object"):
    writer.write(1, {"loss": object()})


VALUES = {
  "examples_per_second": jnp.float32(13412.3),
  "train/loss": 0.27131,
  "train/accuracy": 0.909,
  "selection_overhead_pct": 0.41,
}


def test_the_line_says_what_is_known():
  assert progress_line(1200, 8438, eta_seconds=52.4, values=VALUES) == (
    "step  1200/8438  14%  eta 0:52  13,412 ex/s  loss 0.2713  acc 90.9 %  select 0.4 %"
  )
  assert progress_line(0, 10, eta_seconds=None, values={}) == "step   0/10   0%  eta -:--"
  assert progress_line(10, 10, eta_seconds=3723, values={"train/loss": float("nan")}) == (
    "step  10/10 100%  eta 1:02:03  loss nan"
  )


def test_a_pipe_gets_a_line_a_call(capsys):
  clock = iter([0.0, 30.0, 60.0])
  with Progress(100, start_step=40, clock=clock.__next__) as progress:
    progress.note("resumed at step 40")
    progress.update(60, {"train/loss": 1.0})
    progress.update(80, {})
  assert capsys.readouterr().out.splitlines() == [
    "resumed at step 40",
    "step   60/100  60%  eta 1:00  loss 1.0000",  # 20 steps in 30 s, 40 to go
    "step   80/100  80%  eta 0:30",
  ]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_a_live_line(monkeypatch):
  monkeypatch.setenv("TERM", "xterm-256color")
  monkeypatch.setenv("COLUMNS", "160")
  stream = Terminal()
  with Progress(100, stream=stream) as progress:
    for step in (10, 20):
      progress.update(step, VALUES)
    progress.note("[eval] 93 %")
  text = stream.getvalue()
  assert "\x1b[2K" in text  # the line is drawn again, not another one
  assert "20/100" in text
  assert "loss 0.2713" in text
  assert "[eval] 93 %" in text


def test_only_process_0_speaks(capsys):
  with Progress(100, process_index=1) as progress:
    progress.note("hello")
    progress.update(10, VALUES)
  assert capsys.readouterr().out == ""
