"""The fused step against plain ones, and the plan's bookkeeping."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jsel
from jsel import models, selectors
from jsel.selectors import Plan, Pool
from jsel.sharding import rows_sharding
from jsel.training import losses
from jsel.training.dispatch import Dispatch, Dispatcher
from jsel.training.state import ActivePlan, empty_plan, init_state, next_plan, take_rows
from jsel.training.step import make_step

SIZE, BATCH, CLASSES = 700, 64, 5


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax and Flax do not keep to strict promotion themselves.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


class Setup:
  """A small run: a pool of noisy clusters, an mlp, and a selector."""

  def __init__(
    self, name="rs2", devices=1, refresh_steps=0, optimizer=None, ratio=0.5, **constants
  ):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SIZE).astype(np.int32)
    inputs = rng.standard_normal((CLASSES, 12))[labels] + rng.standard_normal((SIZE, 12))
    self.mesh = jsel.make_mesh(jax.devices()[:devices])
    rows = {"inputs": jsel.pad_rows(inputs.astype(np.float32)), "labels": jsel.pad_rows(labels)}
    valid = np.arange(len(rows["labels"])) < SIZE
    self.pool = jax.device_put(Pool(rows, valid), rows_sharding(self.mesh))
    self.refresh_steps = refresh_steps
    rows_planned = refresh_steps * BATCH or (SIZE if name == "full" else round(ratio * SIZE))
    self.selector = selectors.make(
      name,
      size=SIZE,
      rows=rows_planned,
      total_steps=100,
      optimizer=optax.adam,
      axis_name="data",
      **constants,
    )
    self.optimizer = optimizer or optax.adamw(3e-3)
    self.model = models.make(
      "mlp", rngs=nnx.Rngs(0), input_shape=(12,), classes=CLASSES, hidden=(16,)
    )
    spec = jax.P("data")
    init = jax.shard_map(
      lambda key, pool: self.selector.init(key, pool, None),
      mesh=self.mesh,
      in_specs=(jax.P(), spec),
      out_specs=selectors.Columns(spec, jax.P()),
    )
    self.graphdef, self.state = init_state(
      jax.random.key(3),
      self.model,
      self.optimizer,
      jax.jit(init)(jax.random.key(4), self.pool),
      self.pool,
      capacity=self.selector.capacity,
      batch_size=BATCH,
      mesh=self.mesh,
    )

  def step(self, plan, steps=1):
    return make_step(
      self.graphdef,
      losses.classification,
      lambda key, x, ids: x,
      self.optimizer,
      self.selector,
      self.state,
      mesh=self.mesh,
      batch_size=BATCH,
      refresh_steps=self.refresh_steps,
      plan=plan,
      steps=steps,
    )

  def dispatcher(self, fused=False, steps=1):
    return Dispatcher(
      self.step,
      Dispatch(fused, steps, "test"),
      self.selector,
      self.state,
      batch_size=BATCH,
      refresh_steps=self.refresh_steps,
    )

  def run(self, total, fused=False, steps=1, look_every=1000):
    run, state, step, kept = self.dispatcher(fused, steps), self.state, 0, []
    while step < total:
      stop = min((step // look_every + 1) * look_every, total)
      state, metrics, step = run(state, self.pool, step, stop)
      kept.append(np.ravel(metrics["loss"]))
    return state, np.concatenate(kept)


def test_the_update_is_that_of_a_plain_step_on_the_same_rows():
  setup = Setup(optimizer=optax.sgd(0.1))
  params = jax.tree.map(np.asarray, setup.state.params)
  state, metrics = setup.step(True)(setup.state, setup.pool, None)
  batch = take_rows(state.plan, state.key, jnp.arange(BATCH, dtype=jnp.int32))
  x, y = setup.pool.rows["inputs"][batch.index], setup.pool.rows["labels"][batch.index]

  def plain_loss(params):
    logits = nnx.merge(setup.graphdef, params, state.variables)(x, train=True).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  loss, gradients = jax.value_and_grad(plain_loss)(params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
  # Two programs of the same float32 formula: they differ by rounding.
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected
  )


def test_weights_scale_a_row_in_the_gradient():
  setup = Setup("infobatch", optimizer=optax.sgd(0.1))
  params = jax.tree.map(np.asarray, setup.state.params)
  state, _ = setup.step(True)(setup.state, setup.pool, None)
  weights = jnp.linspace(0.1, 3, state.plan.plan.index.shape[0], dtype=jnp.float32)
  active = state.plan._replace(plan=state.plan.plan._replace(weight=weights))
  batch = take_rows(active, state.key, jnp.arange(BATCH, dtype=jnp.int32))
  fresh = Setup("infobatch", optimizer=optax.sgd(0.1))
  got, _ = fresh.step(False)(fresh.state._replace(plan=active), fresh.pool, None)
  x, y = fresh.pool.rows["inputs"][batch.index], fresh.pool.rows["labels"][batch.index]

  def plain_loss(params):
    logits = nnx.merge(fresh.graphdef, params, got.variables)(x, train=True).logits
    return (batch.weight * optax.softmax_cross_entropy_with_integer_labels(logits, y)).sum() / BATCH

  expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(plain_loss)(params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got.params, expected
  )


@pytest.mark.parametrize("name", ["rs2", "infobatch", "rep_div"])
def test_one_program_with_a_cond_trains_as_two_chosen_on_the_host(name):
  apart, losses_apart = Setup(name).run(25)
  fused, losses_fused = Setup(name).run(25, fused=True, steps=5)
  scanned, _ = Setup(name).run(25, steps=4, look_every=7)
  for other in (fused, scanned):
    np.testing.assert_array_equal(apart.exposure.times_selected, other.exposure.times_selected)
    np.testing.assert_array_equal(apart.exposure.first_step, other.exposure.first_step)
  # Programs of the same formula may round differently.
  np.testing.assert_allclose(losses_apart, losses_fused, rtol=1e-4)


@pytest.mark.parametrize("name", selectors.SELECTORS)
def test_eight_devices_train_as_one_does(name):
  one, losses_one = Setup(name).run(50)
  eight, losses_eight = Setup(name, devices=8).run(50)
  # The promise of the design; gradients are summed in another order.
  np.testing.assert_allclose(losses_one, losses_eight, rtol=1e-4)
  if not Setup(name).selector.feedback:
    np.testing.assert_array_equal(one.exposure.times_selected, eight.exposure.times_selected)
    np.testing.assert_array_equal(one.exposure.last_step, eight.exposure.last_step)
    jax.tree.map(np.testing.assert_array_equal, one.plan, eight.plan)


@pytest.mark.parametrize("name", ["rs2", "infobatch", "rep_div"])
def test_every_planned_row_is_trained_on_once_and_no_padding(name):
  setup = Setup(name)
  run, state, step = setup.dispatcher(), setup.state, 0
  for _ in range(40):
    state, _, step = run(state, setup.pool, step, 1000)
  trained = np.asarray(state.exposure.times_selected)
  planned = np.asarray(state.selector.rows["planned"])
  assert not trained[SIZE:].any()
  assert trained.sum() == 40 * BATCH
  # Rows of the current plan that are still to come, and those carried into it.
  left = (step - int(state.plan.start)) * BATCH + np.arange(2000, dtype=np.int32)
  rest = take_rows(state.plan, state.key, jnp.asarray(left))
  pending = np.bincount(np.asarray(rest.index)[np.asarray(rest.valid)], minlength=len(planned))
  np.testing.assert_array_equal(trained + pending, planned)


def test_what_a_plan_leaves_over_comes_first_in_the_next():
  key = jax.random.key(0)
  plan = lambda *ids: Plan(jnp.array(ids, jnp.int32), jnp.ones(len(ids)), jnp.int32(len(ids)))
  active = ActivePlan(plan(*range(10)), empty_plan(4), jnp.int32(5))
  shuffled = np.asarray(take_rows(active, key, jnp.arange(10, dtype=jnp.int32)).index)
  assert sorted(shuffled) == list(range(10))
  after = next_plan(active, plan(*range(20, 30)), key, jnp.int32(7), 4)  # two batches of 4 are gone
  assert int(after.carried.count) == 2
  rows = take_rows(after, key, jnp.arange(13, dtype=jnp.int32))
  np.testing.assert_array_equal(rows.index[:2], shuffled[8:])
  assert sorted(np.asarray(rows.index[2:12])) == list(range(20, 30))
  np.testing.assert_array_equal(rows.valid, np.arange(13) < 12)


def test_a_plan_for_every_step_is_one_batch():
  setup = Setup("rep_div", refresh_steps=1)
  run, state, step = setup.dispatcher(), setup.state, 0
  for _ in range(12):
    state, _, step = run(state, setup.pool, step, 1000)
    assert int(state.plan.start) == step - 1
  planned = np.asarray(state.selector.rows["planned"])
  np.testing.assert_array_equal(planned, state.exposure.times_selected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_thousand_steps_compile_nothing_new_and_move_nothing_implicitly(fused):
  setup = Setup("infobatch")  # its plans vary in length
  run, state, step = setup.dispatcher(fused, 10), setup.state, 0
  while step < 300:  # some plans of different lengths, and so all programs
    state, _, step = run(state, setup.pool, step, 300)
  programs = (
    [run.program(None, 10), run.program(None, 1)]
    if fused
    else [run.program(True, 1), run.program(False, 1), run.program(False, 10)]
  )
  sizes = [program._cache_size() for program in programs]
  assert max(sizes) == 1
  with jax.transfer_guard("disallow"):
    while step < 1300:
      state, _, step = run(state, setup.pool, step, 1300)
  assert [program._cache_size() for program in programs] == sizes


def test_a_given_batch_takes_the_place_of_the_gather():
  setup, given = Setup(), Setup()
  state, metrics = setup.step(True)(setup.state, setup.pool, None)
  batch = take_rows(state.plan, state.key, jnp.arange(BATCH, dtype=jnp.int32))
  rows = {name: column[batch.index] for name, column in setup.pool.rows.items()}
  other, other_metrics = given.step(True)(given.state, given.pool, rows)
  np.testing.assert_allclose(metrics["loss"], other_metrics["loss"], rtol=1e-6)  # two programs
  np.testing.assert_array_equal(state.exposure.last_step, other.exposure.last_step)


def test_the_pool_stays_where_it_is():
  # The compiled program on eight devices has no collective of the pool's length.
  setup = Setup("rep_div", devices=8, refresh_steps=1)  # 64 candidates of each device are gathered
  text = setup.step(None).lower(setup.state, setup.pool, None).compile().as_text()
  padded = len(setup.pool.valid)
  gathers = [line for line in text.splitlines() if "all-gather" in line and f"[{padded}" in line]
  assert not gathers, gathers


@pytest.mark.parametrize("name", ["rs2", "infobatch", "loss", "rep_div"])
def test_what_is_dense_leaves_the_cond_in_place(name):
  # The compiled program copies nothing of the pool's length, but for flags of one byte.
  setup = Setup(name)
  text = setup.step(None).lower(setup.state, setup.pool, None).compile().as_text()
  padded = len(setup.pool.valid)
  assert "conditional(" in text
  assert f"[{padded}" in text
  copies = re.findall(rf"= (?!pred)\w+\[{padded}[^=]* copy\(.*", text)
  assert not copies, copies
