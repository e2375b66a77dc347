"""What selection costs: its share of the time between two plans."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jsel.training.state import TrainState


class Overhead(NamedTuple):
  """Medians over the repetitions."""

  select_seconds: float  # of planning, or of scoring and picking candidates
  step_seconds: float  # of a step on rows that are chosen
  share: float  # select / (select + steps between plans * step)


def measure(
  select: Callable[[TrainState], TrainState],
  step: Callable[[TrainState], tuple[TrainState, Any]],
  state: TrainState,
  *,
  steps_between_plans: int,
  selects_inside: bool = False,
  repetitions: int = 15,
  enough_seconds: float = 5.0,
) -> Overhead:
  """Alternates selecting and a step on a copy of ``state``.

  Waiting for each makes this unfit for the loop itself; its time is not the
  run's.

  Args:
    select: ``state -> state``, whose arrays depend on what is to be timed.
    step: ``state -> (state, metrics)``; both may donate their argument.
    state: any state of the run; left as it is.
    steps_between_plans: steps that a selection lasts.
    selects_inside: whether ``step`` selects itself too, which is then taken off.
    repetitions: of both, at most; one more goes before, which may compile.
    enough_seconds: no more than three repetitions where they take as long as this.
  """
  state = jax.tree.map(lambda leaf: leaf.copy(), state)
  seconds = np.zeros((repetitions + 1, 2))
  for repetition in range(repetitions + 1):
    begin = time.perf_counter()
    state = jax.block_until_ready(select(state))
    middle = time.perf_counter()
    state, metrics = step(state)
    jax.block_until_ready((state, metrics))
    seconds[repetition] = middle - begin, time.perf_counter() - middle
    if repetition >= 3 and seconds[1 : repetition + 1].sum() >= enough_seconds:
      break
  selecting, stepping = (float(x) for x in np.median(seconds[1 : repetition + 1], axis=0))
  if selects_inside:
    stepping -= selecting
  return Overhead(selecting, stepping, selecting / (selecting + steps_between_plans * stepping))
