"""Signals that come at an awkward time."""

import signal

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jsel.training.stopping import StopSignals


def two_processes(monkeypatch, others):
  """Every time the processes ask each other: what the other one was told, then what happens."""

  def gather(own):
    told, happens = next(others)
    happens()
    return np.array([own, told])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", gather)


def test_a_signal_while_the_processes_ask_each_other_is_told_the_next_time(monkeypatch):
  nothing, terminate = lambda: None, lambda: signal.raise_signal(signal.SIGTERM)
  two_processes(monkeypatch, iter([(0, terminate), (0, nothing)]))
  with StopSignals() as stop:
    assert not stop.asked()  # as the other process, which could not know of it
    assert not stop.asked(together=False)
    assert stop.asked()
  assert stop.exit_code == 143


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_another_process_was_told_stops_this_one_too(monkeypatch, signum):
  two_processes(monkeypatch, iter([(0, lambda: None), (int(signum), lambda: None)]))
  with StopSignals() as stop:
    assert not stop.asked()
    assert stop.asked()
  assert stop.exit_code == 128 + signum


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(signum):
  before = signal.getsignal(signum)
  with StopSignals() as stop:
    signal.raise_signal(signum)
    assert stop.asked()
    # Raised now, it would end this process: the system's own handler is in place.
    assert signal.getsignal(signum) == signal.SIG_DFL
  assert signal.getsignal(signum) == before
