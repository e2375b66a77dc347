"""What selection costs: its share of the time between two plans."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jsel.selectors import Pool
from jsel.training.state import TrainState


class Overhead(NamedTuple):
  """Medians over the repetitions."""

  select_seconds: float  # a step with a plan less a step without
  step_seconds: float  # a step without
  share: float  # select / (select + steps between plans * step)


def measure(
  plan_and_update: Callable[..., Any],
  update: Callable[..., Any],
  state: TrainState,
  pool: Pool,
  *,
  steps_between_plans: int,
  repetitions: int = 15,
) -> Overhead:
  """Alternates the two specialisations of the step on a copy of ``state``.

  Waiting for each makes this unfit for the loop itself; its time is not the
  run's. A difference within the noise may come out negative and is given as it
  is.
  """
  state = jax.tree.map(lambda leaf: leaf.copy(), state)
  seconds = np.zeros((repetitions + 1, 2))
  for repetition in range(repetitions + 1):
    for which, program in enumerate((plan_and_update, update)):
      begin = time.perf_counter()
      state, metrics = program(state, pool, None)
      jax.block_until_ready((state, metrics))
      seconds[repetition, which] = time.perf_counter() - begin
  seconds = seconds[1:]  # the first may compile
  select = float(np.median(seconds[:, 0] - seconds[:, 1]))
  step = float(np.median(seconds[:, 1]))
  return Overhead(select, step, select / (select + steps_between_plans * step))
