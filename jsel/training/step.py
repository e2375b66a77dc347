"""The fused step: plan when one is due, gather, forward, backward, update, and write back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jsel.kernels import gather, scatter
from jsel.selectors import Batch, Candidates, Columns, Pool, Selector
from jsel.sharding import Rules, replicated, row_axes
from jsel.training.gradients import Learner
from jsel.training.plan import (
  changes,
  merge,
  needed_columns,
  plan_rows,
  plan_specs,
  rows_left,
  take_rows,
)
from jsel.training.state import Exposure, TrainState, state_sharding


class Given(NamedTuple):
  """Rows that a feed brings, where the pool is not in device memory."""

  inputs: jax.Array  # [b, ...], split over the devices
  labels: jax.Array  # [b] int32, split likewise
  ids: jax.Array | None = None  # [b] int32 global row ids, split likewise; of candidates only


def make_step(
  learner: Learner,
  selector: Selector,
  state: TrainState,
  *,
  mesh: Mesh,
  batch_size: int,
  refresh_steps: int,
  fused: bool,
  steps: int = 1,
  rules: Rules = (),
) -> Callable[[TrainState, Pool, Given | None], tuple[TrainState, Any]]:
  """Compiles ``step(state, pool, given) -> (state, metrics)``; ``state`` is donated.

  Args:
    learner: the model, its loss, its optimizer.
    selector: the selector, built with the mesh's row axes.
    state: any state of the run, for its structure.
    mesh: the mesh.
    batch_size: rows in a step, over all devices.
    refresh_steps: steps between plans; 0: when the plan is spent.
    fused: plan inside, by ``lax.cond`` when it is due (without one if that is at
      every step); else the caller plans before, by `jsel.training.plan.make_plan`
      (work inside a cond is serial on CPU, and a feed has to know the plan before
      the step).
    steps: steps in one dispatch, as a ``lax.scan``.
    rules: of `jsel.sharding.parameter_sharding`.

  Returns:
    The compiled step. With ``given`` (the planned rows, from a feed) nothing is
    gathered. ``metrics`` are scalars, or ``[steps]`` if there are several; so are
    the arrays of ``given``, which then begin with an axis of steps.
  """

  def plan_if_due(state: TrainState, pool: Pool) -> TrainState:
    select = lambda key, step, columns, active, pool: plan_rows(
      selector, mesh, batch_size, key, step, columns, active, pool
    )
    needed = needed_columns(selector, pool)
    operands = (state.key, state.step, state.selector, state.plan, needed)
    if refresh_steps == 1:  # always due: no cond, whose work is serial on CPU
      changed, active = select(*operands)
      return state._replace(selector=merge(state.selector, changed), plan=active)
    due = rows_left(state.plan, state.step, batch_size) < batch_size
    if refresh_steps:
      due |= state.step - state.plan.start >= refresh_steps
    shapes, _ = jax.eval_shape(select, *operands)
    keep = lambda key, step, columns, active, pool: (
      Columns(
        {name: columns.rows[name] for name in shapes.rows},
        {name: columns.shared[name] for name in shapes.shared},
      ),
      active,
    )
    changed, active = jax.lax.cond(due, select, keep, *operands)
    return state._replace(selector=merge(state.selector, changed), plan=active)

  def one_step(state: TrainState, pool: Pool, given: Given | None):
    if fused:
      state = plan_if_due(state, pool)
    batch = batch_of(state, mesh, batch_size)
    rows = gather_rows(pool, batch.index, mesh) if given is None else given
    learnt = weighed(pool, batch, mesh)
    state, told, metrics = learner(state, rows.inputs, rows.labels, learnt)
    return written_back(selector, mesh, state, batch, told), metrics

  def many_steps(state: TrainState, pool: Pool, given: Given | None):
    return jax.lax.scan(lambda state, given: one_step(state, pool, given), state, given, steps)

  return jax.jit(
    one_step if steps == 1 else many_steps,
    donate_argnums=0,
    out_shardings=(state_sharding(state, mesh, rules), replicated(mesh)),
  )


def make_candidate_step(
  learner: Learner,
  selector: Selector,
  state: TrainState,
  *,
  mesh: Mesh,
  batch_size: int,
  rules: Rules = (),
) -> Callable[[TrainState, Pool, Given], tuple[TrainState, Any]]:
  """Compiles ``step(state, pool, candidates) -> (state, metrics)``: picks, and trains on the picks.

  Args: as of `make_step`; the feed brings more rows than a batch.
  """

  def step(state: TrainState, pool: Pool, given: Given):
    state, batch, position = pick_batch(learner, selector, mesh, batch_size, state, pool, given)
    columns = {"inputs": given.inputs, "labels": given.labels}
    taken = gather_rows(Pool(columns, pool.valid), position, mesh)
    learnt = weighed(pool, batch, mesh)
    state, told, metrics = learner(state, taken.inputs, taken.labels, learnt)
    return written_back(selector, mesh, state, batch, told), metrics

  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(state_sharding(state, mesh, rules), replicated(mesh)),
  )


def make_pick(
  learner: Learner,
  selector: Selector,
  state: TrainState,
  *,
  mesh: Mesh,
  batch_size: int,
  rules: Rules = (),
) -> Callable[[TrainState, Pool, Given], TrainState]:
  """Compiles the selecting half of `make_candidate_step`, to measure it; the state is donated."""

  def pick(state: TrainState, pool: Pool, given: Given) -> TrainState:
    state, batch, _ = pick_batch(learner, selector, mesh, batch_size, state, pool, given)
    # The picks have to be worked out, so something that is kept depends on them.
    return state._replace(step=state.step + 0 * batch.index[0])

  return jax.jit(pick, donate_argnums=0, out_shardings=state_sharding(state, mesh, rules))


def pick_batch(
  learner: Learner,
  selector: Selector,
  mesh: Mesh,
  batch_size: int,
  state: TrainState,
  pool: Pool,
  given: Given,
) -> tuple[TrainState, Batch, jax.Array]:
  """Scores candidates, if the selector asks for feedback, and lets it pick.

  The model scores as it is, in evaluation mode, and nothing is differentiated.

  Returns:
    The state with the selector's new columns, the batch, and its rows' places
    among the candidates, ``[b]`` int32.
  """
  pick_rows = selector.pick
  assert pick_rows is not None
  assert given.ids is not None
  rows, same = P(row_axes(mesh)), P()
  specs = Columns(rows, same)  # pyrefly: ignore

  def pick(key, columns, pool, candidates, step):
    new, picks = pick_rows(key, columns, pool, candidates, batch_size, step)
    return changes(columns, new), picks

  with jax.named_scope("jsel_select"):
    ids = jax.lax.with_sharding_constraint(given.ids, replicated(mesh))
    outputs = {}
    if selector.feedback:
      said = learner.score(state.params, state.variables, given.inputs, given.labels)
      outputs = {name: said[name] for name in selector.feedback}
      outputs = jax.lax.with_sharding_constraint(outputs, replicated(mesh))
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)
    changed, picks = jax.shard_map(
      pick, mesh=mesh, in_specs=(same, specs, rows, same, same), out_specs=(specs, same)
    )(key, state.selector, needed_columns(selector, pool), Candidates(ids, outputs), state.step)
  batch = Batch(ids[picks.position], picks.weight, jnp.ones(batch_size, bool))
  return state._replace(selector=merge(state.selector, changed)), batch, picks.position


def batch_of(state: TrainState, mesh: Mesh, batch_size: int) -> Batch:
  """The rows of the step that is due, the same on every device."""
  axis_name = row_axes(mesh)
  first = (state.step - state.plan.start) * batch_size
  position = first + jnp.arange(batch_size, dtype=jnp.int32)
  with jax.named_scope("jsel_select"):
    return jax.shard_map(
      lambda active, key, position: take_rows(active, key, position, axis_name),
      mesh=mesh,
      in_specs=(plan_specs(state.plan, mesh), P(), P()),  # pyrefly: ignore
      out_specs=P(),
    )(state.plan, state.key, position)


def gather_rows(pool: Pool, index: jax.Array, mesh: Mesh) -> Given:
  """The inputs and labels of the rows ``index`` of what is split over the devices."""
  axis_name = row_axes(mesh)
  fetch = lambda inputs, labels, index: (
    gather.gather(inputs, index, split=True, axis_name=axis_name),
    gather.gather(labels, index, split=True, axis_name=axis_name),
  )
  rows = P(axis_name)
  with jax.named_scope("jsel_gather"):
    inputs, labels = jax.shard_map(fetch, mesh=mesh, in_specs=(rows, rows, P()), out_specs=rows)(
      pool.rows["inputs"], pool.rows["labels"], index
    )
  return Given(inputs, labels)


def weighed(pool: Pool, batch: Batch, mesh: Mesh) -> Batch:
  """``batch`` as it is learnt from: the selector's weights times those of the pool's rows."""
  if "weight" not in pool.rows:
    return batch
  axis_name = row_axes(mesh)
  with jax.named_scope("jsel_gather"):
    weight = jax.shard_map(
      lambda weight, index: gather.gather(weight, index, axis_name=axis_name),
      mesh=mesh,
      in_specs=(P(axis_name), P()),
      out_specs=P(),
    )(pool.rows["weight"], batch.index)
  return batch._replace(weight=batch.weight * weight)


def written_back(
  selector: Selector, mesh: Mesh, state: TrainState, batch: Batch, told: dict[str, jax.Array]
) -> TrainState:
  """``state`` after the step: the selector and the exposure know of the batch."""
  told = jax.lax.with_sharding_constraint(told, replicated(mesh))
  columns = state.selector
  if selector.feedback:
    with jax.named_scope("jsel_select"):
      columns = merge(columns, tell(selector, mesh, columns, batch, told))
  exposure = expose(state.exposure, batch, told["loss"], state.step, mesh)
  return state._replace(step=state.step + 1, selector=columns, exposure=exposure)


def tell(
  selector: Selector,
  mesh: Mesh,
  columns: Columns,
  batch: Batch,
  feedback: dict[str, jax.Array],
) -> Columns:
  """Hands a batch's feedback to the selector: the columns that it changed."""
  rows, same = P(row_axes(mesh)), P()
  specs = Columns(rows, same)  # pyrefly: ignore
  wanted = {name: feedback[name] for name in selector.feedback}
  return jax.shard_map(
    lambda columns, batch, wanted: changes(columns, selector.update(columns, batch, wanted)),
    mesh=mesh,
    in_specs=(specs, same, same),
    out_specs=specs,
  )(columns, batch, wanted)


def expose(
  exposure: Exposure, batch: Batch, loss: jax.Array, step: jax.Array, mesh: Mesh
) -> Exposure:
  """Notes that ``batch`` was trained on at ``step``."""
  axis_name = row_axes(mesh)
  rows, same = P(axis_name), P()

  def note(exposure, batch, loss, step):
    options = {"valid": batch.valid, "axis_name": axis_name}
    seen = gather.gather(exposure.first_step, batch.index, axis_name=axis_name)
    first = jnp.where(seen < 0, step, seen)
    return Exposure(
      scatter.scatter_add(exposure.times_selected, batch.index, 1, **options),
      scatter.scatter(exposure.first_step, batch.index, first, **options),
      scatter.scatter(exposure.last_step, batch.index, step, **options),
      scatter.scatter(exposure.last_loss, batch.index, loss, **options),
    )

  with jax.named_scope("jsel_exposure"):
    return jax.shard_map(note, mesh=mesh, in_specs=(rows, same, same, same), out_specs=rows)(
      exposure, batch, loss, step
    )
