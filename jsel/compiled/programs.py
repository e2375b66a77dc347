"""The programs that a run of a config calls, made from shapes alone."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jsel.compiled.operations import Operations, operations
from jsel.selectors import Pool
from jsel.sharding import replicated, rows_sharding
from jsel.training import dispatch
from jsel.training.plan import make_plan, make_plan_ids
from jsel.training.setup import Examples, Setup, make_setup, pool_shapes
from jsel.training.state import Keys, TrainState, init_state
from jsel.training.step import Given, make_candidate_step, make_step
from jsel.training.streaming import ON_DEVICE, PUBLISHED_IDS

SELECT, GATHER, EXPOSURE = "jsel_select", "jsel_gather", "jsel_exposure"  # scopes in the step


class Program(NamedTuple):
  """A compiled function of a run."""

  name: str
  function: Any  # of jax.jit
  arguments: tuple[Any, ...]  # of jax.ShapeDtypeStruct with shardings
  steps: float  # training steps for which it is called once


class Run(NamedTuple):
  """What a run keeps on the devices and what it calls."""

  setup: Setup
  state: TrainState  # of shapes, as all of these
  pool: Pool
  given: Given | None  # what a feed brings for a step
  batches_ahead: int  # of those, on the devices before they are needed
  kept_plans: bool  # the next plan is made while the one before it is trained on
  programs: list[Program]
  operations: dict[str, Operations]  # of a step by scope; SELECT has its share of a plan


def make_run(config: ConfigDict, examples: Examples, mesh: Mesh) -> Run:
  """Everything that ``train.py`` would call with ``config`` on such data and such a mesh.

  Args:
    config: as `jsel.training.config.base_config` makes it.
    examples: of the training set.
    mesh: of devices that need not be there.

  Raises:
    ValueError: if the parts of the config do not go together.
  """
  setup = make_setup(config, examples, mesh)
  pool = pool_shapes(examples, config.feed, mesh)
  keys = Keys(*[_place(jax.eval_shape(lambda: jax.random.key(0)), mesh)] * 3)
  rules = config.sharding.rules
  options: dict[str, Any] = {"mesh": mesh, "batch_size": config.batch_size}
  state = init_state(
    keys,
    setup.make_model,
    setup.learner.optimizer,
    setup.selector,
    pool,
    rules=rules,
    **options,
  )
  resident = config.feed == "resident"
  given = None if resident else _given(examples, setup.candidates, config.batch_size, mesh)
  learning = (setup.learner, setup.selector, state)
  ahead = 0 if resident else ON_DEVICE
  if setup.candidates:
    step = make_candidate_step(*learning, rules=rules, **options)
    programs = [Program("step", step, (state, pool, given), 1)]
    return Run(setup, state, pool, given, ahead, False, programs, _operations(programs[0], None, 1))

  stepping = {"refresh_steps": config.selector.refresh_steps, "rules": rules, **options}
  update = Program(
    "update", make_step(*learning, fused=False, **stepping), (state, pool, given), 1
  )
  planning = (state.key, state.step, state.selector, state.plan, pool)
  every = setup.budget.steps_per_plan
  kept = not resident and not setup.selector.feedback
  plan = Program(
    "plan",
    make_plan(setup.selector, state.selector, state.plan, **options, donate=not kept),
    planning,
    every,
  )
  counted = _operations(update, plan, every)
  if not resident:
    rows = min(PUBLISHED_IDS // config.batch_size, -(-setup.selector.most // config.batch_size))
    length = max(rows, 1)
    ids = Program(
      "ids", make_plan_ids(**options, steps=length), (state.key, state.plan, state.step), length
    )
    return Run(setup, state, pool, given, ahead, kept, [update, plan, ids], counted)
  how = dispatch.choose(
    config.dispatch,
    platform=mesh.devices.flat[0].platform,
    convolutional=setup.convolutional,
  )
  if not how.fused:
    return Run(setup, state, pool, given, ahead, kept, [update, plan], counted)
  fused = make_step(*learning, fused=True, steps=how.steps, **stepping)
  programs = [Program("step", fused, (state, pool, None), how.steps)]
  return Run(setup, state, pool, given, ahead, kept, programs, counted)


def _operations(step: Program, plan: Program | None, every: int) -> dict[str, Operations]:
  """Operations of a step by scope, with the share of a plan that it has to bear."""
  trace = lambda program: program.function.trace(*program.arguments).jaxpr
  counted = operations(trace(step), (SELECT, GATHER, EXPOSURE))
  if plan:
    of_plan = operations(trace(plan))[""]
    counted[SELECT] = counted[SELECT].plus(of_plan, 1 / every)
  return counted


def _given(examples: Examples, candidates: int, batch_size: int, mesh: Mesh) -> Given:
  """What a feed brings for a step."""
  rows = candidates or batch_size
  column = lambda dtype, *shape: jax.ShapeDtypeStruct(
    (rows, *shape), dtype, sharding=rows_sharding(mesh)
  )
  ids = column(np.int32) if candidates else None
  return Given(
    column(examples.input_dtype, *examples.input_shape),  # pyrefly: ignore
    column(np.int32),  # pyrefly: ignore
    ids,  # pyrefly: ignore
  )


def _place(shape: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=replicated(mesh))
