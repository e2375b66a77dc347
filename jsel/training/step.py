"""The fused step: plan when one is due, gather, forward, backward, update, and write back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jsel.kernels import gather, scatter
from jsel.selectors import Batch, Columns, Pool, Selector
from jsel.sharding import DATA_AXIS, replicated
from jsel.training.state import (
  ActivePlan,
  Exposure,
  TrainState,
  next_plan,
  rows_left,
  state_sharding,
  take_rows,
)

ROWS, SAME = P(DATA_AXIS), P()
COLUMNS = Columns(ROWS, SAME)  # type: ignore


def make_step(
  graphdef: nnx.GraphDef,
  loss_function: Callable[[Any, jax.Array], dict[str, jax.Array]],
  preprocess: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
  optimizer: optax.GradientTransformation,
  selector: Selector,
  state: TrainState,
  *,
  mesh: Mesh,
  batch_size: int,
  refresh_steps: int,
  plan: bool | None,
  steps: int = 1,
) -> Callable[[TrainState, Pool, dict[str, jax.Array] | None], tuple[TrainState, Any]]:
  """Compiles ``step(state, pool, batch_or_none) -> (state, metrics)``; ``state`` is donated.

  Args:
    graphdef: the model.
    loss_function: ``(outputs, labels) -> {"loss": [b], "correct": [b], ...}``.
    preprocess: ``(key, inputs, ids) -> x``: scaling and augmentation.
    optimizer: an Optax transformation.
    selector: the selector, built with the mesh's axis name.
    state: any state of the run, for its structure.
    mesh: the mesh.
    batch_size: rows in a step, over all devices.
    refresh_steps: steps between plans; 0: when the plan is spent.
    plan: None for the single program that plans by ``lax.cond`` when it is
      due; True and False for the two that always and never plan, between which
      the host chooses (work inside a cond is serial on CPU).
    steps: steps in one dispatch, as a ``lax.scan``.

  Returns:
    The compiled step. With a batch given (``inputs`` and ``labels`` of the
    planned rows, from a feed that does not hold the pool) nothing is gathered.
    ``metrics`` are scalars, or ``[steps]`` if there are several.
  """

  def plan_if_due(state: TrainState, pool: Pool) -> TrainState:
    if plan is False:
      return state
    select = lambda operand: plan_rows(selector, mesh, batch_size, *operand)
    operand = (state, Pool({n: pool.rows[n] for n in selector.needs if n in pool.rows}, pool.valid))
    if plan is True:
      changed, active = select(operand)
    else:
      left = rows_left(state.plan, state.step, batch_size)
      due = left < batch_size
      if refresh_steps:
        due |= state.step - state.plan.start >= refresh_steps
      changed_shapes, _ = jax.eval_shape(select, operand)
      keep = lambda operand: (
        Columns(
          {name: operand[0].selector.rows[name] for name in changed_shapes.rows},
          {name: operand[0].selector.shared[name] for name in changed_shapes.shared},
        ),
        operand[0].plan,
      )
      changed, active = jax.lax.cond(due, select, keep, operand)
    return state._replace(selector=merge(state.selector, changed), plan=active)

  def one_step(state: TrainState, pool: Pool, given: dict[str, jax.Array] | None):
    state = plan_if_due(state, pool)
    key = jax.random.fold_in(state.key, state.step)
    first = (state.step - state.plan.start) * batch_size
    batch = take_rows(state.plan, state.key, first + jnp.arange(batch_size, dtype=jnp.int32))
    rows = gather_rows(pool, batch.index, mesh) if given is None else given
    x = preprocess(jax.random.fold_in(key, 1), rows["inputs"], batch.index)
    everywhere = lambda tree: jax.lax.with_sharding_constraint(tree, replicated(mesh))

    def mean_loss(params):
      model = nnx.merge(graphdef, params, state.variables, copy=True)
      outputs = model(x, valid=batch.valid, train=True)
      _, _, variables = nnx.split(model, nnx.Param, ...)
      feedback = loss_function(outputs, rows["labels"])
      weighted = jnp.where(batch.valid, batch.weight * feedback["loss"], 0)
      return weighted.sum() / batch_size, (variables, feedback)

    gradients, (variables, feedback) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    told = everywhere({name: feedback[name] for name in {*selector.feedback, "loss"}})
    selector_state = state.selector
    if selector.feedback:
      changed = tell(selector, mesh, state.selector, batch, told)
      selector_state = merge(state.selector, changed)
    metrics = {
      "loss": told["loss"].mean(),
      "accuracy": feedback["correct"].mean(),
      "grad_norm": optax.tree.norm(gradients),
    }
    new = state._replace(
      step=state.step + 1,
      params=params,
      variables=variables,
      opt_state=opt_state,
      selector=selector_state,
      exposure=expose(state.exposure, batch, told["loss"], state.step, mesh),
    )
    return new, metrics

  def many_steps(state: TrainState, pool: Pool, given: dict[str, jax.Array] | None):
    return jax.lax.scan(lambda state, _: one_step(state, pool, given), state, length=steps)

  return jax.jit(
    one_step if steps == 1 else many_steps,
    donate_argnums=0,
    out_shardings=(state_sharding(state, mesh), replicated(mesh)),
  )


def merge(state: Columns, changed: Columns) -> Columns:
  """``state`` with the columns of ``changed`` in place of its own."""
  return Columns({**state.rows, **changed.rows}, {**state.shared, **changed.shared})


def changes(old: Columns, new: Columns) -> Columns:
  """The columns that a selector replaced: what it passes on untouched need not leave a cond."""
  differ = lambda old, new: {name: new[name] for name in new if new[name] is not old[name]}
  return Columns(differ(old.rows, new.rows), differ(old.shared, new.shared))


def plan_rows(
  selector: Selector, mesh: Mesh, batch_size: int, state: TrainState, pool: Pool
) -> tuple[Columns, ActivePlan]:
  """Asks the selector for its next plan: the columns that it changed, and the plan."""

  def select(key, columns, pool, step):
    new, plan, _ = selector.select(key, columns, pool, None, step)
    return changes(columns, new), plan

  key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)
  changed, plan = jax.shard_map(
    select, mesh=mesh, in_specs=(SAME, COLUMNS, ROWS, SAME), out_specs=(COLUMNS, SAME)
  )(key, state.selector, pool, state.step)
  return changed, next_plan(state.plan, plan, state.key, state.step, batch_size)


def tell(
  selector: Selector,
  mesh: Mesh,
  columns: Columns,
  batch: Batch,
  feedback: dict[str, jax.Array],
) -> Columns:
  """Hands a batch's feedback to the selector: the columns that it changed."""
  wanted = {name: feedback[name] for name in selector.feedback}
  return jax.shard_map(
    lambda columns, batch, wanted: changes(columns, selector.update(columns, batch, wanted)),
    mesh=mesh,
    in_specs=(COLUMNS, SAME, SAME),
    out_specs=COLUMNS,
  )(columns, batch, wanted)


