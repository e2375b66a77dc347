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

  select_seconds: float  # of planning
  step_seconds: float  # of a step on rows that are planned
  share: float  # select / (select + steps between plans * step)


def measure(
  plan: Callable[..., Any],
  update: Callable[..., Any],
  state: TrainState,
  pool: Pool,
  *,
  steps_between_plans: int,
  repetitions: int = 15,
) -> Overhead:
  """Alternates planning and a step on a copy of ``state``.

  Waiting for each makes this unfit for the loop itself; its time is not the
  run's.

  Args:
    plan: of `jsel.training.plan.make_plan`.
    update: ``(state, pool) -> (state, metrics)``, a step without a plan inside.
    state: any state of the run; left as it is.
    pool: the pool.
    steps_between_plans: steps that a plan lasts.
    repetitions: of both; one more goes before, which may compile.
  """
  state = jax.tree.map(lambda leaf: leaf.copy(), state)
  seconds = np.zeros((repetitions + 1, 2))
  for repetition in range(repetitions + 1):
    begin = time.perf_counter()
    planned = plan(state.key, state.step, state.selector, state.plan, pool)
    jax.block_until_ready(planned)
    state = state._replace(selector=planned[0], plan=planned[1])
    middle = time.perf_counter()
    state, metrics = update(state, pool)
    jax.block_until_ready((state, metrics))
    seconds[repetition] = middle - begin, time.perf_counter() - middle
  select, step = (float(x) for x in np.median(seconds[1:], axis=0))
  return Overhead(select, step, select / (select + steps_between_plans * step))
