"""SIGTERM and SIGINT: the loop finishes its step, saves and ends; a second one ends at once."""

import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopSignals:
  """Notes which signal asked the run to stop, from the ``with`` on.

  >>> with StopSignals() as stop:
  ...   signal.raise_signal(signal.SIGTERM)
  ...   stop.asked(), stop.exit_code
  (True, 143)
  """

  def __init__(self):
    self._signum = 0

  def __enter__(self) -> "StopSignals":
    self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *error: object) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)

  def asked(self, *, together: bool = True) -> bool:
    """Whether to stop here.

    Args:
      together: with several processes, whether all of them ask now, after the
        same step: they then stop together if one was told to. Else they go on.
    """
    if jax.process_count() > 1:
      if not together:
        return False
      with jax.transfer_guard("allow"):
        told = multihost_utils.process_allgather(np.int32(self._signum))
      agreed = int(np.max(told))
      if not agreed:
        return False  # one that came while the others were asked is told them the next time
      self._signum = agreed
    return self._signum != 0

  @property
  def exit_code(self) -> int:
    """That of a process ended by the signal."""
    return 128 + self._signum

  def _note(self, signum: int, frame: object) -> None:
    del frame
    self._signum = signum
    signal.signal(signum, signal.SIG_DFL)
