"""The plan being trained on: which rows a step takes, and what the next plan inherits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsel.kernels import nth, permutation
from jsel.kernels.conditional import changed_if
from jsel.kernels.rows import AxisName
from jsel.selectors import Batch, Columns, Plan, Pool, Selector
from jsel.sharding import replicated, row_axes, rows_sharding


class Carried(NamedTuple):
  """What a plan left over: less than one batch."""

  index: jax.Array  # [b] int32 global row ids
  weight: jax.Array  # [b] float32
  count: jax.Array  # [] int32, how many entries hold


class ActivePlan(NamedTuple):
  """The plan being trained on, behind what the one before it left over."""

  tiles: nth.Tiles  # which rows are planned, split by rows
  weight: jax.Array | None  # [n] float32, split by rows; None: all are 1
  count: jax.Array  # [] int32, rows of the plan
  carried: Carried  # trained first
  start: jax.Array  # [] int32 step of the plan's first batch


def empty_plan(size: int, *, weighted: bool, batch_size: int) -> ActivePlan:
  """No plan of ``size`` rows (with padding): what a run begins with."""
  carried = Carried(
    jnp.zeros(batch_size, jnp.int32), jnp.ones(batch_size, jnp.float32), jnp.int32(0)
  )
  weight = jnp.ones(size, jnp.float32) if weighted else None
  tiles = nth.count_tiles(jnp.zeros(size, bool))
  return ActivePlan(tiles, weight, jnp.int32(0), carried, jnp.int32(0))


def plan_specs(active: ActivePlan, mesh: Mesh) -> ActivePlan:
  """How a mesh holds each array of a plan."""
  rows, same = P(row_axes(mesh)), P()
  return ActivePlan(
    nth.Tiles(rows, rows, rows),  # pyrefly: ignore
    None if active.weight is None else rows,  # pyrefly: ignore
    same,  # pyrefly: ignore
    Carried(same, same, same),  # pyrefly: ignore
    same,  # pyrefly: ignore
  )


def rows_left(active: ActivePlan, step: jax.Array, batch_size: int) -> jax.Array:
  """Rows of the plan, carried ones included, that were not trained on before ``step``."""
  used = (step - active.start) * batch_size
  return jnp.maximum(active.carried.count + active.count - used, 0)


def take_rows(
  active: ActivePlan, key: jax.Array, position: jax.Array, axis_name: AxisName = None
) -> Batch:
  """The rows at ``position``: the carried ones, then the plan in the order of its own shuffle.

  A plan that is one batch, with nothing carried, is in the order of its ids: a
  step averages over all of it, in whatever order, and is spared a shuffle.

  A pure function of the plan and the run's key: whoever has both can tell any
  batch of the plan.

  Sharding: the plan is split by rows, ``position`` and the result are the same on
  every device; costs one sum of ids (and weights) over the devices.
  """
  carried = active.carried
  # Before the first plan there are no rows to permute.
  rows = jnp.maximum(active.count, 1)
  several = (active.count != carried.index.shape[0]) | (carried.count > 0)

  def shuffled(place: jax.Array) -> jax.Array:
    shuffle = jax.random.fold_in(jax.random.fold_in(key, active.start), 0)
    return permutation.permute(shuffle, place, rows)

  place = changed_if(several, shuffled, position - carried.count)
  found = nth.select(active.tiles, place, values=active.weight, axis_name=axis_name)
  weight = jnp.ones(position.shape, jnp.float32) if found.values is None else found.values
  from_carried = position < carried.count
  carried_place = jnp.minimum(position, carried.index.shape[0] - 1)
  pick = lambda old, new: jnp.where(from_carried, old[carried_place], new)
  return Batch(
    pick(carried.index, jnp.maximum(found.indices, 0)),
    pick(carried.weight, weight),
    (position >= 0) & (position < carried.count + active.count),
  )


def left_over(
  active: ActivePlan,
  key: jax.Array,
  step: jax.Array,
  batch_size: int,
  axis_name: AxisName = None,
) -> Carried:
  """The rows of a plan that do not fill a batch, if ``step`` is the first that it cannot fill."""
  used = (step - active.start) * batch_size
  left = take_rows(active, key, used + jnp.arange(batch_size, dtype=jnp.int32), axis_name)
  return Carried(
    jnp.where(left.valid, left.index, 0),
    jnp.where(left.valid, left.weight, 1),
    left.valid.sum(dtype=jnp.int32),
  )


def next_plan(
  plan: Plan, carried: Carried, step: jax.Array, axis_name: AxisName = None
) -> ActivePlan:
  """``plan`` from ``step`` on, behind the rows that the one before it left over."""
  tiles = nth.count_tiles(plan.mask, axis_name=axis_name)
  return ActivePlan(tiles, plan.weight, nth.total(tiles, axis_name=axis_name), carried, step)


def plan_rows(
  selector: Selector,
  mesh: Mesh,
  batch_size: int,
  key: jax.Array,
  step: jax.Array,
  columns: Columns,
  active: ActivePlan,
  pool: Pool,
) -> tuple[Columns, ActivePlan]:
  """Asks the selector for its next plan: the columns that it changed, and the plan."""
  axis_name = row_axes(mesh)
  rows, same = P(axis_name), P()
  specs = plan_specs(active, mesh)
  whole_batches = selector.least == selector.most and selector.most % batch_size == 0

  def select(plan_key, key, columns, active, pool, step):
    # Plans of whole batches never leave anything over.
    carried = active.carried
    if not whole_batches:
      carried = left_over(active, key, step, batch_size, axis_name)
    # Read before the new plan is made, whose arrays may then take the old one's place.
    plan_key, step, carried = jax.lax.optimization_barrier((plan_key, step, carried))
    new, plan, _ = selector.select(plan_key, columns, pool, step)
    return changes(columns, new), next_plan(plan, carried, step, axis_name)

  with jax.named_scope("jsel_select"):
    plan_key = jax.random.fold_in(jax.random.fold_in(key, step), 0)
    return jax.shard_map(
      select,
      mesh=mesh,
      in_specs=(same, same, Columns(rows, same), specs, rows, same),  # pyrefly: ignore
      out_specs=(Columns(rows, same), specs),  # pyrefly: ignore
    )(plan_key, key, columns, active, pool, step)


def needed_columns(selector: Selector, pool: Pool) -> Pool:
  """``pool`` with no more columns than the selector plans by."""
  return Pool({name: pool.rows[name] for name in selector.needs if name in pool.rows}, pool.valid)


def make_plan(
  selector: Selector,
  columns: Columns,
  active: ActivePlan,
  *,
  mesh: Mesh,
  batch_size: int,
  donate: bool = True,
) -> Callable[..., tuple[Columns, ActivePlan]]:
  """Compiles ``plan(key, step, columns, active, pool) -> (columns, active)``.

  Args:
    selector: the selector, built with the mesh's row axes.
    columns, active: its state and any plan, for their structure.
    mesh: the mesh.
    batch_size: rows in a step, over all devices.
    donate: the columns and the plan that the compiled function is called with.
  """
  rows, same = rows_sharding(mesh), replicated(mesh)
  to_sharding = lambda spec: NamedSharding(mesh, spec)
  shardings = (
    Columns(dict.fromkeys(columns.rows, rows), dict.fromkeys(columns.shared, same)),  # pyrefly: ignore
    jax.tree.map(to_sharding, plan_specs(active, mesh), is_leaf=lambda x: isinstance(x, P)),
  )

  def plan(key, step, columns, active, pool):
    pool = needed_columns(selector, pool)
    changed, active = plan_rows(selector, mesh, batch_size, key, step, columns, active, pool)
    return merge(columns, changed), active

  return jax.jit(plan, donate_argnums=(2, 3) if donate else (), out_shardings=shardings)


def make_plan_ids(*, mesh: Mesh, batch_size: int, steps: int) -> Callable[..., jax.Array]:
  """Compiles ``ids(key, active, step) -> int32[steps, b]``: the row ids of steps of the plan.

  What a feed reads that does not hold the pool, columns split as a batch's rows
  are. Ids of steps past the plan's end are of no meaning. Costs every device
  ``4 steps b`` bytes.
  """
  axis_name = row_axes(mesh)

  def ids(key, active, step):
    first = (step - active.start) * batch_size
    position = first + jnp.arange(steps * batch_size, dtype=jnp.int32)
    take = lambda active, key, position: take_rows(active, key, position, axis_name).index
    index = jax.shard_map(
      take, mesh=mesh, in_specs=(plan_specs(active, mesh), P(), P()), out_specs=P()
    )(active, key, position)  # pyrefly: ignore
    return index.reshape(steps, batch_size)

  return jax.jit(ids, out_shardings=NamedSharding(mesh, P(None, axis_name)))


def merge(state: Columns, changed: Columns) -> Columns:
  """``state`` with the columns of ``changed`` in place of its own."""
  return Columns({**state.rows, **changed.rows}, {**state.shared, **changed.shared})


def changes(old: Columns, new: Columns) -> Columns:
  """The columns that a selector replaced: what it passes on untouched need not leave a cond."""
  differ: Callable[[Any, Any], Any] = lambda old, new: {
    name: new[name] for name in new if new[name] is not old[name]
  }
  return Columns(differ(old.rows, new.rows), differ(old.shared, new.shared))
