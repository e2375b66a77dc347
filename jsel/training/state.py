"""Everything that a run carries from step to step, and how a mesh holds it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsel import models
from jsel.selectors import Columns, Pool, Selector
from jsel.sharding import Rules, parameter_sharding, place, replicated, row_axes, rows_sharding
from jsel.training.plan import ActivePlan, empty_plan, needed_columns, plan_specs


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
  variables: Any  # the model's other variables: BatchNorm statistics, what is frozen
  opt_state: Any
  selector: Columns
  plan: ActivePlan
  exposure: Exposure


class Keys(NamedTuple):
  """Typed keys of a run, one for each purpose."""

  model: jax.Array
  selector: jax.Array
  step: jax.Array


def init_state(
  keys: Keys,
  make_model: Callable[[nnx.Rngs], nnx.Module],
  optimizer: optax.GradientTransformation,
  selector: Selector,
  pool: Pool,
  *,
  batch_size: int,
  mesh: Mesh,
  rules: Rules = (),
) -> TrainState:
  """The state before the first step.

  One program, so that every array is born where it belongs: no device ever
  holds all of the parameters or of the pool's columns. What a model begins with from
  a file (`jsel.models.pretrained`) is read after it and laid out alike. Given shapes
  (`jax.ShapeDtypeStruct`) for ``keys`` and ``pool`` the state is of shapes too, with their
  shardings: what a compilation ahead of time needs.

  Args:
    keys: typed keys.
    make_model: builds the model from its `nnx.Rngs`.
    optimizer: an Optax transformation.
    selector: built with the mesh's row axes.
    pool: the pool, or its shapes.
    batch_size: rows in a step, over all devices.
    mesh: the mesh.
    rules: of `jsel.sharding.parameter_sharding`.
  """
  rows, same = P(row_axes(mesh)), P()
  needed = needed_columns(selector, pool)
  init_selector = jax.shard_map(
    lambda key, pool: selector.init(key, pool, None),
    mesh=mesh,
    in_specs=(same, rows),
    out_specs=Columns(rows, same),  # pyrefly: ignore
  )

  def build(keys: Keys, pool: Pool) -> TrainState:
    _, params, variables = nnx.split(make_model(nnx.Rngs(keys.model)), nnx.Param, ...)
    never = jnp.full(pool.valid.shape, -1, jnp.int32)
    exposure = Exposure(never + 1, never, never, jnp.zeros(never.shape, jnp.float32))
    return TrainState(
      jnp.int32(0),
      keys.step,
      params,
      variables,
      optimizer.init(params),
      init_selector(keys.selector, pool),
      empty_plan(pool.valid.shape[0], weighted=selector.weighted, batch_size=batch_size),
      exposure,
    )

  shapes = jax.eval_shape(build, keys, needed)
  shardings = state_sharding(shapes, mesh, rules)
  if not isinstance(pool.valid, jax.Array):
    placed = lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)
    return jax.tree.map(placed, shapes, shardings)
  state = jax.jit(build, out_shardings=shardings)(keys, needed)
  given = models.pretrained(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))
  # The optimizer's state stays: of those of `make_optimizer` it does not depend on values.
  return begun_with(state, given) if given else state


def begun_with(state: TrainState, given: Mapping[str, np.ndarray]) -> TrainState:
  """``state`` with the arrays ``given``, by their path in the model, in place of those drawn."""
  unused = set(given)

  def replaced(part: nnx.State) -> nnx.State:
    def put(path: Any, leaf: jax.Array) -> jax.Array:
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      if name not in given:
        return leaf
      unused.remove(name)
      array = np.asarray(given[name], leaf.dtype)
      assert array.shape == leaf.shape, (name, array.shape, leaf.shape)
      return place(array, leaf.sharding)  # pyrefly: ignore

    pure = jax.tree_util.tree_map_with_path(put, nnx.to_pure_dict(part))
    part = jax.tree.map(lambda leaf: leaf, part)
    nnx.replace_by_pure_dict(part, pure)
    return part

  state = state._replace(params=replaced(state.params), variables=replaced(state.variables))
  assert not unused, unused
  return state


def state_sharding(state: TrainState, mesh: Mesh, rules: Rules = ()) -> TrainState:
  """The sharding of every leaf: rows split over all devices, parameters by the rules."""
  everywhere, split = replicated(mesh), rows_sharding(mesh)
  to_sharding = lambda spec: NamedSharding(mesh, spec)
  return TrainState(
    everywhere,  # pyrefly: ignore
    everywhere,  # pyrefly: ignore
    parameter_sharding(state.params, mesh, rules),
    jax.tree.map(lambda _: everywhere, state.variables),
    parameter_sharding(state.opt_state, mesh, rules),
    Columns(
      dict.fromkeys(state.selector.rows, split),  # pyrefly: ignore
      dict.fromkeys(state.selector.shared, everywhere),  # pyrefly: ignore
    ),
    jax.tree.map(to_sharding, plan_specs(state.plan, mesh), is_leaf=lambda x: isinstance(x, P)),
    Exposure(split, split, split, split),  # pyrefly: ignore
  )
