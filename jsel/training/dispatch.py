"""Which compiled program runs next: a function of the step and the plan, the same on resuming."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jsel.selectors import Pool, Selector
from jsel.training.overhead import Overhead, measure
from jsel.training.state import TrainState

SCANNED_STEPS = 10


class Dispatch(NamedTuple):
  """How steps reach the device."""

  fused: bool  # one program with the plan inside, else two, called by the host
  steps: int  # in a dispatch
  reason: str


def choose(
  kind: str, *, platform: str, convolutional: bool, resident: bool, refresh_steps: int
) -> Dispatch:
  """The dispatch for a platform and a model.

  On CPU XLA runs what is inside scan, while or cond on one thread, and a
  convolution there is 10 to 26 times slower. A plan that is due now and then is
  inside a cond; one of every step is not, and one program with it takes less than
  two. A feed brings one batch at a time, and has to know the plan before the step.

  Raises:
    ValueError: if ``kind`` is not "auto", "step" or "scan", or is not for the feed.

  >>> choose("auto", platform="cpu", convolutional=True, resident=True, refresh_steps=0).steps
  1
  """
  if not resident:
    if kind == "scan":
      raise ValueError("dispatch='scan' needs feed='resident': a feed brings a batch at a time")
    if kind in ("auto", "step"):
      return Dispatch(False, 1, "one step a dispatch, on the batch that the feed brings")
  fused = platform != "cpu" or refresh_steps == 1
  if kind == "step":
    return Dispatch(fused, 1, "one step a dispatch, as told")
  if kind == "scan":
    return Dispatch(fused, SCANNED_STEPS, f"{SCANNED_STEPS} steps a dispatch, as told")
  if kind != "auto":
    raise ValueError(f"dispatch must be 'auto', 'step' or 'scan', got {kind!r}")
  planning = "plan and update in one program" if fused else "plans apart"
  if platform == "cpu" and convolutional:
    reason = f"one step a dispatch, as convolutions in a scan are slow on CPU; {planning}"
    return Dispatch(fused, 1, reason)
  return Dispatch(
    fused, SCANNED_STEPS, f"{SCANNED_STEPS} steps a dispatch on {platform}; {planning}"
  )


class Dispatcher:
  """Runs the step that is due, after planning where that is due.

  Args:
    build: ``(fused, steps) -> compiled step``, as `jsel.training.step.make_step`.
    plan: the compiled plan, as `jsel.training.plan.make_plan`.
    dispatch: how.
    selector: the selector.
    state: the state to begin with, fresh or restored.
    mesh: the mesh.
    batch_size: rows a step.
    refresh_steps: steps between plans; 0: when a plan is spent.
    steps_per_plan: that a plan lasts, of the usual length.
  """

  def __init__(
    self,
    build: Callable[[bool, int], Callable[..., Any]],
    plan: Callable[..., Any],
    dispatch: Dispatch,
    selector: Selector,
    state: TrainState,
    *,
    mesh: Mesh,
    batch_size: int,
    refresh_steps: int,
    steps_per_plan: int,
  ):
    del mesh
    self._steps_per_plan = steps_per_plan
    self.warm_up = max(3 * dispatch.steps, 10)
    self.program = functools.cache(build)
    self.dispatch = dispatch
    self._plan = plan
    self._selector = selector
    self._batch_size, self._refresh_steps = batch_size, refresh_steps
    self._read_plan(state)

  def __call__(self, state: TrainState, pool: Pool, step: int, stop: int) -> tuple[Any, Any, int]:
    """Runs on from ``step``, to ``stop`` at the most: the new state, metrics, and the step reached.

    Args:
      state: donated.
      pool: the pool.
      step: steps done.
      stop: the next step at which the caller wants to look. Together with the
        plan's start it fixes where scans begin: at multiples of their length
        from the last such step on.
    """
    if self.dispatch.fused:
      many = self._scans(step, stop)
      state, metrics = self.program(True, many)(state, pool, None)
      return state, metrics, step + many
    state = self.planned(state, pool, step)
    many = self._scans(step, min(stop, self.plan_end))
    state, metrics = self.program(False, many)(state, pool, None)
    return state, metrics, step + many

  def planned(self, state: TrainState, pool: Pool, step: int) -> TrainState:
    """``state`` with a plan that reaches past ``step``; `plan_end` is then where it ends."""
    if step < self.plan_end:
      return state
    state = self._planned_anew(state, pool)
    if self._selector.most == self._selector.least:
      self.follow(step)
    else:
      self._read_plan(state)
    return state

  def measure(self, state: TrainState, pool: Pool) -> Overhead:
    """What a plan costs, beside the steps that it lasts."""
    return measure(
      lambda state: self._planned_anew(state, pool),
      lambda state: self._update(state, pool),
      state,
      steps_between_plans=self._steps_per_plan,
    )

  def close(self) -> None:
    """Has nothing to end."""

  def _planned_anew(self, state: TrainState, pool: Pool) -> TrainState:
    columns, active = self._plan(state.key, state.step, state.selector, state.plan, pool)
    return state._replace(selector=columns, plan=active)

  def _update(self, state: TrainState, pool: Pool) -> tuple[TrainState, Any]:
    return self.program(False, 1)(state, pool, None)

  def follow(self, step: int) -> None:
    """Notes that a plan of the usual length begins at ``step``."""
    self._set(step, self._carried + self._selector.most)

  def end_after(self, step: int) -> int:
    """Where a plan of the usual length ends that begins at ``step``, where this one ends."""
    return step + self._batches_of(self._carried + self._selector.most)

  def _scans(self, step: int, stop: int) -> int:
    return self.dispatch.steps if stop - step >= self.dispatch.steps else 1

  def _read_plan(self, state: TrainState) -> None:
    start, count, carried = jax.device_get(
      (state.plan.start, state.plan.count, state.plan.carried.count)
    )
    self._set(int(start), int(count) + int(carried))

  def _set(self, start: int, rows: int) -> None:
    batches = self._batches_of(rows)
    self.plan_end = start + batches
    self._carried = rows - batches * self._batch_size

  def _batches_of(self, rows: int) -> int:
    batches = rows // self._batch_size
    return min(batches, self._refresh_steps) if self._refresh_steps else batches
