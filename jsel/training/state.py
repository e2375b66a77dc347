"""Everything that a run carries from step to step, and how a mesh holds it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jsel.kernels import permutation
from jsel.selectors import Batch, Columns, Plan, Pool
from jsel.sharding import replicated, rows_sharding


class ActivePlan(NamedTuple):
  """The plan being trained on, behind what the one before it left over."""

  plan: Plan
  carried: Plan  # at most one batch less one row, trained first
  start: jax.Array  # [] int32 step of the plan's first batch


class Exposure(NamedTuple):
  """What was trained on, a row an example."""

  times_selected: jax.Array  # [n] int32
  first_step: jax.Array  # [n] int32, -1 if never
  last_step: jax.Array  # [n] int32, -1 if never
  last_loss: jax.Array  # [n] float32, 0 if never


class TrainState(NamedTuple):
  """What a checkpoint holds."""

  step: jax.Array  # [] int32, steps done
  key: jax.Array  # the run's typed key; the key of step t is fold_in(key, t)
  params: Any  # nnx.Param leaves, float32
  variables: Any  # the model's other variables: BatchNorm statistics
  opt_state: Any
  selector: Columns
  plan: ActivePlan
  exposure: Exposure


def empty_plan(capacity: int) -> Plan:
  """A plan with room for ``capacity`` rows and none in it."""
  return Plan(jnp.zeros(capacity, jnp.int32), jnp.ones(capacity, jnp.float32), jnp.int32(0))


def init_state(
  key: jax.Array,
  model: nnx.Module,
  optimizer: Any,
  selector_state: Columns,
  pool: Pool,
  *,
  capacity: int,
  batch_size: int,
  mesh: Mesh,
) -> tuple[nnx.GraphDef, TrainState]:
  """The state before the first step, laid out over ``mesh``, and the model's graph definition."""
  graphdef, params, variables = nnx.split(model, nnx.Param, ...)
  never = jnp.full(pool.valid.shape, -1, jnp.int32)
  exposure = Exposure(never + 1, never, never, jnp.zeros(never.shape, jnp.float32))
  plan = ActivePlan(empty_plan(capacity), empty_plan(batch_size), jnp.int32(0))
  state = TrainState(
    jnp.int32(0), key, params, variables, optimizer.init(params), selector_state, plan, exposure
  )
  # Copies: what is donated must not be shared between two leaves.
  state = jax.tree.map(lambda leaf: leaf.copy(), state)
  return graphdef, jax.device_put(state, state_sharding(state, mesh))


def state_sharding(state: TrainState, mesh: Mesh) -> TrainState:
  """The sharding of every leaf: rows split over the data axis, the rest on every device."""
  everywhere, split = replicated(mesh), rows_sharding(mesh)
  rows = TrainState(
    *(jax.tree.map(lambda _: everywhere, field) for field in state[:5]),
    selector=Columns(
      dict.fromkeys(state.selector.rows, split),
      dict.fromkeys(state.selector.shared, everywhere),
    ),
    plan=jax.tree.map(lambda _: everywhere, state.plan),
    exposure=Exposure(split, split, split, split),
  )
  return rows


def rows_left(active: ActivePlan, step: jax.Array, batch_size: int) -> jax.Array:
  """Rows of the plan, carried ones included, that were not trained on before ``step``."""
  used = (step - active.start) * batch_size
  return jnp.maximum(active.carried.count + active.plan.count - used, 0)


def take_rows(active: ActivePlan, key: jax.Array, position: jax.Array) -> Batch:
  """The rows at ``position``: the carried ones, then the plan in the order of its own shuffle.

  A pure function of the plan and the run's key: whoever has both can tell any
  batch of the plan.
  """
  plan, carried = active.plan, active.carried
  shuffle = jax.random.fold_in(jax.random.fold_in(key, active.start), 0)
  # Before the first plan there are no rows to permute.
  size = jnp.maximum(plan.count, 1)
  place = permutation.permute(shuffle, position - carried.count, size)
  place = jnp.clip(place, 0, plan.index.shape[0] - 1)
  from_carried = position < carried.count
  carried_place = jnp.minimum(position, carried.index.shape[0] - 1)
  pick = lambda old, new: jnp.where(from_carried, old[carried_place], new[place])
  return Batch(
    pick(carried.index, plan.index),
    pick(carried.weight, plan.weight),
    (position >= 0) & (position < carried.count + plan.count),
  )


def next_plan(
  active: ActivePlan, plan: Plan, key: jax.Array, step: jax.Array, batch_size: int
) -> ActivePlan:
  """``plan`` from ``step`` on, behind the rows of the one before that do not fill a batch."""
  used = (step - active.start) * batch_size
  left = take_rows(active, key, used + jnp.arange(batch_size, dtype=jnp.int32))
  carried = Plan(
    jnp.where(left.valid, left.index, 0),
    jnp.where(left.valid, left.weight, 1),
    left.valid.sum(dtype=jnp.int32),
  )
  return ActivePlan(plan, carried, step)