def gather_rows(pool: Pool, index: jax.Array, mesh: Mesh) -> dict[str, jax.Array]:
  """The inputs and labels of the rows ``index``, split over the data axis."""
  fetch = lambda columns, index: {
    name: gather.gather(column, index, split=True, axis_name=DATA_AXIS)
    for name, column in columns.items()
  }
  columns = {name: pool.rows[name] for name in ("inputs", "labels")}
  return jax.shard_map(fetch, mesh=mesh, in_specs=(ROWS, SAME), out_specs=ROWS)(columns, index)


def expose(
  exposure: Exposure, batch: Batch, loss: jax.Array, step: jax.Array, mesh: Mesh
) -> Exposure:
  """Notes that ``batch`` was trained on at ``step``."""

  def note(exposure, batch, loss, step):
    options = {"valid": batch.valid, "axis_name": DATA_AXIS}
    seen = gather.gather(exposure.first_step, batch.index, axis_name=DATA_AXIS)
    first = jnp.where(seen < 0, step, seen)
    return Exposure(
      scatter.scatter_add(exposure.times_selected, batch.index, 1, **options),
      scatter.scatter(exposure.first_step, batch.index, first, **options),
      scatter.scatter(exposure.last_step, batch.index, step, **options),
      scatter.scatter(exposure.last_loss, batch.index, loss, **options),
    )

  return jax.shard_map(note, mesh=mesh, in_specs=(ROWS, SAME, SAME, SAME), out_specs=ROWS)(
    exposure, batch, loss, step
  )
