"""What a run keeps in the memory of each device, before any of it is allocated."""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jsel.selectors import Batch, Pool
from jsel.training.amounts import readable
from jsel.training.gradients import Learner
from jsel.training.state import TrainState


class MemoryPlan(NamedTuple):
  """Bytes of each kind on the device that holds the most; all devices hold alike."""

  kinds: dict[str, int]
  limit: int | None  # of the device, if it tells

  @property
  def total(self) -> int:
    """Bytes of all kinds together."""
    return sum(self.kinds.values())


def plan_memory(
  learner: Learner,
  state: TrainState,
  pool: Pool,
  *,
  batch_size: int,
  input_shape: tuple[int, ...],
  input_dtype: np.dtype,
  given_rows: int,
  device: jax.Device,
) -> MemoryPlan:
  """The memory that a run needs, from shapes and shardings alone.

  Activations are what the backward pass keeps of the forward pass, by JAX's own
  account: XLA may keep less where it fuses, and has buffers of its own beside
  them. `jsel.aot` compiles the step and knows.

  Args:
    learner: the model, its loss, its optimizer.
    state: of shapes with shardings, as `jsel.training.state.init_state` makes of
      a pool of shapes.
    pool: the pool's columns that live in device memory, of shapes with shardings.
    batch_size: rows in a step, over all devices.
    input_shape: of one example.
    input_dtype: of the inputs.
    given_rows: rows that a feed keeps on the devices at a time, 0 without a feed.
    device: one of the mesh.
  """
  devices = learner.mesh.size
  in_turn = learner.accumulate
  if learner.parts and not learner.unroll:
    in_turn = learner.parts // devices
  rows = jax.ShapeDtypeStruct((batch_size // in_turn, *input_shape), input_dtype)
  kinds = {
    "pool": device_bytes(pool.rows) + device_bytes(pool.valid),
    "selector": device_bytes(state.selector),
    "plan": device_bytes(state.plan),
    "exposure": device_bytes(state.exposure),
    "parameters": device_bytes(state.params) + device_bytes(state.variables),
    "gradients": device_bytes(state.params),
    "optimizer": device_bytes(state.opt_state),
    "batches": (batch_size + given_rows) * _row_bytes(input_shape, input_dtype) // devices,
    "activations": _kept_for_backward(learner, state, rows) // devices,
  }
  return MemoryPlan(kinds, _limit(device))


def check_fits(plan: MemoryPlan, *, feed: str, note: Callable[[str], Any]) -> None:
  """Prints the plan, and raises if the device has less memory than it needs.

  Raises:
    ValueError: naming what takes most and what to change.
  """
  parts = ", ".join(f"{name} {readable(size)}" for name, size in plan.kinds.items() if size)
  room = "of unknown memory" if plan.limit is None else f"of {readable(plan.limit)}"
  note(f"memory a device: {parts}; {readable(plan.total)} {room}")
  if plan.limit is None or plan.total <= plan.limit:
    return
  largest = max(plan.kinds, key=lambda name: plan.kinds[name])
  remedy = {
    "pool": "use --config.feed=planned" if feed == "resident" else "use more devices",
    "activations": "raise --config.accumulate, or remat the model",
  }.get(largest, "raise --config.sharding.fsdp, or use more devices")
  raise ValueError(
    f"the run does not fit: it needs {readable(plan.total)} a device and there are"
    f" {readable(plan.limit)}, {largest} takes {readable(plan.kinds[largest])}: {remedy}"
  )


def device_bytes(tree: Any) -> int:
  """Bytes on one device of a tree of arrays or shapes that have a sharding."""

  def of_leaf(leaf) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return 8 * math.prod(shape)  # two words
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize

  return sum(of_leaf(leaf) for leaf in jax.tree.leaves(tree))


def _row_bytes(input_shape: tuple[int, ...], input_dtype: np.dtype) -> int:
  return math.prod(input_shape) * np.dtype(input_dtype).itemsize + 8


def _kept_for_backward(learner: Learner, state: TrainState, rows: jax.ShapeDtypeStruct) -> int:
  """Bytes of a whole part of a batch that are kept from the forward to the backward pass."""
  count = rows.shape[0]
  integers = jax.ShapeDtypeStruct((count,), np.int32)
  batch = Batch(
    integers,  # pyrefly: ignore
    jax.ShapeDtypeStruct((count,), np.float32),  # pyrefly: ignore
    jax.ShapeDtypeStruct((count,), np.bool_),  # pyrefly: ignore
  )

  def backward(params, variables, key, inputs, labels, batch):
    loss = lambda params: learner.mean_loss(params, variables, key, inputs, labels, batch)
    _, pull, _ = jax.vjp(loss, params, has_aux=True)
    return pull

  kept = jax.eval_shape(backward, state.params, state.variables, state.key, rows, integers, batch)
  sizes = [math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(kept)]
  parameters = sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state.params)
  )
  return max(sum(sizes) - parameters, 0)


def _limit(device: jax.Device) -> int | None:
  if device.platform == "cpu":
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // jax.local_device_count()
  stats = device.memory_stats()
  return stats.get("bytes_limit") if stats else None
