"""Training on batches that a feed brings: the rows of a plan, or candidates to pick from."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jsel.data.candidates import candidate_ids
from jsel.data.device import DevicePrefetch, local_columns, local_ids
from jsel.data.feed import Feed
from jsel.selectors import Columns, Pool, Selector
from jsel.sharding import replicated, rows_sharding
from jsel.training.dispatch import Dispatch, Dispatcher
from jsel.training.overhead import Overhead, measure
from jsel.training.plan import ActivePlan, make_plan_ids
from jsel.training.state import TrainState
from jsel.training.step import Given

PUBLISHED_IDS = 2**20  # row ids that go to the host in one piece
ON_DEVICE = 2  # batches that are on their way to the device, or there
HORIZON = 64  # steps before the end of a plan at which the next is made, where it may be


class PlannedRunner(Dispatcher):
  """Runs steps on the rows of the selector's plans, read by a feed.

  What a plan consists of goes to the feed piece by piece, at the most `PUBLISHED_IDS` ids at a
  time. Where the selector goes by no feedback the next plan is made before the one being trained
  on ends, so that the feed never waits; it is the plan that would be made then. Otherwise the feed
  begins to read a plan when it is made, and the first step waits for its batch.

  Args:
    build, plan, dispatch, selector, state: as of `Dispatcher`.
    plan_ahead: as ``plan``, leaving its arguments whole.
    feed: starts at the state's step; closed with the runner.
    given: a batch of its shapes, to measure with.
    mesh, batch_size, refresh_steps, steps_per_plan: as of `Dispatcher`.
    total_steps: of the run: no plan is made for later ones.
    fit_step: up to this step no plan is made ahead.
  """

  def __init__(
    self,
    build: Callable[[bool, int], Callable[..., Any]],
    plan: Callable[..., Any],
    dispatch: Dispatch,
    selector: Selector,
    state: TrainState,
    *,
    plan_ahead: Callable[..., Any],
    feed: Feed,
    given: Given,
    mesh: Mesh,
    batch_size: int,
    refresh_steps: int,
    steps_per_plan: int,
    total_steps: int,
    fit_step: int,
  ):
    super().__init__(
      build,
      plan,
      dispatch,
      selector,
      state,
      mesh=mesh,
      batch_size=batch_size,
      refresh_steps=refresh_steps,
      steps_per_plan=steps_per_plan,
    )
    self._plan_ahead, self._feed, self._given = plan_ahead, feed, given
    self._total_steps = total_steps
    # A fit at step 0 has been when the first step is done.
    self._first_ahead = total_steps if selector.feedback else fit_step + 1 if selector.fit else 0
    self._batches = DevicePrefetch(feed, rows_sharding(mesh), ahead=ON_DEVICE)
    batches = -(-selector.most // batch_size)
    self._chunk = max(min(PUBLISHED_IDS // batch_size, batches), 1)
    self._ids = make_plan_ids(mesh=mesh, batch_size=batch_size, steps=self._chunk)
    self._to_mesh = lambda step: jax.device_put(np.int32(step), replicated(mesh))
    self._next: tuple[Columns, ActivePlan] | None = None

  def __call__(self, state: TrainState, pool: Pool, step: int, stop: int) -> tuple[Any, Any, int]:
    """Runs one step, as `Dispatcher` does."""
    del stop
    state = self.planned(state, pool, step)
    self._publish(state.key, state.plan, step, self.plan_end)
    self._look_ahead(state, pool, step)
    batch = next(self._batches)
    state, metrics = self.program(False, 1)(state, pool, Given(batch["inputs"], batch["labels"]))
    return state, metrics, step + 1

  def planned(self, state: TrainState, pool: Pool, step: int) -> TrainState:
    """As `Dispatcher` does, by the plan that was made ahead if there is one."""
    if step < self.plan_end or self._next is None:
      return super().planned(state, pool, step)
    (columns, active), self._next = self._next, None
    self.follow(step)
    return state._replace(selector=columns, plan=active)

  def close(self) -> None:
    """Ends the feed."""
    self._feed.close()

  def _update(self, state: TrainState, pool: Pool) -> tuple[TrainState, Any]:
    return self.program(False, 1)(state, pool, self._given._replace(ids=None))

  def _look_ahead(self, state: TrainState, pool: Pool, step: int) -> None:
    end = self.plan_end
    if self._next is None:
      if step < self._first_ahead or end - step > HORIZON or end >= self._total_steps:
        return
      self._next = self._plan_ahead(state.key, self._to_mesh(end), state.selector, state.plan, pool)
    if self._feed.published >= end:
      self._publish(state.key, self._next[1], step, self.end_after(end))

  def _publish(self, key: jax.Array, active: ActivePlan, step: int, end: int) -> None:
    """Publishes ids of ``active``, up to ``end``, if half a piece or less is left unread."""
    first, end = self._feed.published, min(end, self._total_steps)
    if first < end and first - step <= self._chunk // 2:
      ids = local_ids(self._ids(key, active, self._to_mesh(first)))
      self._feed.publish(first, ids[: end - first])


class CandidateRunner:
  """Runs steps that pick their rows among the candidates that a feed brings.

  Args:
    program: of `jsel.training.step.make_candidate_step`.
    key: typed key of the order in which candidates come.
    feed: starts at the state's step; closed with the runner.
    pick: of `jsel.training.step.make_pick`, to measure.
    given: candidates of its shapes, to measure with.
    mesh: the mesh.
    candidates: rows that a step picks from.
    size: rows of the pool.
    total_steps: of the run.
  """

  def __init__(
    self,
    program: Callable[..., Any],
    key: jax.Array,
    *,
    feed: Feed,
    pick: Callable[..., Any],
    given: Given,
    mesh: Mesh,
    candidates: int,
    size: int,
    total_steps: int,
  ):
    self._program, self._key, self._feed = program, key, feed
    self._pick, self._given = pick, given
    self.warm_up = 10
    self._candidates, self._size, self._total_steps = candidates, size, total_steps
    self._columns = local_columns(rows_sharding(mesh), candidates)
    self._batches = DevicePrefetch(feed, rows_sharding(mesh), ahead=ON_DEVICE)
    self._chunk = max(PUBLISHED_IDS // candidates, 1)

  def __call__(self, state: TrainState, pool: Pool, step: int, stop: int) -> tuple[Any, Any, int]:
    """Runs one step, as `jsel.training.dispatch.Dispatcher` does."""
    del stop
    first = self._feed.published
    if first < self._total_steps and first - step <= self._chunk // 2:
      steps = min(self._chunk, self._total_steps - first)
      ids = candidate_ids(self._key, first, steps, self._candidates, self._size)
      self._feed.publish(first, ids[:, self._columns])
    batch = next(self._batches)
    given = Given(batch["inputs"], batch["labels"], batch["ids"])
    state, metrics = self._program(state, pool, given)
    return state, metrics, step + 1

  def measure(self, state: TrainState, pool: Pool) -> Overhead:
    """What scoring and picking costs, of a step that does both and trains."""
    return measure(
      lambda state: self._pick(state, pool, self._given),
      lambda state: self._program(state, pool, self._given),
      state,
      steps_between_plans=1,
      selects_inside=True,
    )

  def close(self) -> None:
    """Ends the feed."""
    self._feed.close()
