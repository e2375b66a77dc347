"""The runner of a feed: what brings the rows of each step and runs it."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jsel.data.feed import Feed
from jsel.data.rows import Rows
from jsel.selectors import Pool
from jsel.sharding import rows_sharding
from jsel.training.dispatch import Dispatcher, choose
from jsel.training.overhead import Overhead
from jsel.training.plan import make_plan
from jsel.training.setup import Setup
from jsel.training.state import TrainState
from jsel.training.step import Given, make_candidate_step, make_pick, make_step
from jsel.training.streaming import CandidateRunner, PlannedRunner


class Runner(Protocol):
  """Runs the steps of a run."""

  warm_up: int  # steps after which all programs have run, so that times can be taken

  def __call__(self, state: TrainState, pool: Pool, step: int, stop: int) -> tuple[Any, Any, int]:
    """Runs on from ``step``, to ``stop`` at the most: the new state, metrics, the step reached."""
    ...

  def measure(self, state: TrainState, pool: Pool) -> Overhead:
    """What selection costs, on a copy of ``state``."""
    ...

  def close(self) -> None:
    """Ends what reads."""
    ...


def make_runner(
  config: ConfigDict,
  setup: Setup,
  state: TrainState,
  rows: Rows,
  *,
  step: int,
  candidates_key: jax.Array,
  mesh: Mesh,
  note: Callable[[str], Any],
) -> Runner:
  """The runner of ``config.feed``.

  Args:
    config: of the run.
    setup: of it.
    state: the state to begin with, fresh or restored.
    rows: the training set, for the feeds that read.
    step: steps done.
    candidates_key: typed key of the order in which candidates come.
    mesh: the mesh.
    note: told what was chosen, a line at a time.
  """
  selector, learner, budget = setup.selector, setup.learner, setup.budget
  name, size, rules = config.selector.name, rows.size, config.sharding.rules
  of_batch: dict[str, Any] = {"mesh": mesh, "batch_size": config.batch_size}
  read = lambda: {
    "feed": Feed(
      rows, start=step, workers=config.workers, threads=config.threads, ahead=config.read_ahead
    ),
    "given": _zeros(rows, setup.candidates or config.batch_size, mesh),
  }
  if setup.candidates:
    program = make_candidate_step(learner, selector, state, rules=rules, **of_batch)
    pick = make_pick(learner, selector, state, rules=rules, **of_batch)
    note(f"{name}: {config.batch_size} of {setup.candidates} candidates a step")
    return CandidateRunner(
      program,
      candidates_key,
      pick=pick,
      **read(),
      mesh=mesh,
      candidates=setup.candidates,
      size=size,
      total_steps=budget.total_steps,
    )

  of_plan = {"refresh_steps": config.selector.refresh_steps, **of_batch}
  build = lambda fused, steps: make_step(
    learner, selector, state, fused=fused, steps=steps, rules=rules, **of_plan
  )
  plan = make_plan(selector, state.selector, state.plan, **of_batch)
  how = choose(
    config.dispatch,
    platform=mesh.devices.flat[0].platform,
    convolutional=setup.convolutional,
    resident=config.feed == "resident",
    refresh_steps=config.selector.refresh_steps,
  )
  note(f"dispatch: {how.reason}")
  note(f"{name}: {budget.plan_rows:,} of {size:,} rows a plan")
  planning = (build, plan, how, selector, state)
  if config.feed == "resident":
    return Dispatcher(*planning, steps_per_plan=budget.steps_per_plan, **of_plan)
  note(
    f"feed: plans are read as soon as they are made, as {name} goes by the losses until then"
    if selector.feedback
    else f"feed: the next plan is made and read before one ends, as {name} goes by no feedback"
  )
  return PlannedRunner(
    *planning,
    plan_ahead=make_plan(selector, state.selector, state.plan, donate=False, **of_batch),
    **read(),
    total_steps=budget.total_steps,
    fit_step=config.selector.fit_step,
    steps_per_plan=budget.steps_per_plan,
    **of_plan,
  )


def _zeros(rows: Rows, count: int, mesh: Mesh) -> Given:
  """Rows of a feed's shapes, for measuring."""

  def make() -> Given:
    zeros = lambda dtype, *shape: jax.numpy.zeros((count, *shape), dtype)
    return Given(zeros(rows.input_dtype, *rows.input_shape), zeros(np.int32), zeros(np.int32))

  return jax.jit(make, out_shardings=rows_sharding(mesh))()
