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
from jsel.training.fit import make_fit
from jsel.training.plan import make_plan, make_plan_ids
from jsel.training.setup import Examples, Setup, feature_shapes, make_setup, pool_shapes
from jsel.training.state import Keys, TrainState, init_state
from jsel.training.step import Given, make_candidate_step, make_step
from jsel.training.streaming import ON_DEVICE, PUBLISHED_IDS

SELECT, GATHER, EXPOSURE = "jsel_select", "jsel_gather", "jsel_exposure"  # scopes in the step
# What a model would choose by the machine that it finds itself on, which is not the one meant.
ON_ACCELERATORS = {"cnn": {"products": False}}


class Program(NamedTuple):
  """A compiled function of a run."""

  name: str
  function: Any  # of jax.jit
  arguments: tuple[Any, ...]  # of jax.ShapeDtypeStruct with shardings
  steps: float  # training steps for which it is called once; 0: once in a run


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


def make_run(config: ConfigDict, examples: Examples, mesh: Mesh, *, fit: bool = False) -> Run:
  """Everything that ``train.py`` would call with ``config`` on such data and such a mesh.

  Args:
    config: as `jsel.training.config.base_config` makes it.
    examples: of the training set.
    mesh: of accelerators that need not be there.
    fit: also the fit of the selector, if it has one.

  Raises:
    ValueError: if the parts of the config do not go together.
  """
  config = config.copy_and_resolve_references()
  for option, value in ON_ACCELERATORS.get(config.model.name, {}).items():
    if config.model[config.model.name][option] is None:
      config.model[config.model.name][option] = value
  setup = make_setup(config, examples, mesh)
  pool = pool_shapes(examples, config.feed, mesh)
  key = _shape(mesh, jax.eval_shape(lambda: jax.random.key(0)))
  of_batch: dict[str, Any] = {"mesh": mesh, "batch_size": config.batch_size}
  state = init_state(
    Keys(key, key, key),
    setup.make_model,
    setup.learner.optimizer,
    setup.selector,
    pool,
    rules=config.sharding.rules,
    **of_batch,
  )
  resident = config.feed == "resident"
  given = None if resident else _given(examples, setup.candidates, config.batch_size, mesh)
  kept_plans = not (resident or setup.candidates or setup.selector.feedback)
  programs, counted = _programs(config, setup, state, pool, given, kept_plans, mesh)
  if fit and setup.selector.fit:
    features = feature_shapes(config, setup.make_model, examples, mesh)
    arguments = (key, features, pool._replace(rows={}))
    programs.append(Program("fit", make_fit(setup.selector, mesh), arguments, 0))
  ahead = 0 if resident else ON_DEVICE
  return Run(setup, state, pool, given, ahead, kept_plans, programs, counted)


def _programs(
  config: ConfigDict,
  setup: Setup,
  state: TrainState,
  pool: Pool,
  given: Given | None,
  kept_plans: bool,
  mesh: Mesh,
) -> tuple[list[Program], dict[str, Operations]]:
  """What is called again and again, and the operations of a step with its share of a plan."""
  of_batch: dict[str, Any] = {"mesh": mesh, "batch_size": config.batch_size}
  rules, refresh_steps = config.sharding.rules, config.selector.refresh_steps
  selector, every = setup.selector, setup.budget.steps_per_plan
  learning = (setup.learner, selector, state)
  if setup.candidates:
    function = make_candidate_step(*learning, rules=rules, **of_batch)
    step = Program("step", function, (state, pool, given), 1)
    return [step], _operations(step, None, 1)
  build = lambda fused, steps: make_step(
    *learning, fused=fused, steps=steps, refresh_steps=refresh_steps, rules=rules, **of_batch
  )
  update = Program("update", build(False, 1), (state, pool, given), 1)
  planning = make_plan(selector, state.selector, state.plan, donate=not kept_plans, **of_batch)
  plan = Program("plan", planning, (state.key, state.step, state.selector, state.plan, pool), every)
  counted = _operations(update, plan, every)
  if given:
    steps = max(min(PUBLISHED_IDS // config.batch_size, -(-selector.most // config.batch_size)), 1)
    ids = make_plan_ids(steps=steps, **of_batch)
    to_host = Program("ids", ids, (state.key, state.plan, state.step), steps)
    return [update, plan, to_host], counted
  how = dispatch.choose(
    config.dispatch,
    platform=mesh.devices.flat[0].platform,
    convolutional=setup.convolutional,
    resident=True,
    refresh_steps=refresh_steps,
  )
  if not how.fused:
    return [update, plan], counted
  return [Program("step", build(True, how.steps), (state, pool, None), how.steps)], counted


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
  inputs, labels = column(examples.input_dtype, *examples.input_shape), column(np.int32)
  return Given(inputs, labels, column(np.int32) if candidates else None)  # pyrefly: ignore


def _shape(mesh: Mesh, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """``shape`` on every device."""
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=replicated(mesh))
