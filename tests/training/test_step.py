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
from jsel.sharding import parameter_sharding, row_axes, rows_sharding
from jsel.training import dispatch, losses
from jsel.training.dispatch import Dispatch, Dispatcher
from jsel.training.gradients import Learner
from jsel.training.plan import empty_plan, left_over, make_plan, make_plan_ids, next_plan, take_rows
from jsel.training.state import Keys, init_state
from jsel.training.step import Given, batch_of, make_candidate_step, make_step

SIZE, BATCH, CLASSES = 700, 64, 5


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax and Flax do not keep to strict promotion themselves.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


class Setup:
  """A small run: a pool of noisy clusters, an mlp, and a selector."""

  def __init__(
    self,
    name="rs2",
    devices=1,
    refresh_steps=0,
    optimizer=None,
    ratio=0.5,
    fsdp=1,
    accumulate=1,
    parts=0,
    unroll=False,
    **constants,
  ):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SIZE).astype(np.int32)
    inputs = rng.standard_normal((CLASSES, 12))[labels] + rng.standard_normal((SIZE, 12))
    self.mesh = jsel.make_mesh(jax.devices()[:devices], fsdp=fsdp)
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
      axis_name=row_axes(self.mesh),
      **constants,
    )
    self.optimizer = optimizer or optax.adamw(3e-3)
    self.rules = (("layers.0.kernel", (None, "fsdp")), ("head", ()))
    make_model = lambda rngs: models.make(
      "mlp", rngs=rngs, input_shape=(12,), classes=CLASSES, hidden=(16,)
    )
    self.graphdef, _, _ = nnx.split(make_model(nnx.Rngs(0)), nnx.Param, ...)
    self.state = init_state(
      Keys(*jax.random.split(jax.random.key(3), 3)),
      make_model,
      self.optimizer,
      self.selector,
      self.pool,
      batch_size=BATCH,
      mesh=self.mesh,
      rules=self.rules,
    )
    self.learner = Learner(
      self.graphdef,
      losses.classification,
      lambda key, x, ids: x,
      lambda x: x,
      self.optimizer,
      self.mesh,
      feedback=self.selector.feedback,
      accumulate=accumulate,
      parts=parts,
      unroll=unroll,
    )
    self.plan = make_plan(
      self.selector, self.state.selector, self.state.plan, mesh=self.mesh, batch_size=BATCH
    )

  def planned(self):
    state = self.state
    columns, active = self.plan(state.key, state.step, state.selector, state.plan, self.pool)
    return state._replace(selector=columns, plan=active)

  def step(self, fused, steps=1):
    return make_step(
      self.learner,
      self.selector,
      self.state,
      mesh=self.mesh,
      batch_size=BATCH,
      refresh_steps=self.refresh_steps,
      fused=fused,
      steps=steps,
      rules=self.rules,
    )

  def dispatcher(self, fused=False, steps=1):
    return Dispatcher(
      self.step,
      self.plan,
      Dispatch(fused, steps, "test"),
      self.selector,
      self.state,
      mesh=self.mesh,
      batch_size=BATCH,
      refresh_steps=self.refresh_steps,
      steps_per_plan=1,
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
  params = jax.tree.map(np.array, setup.state.params)  # copies: the state is donated
  state, metrics = setup.step(False)(setup.planned(), setup.pool, None)
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
  fresh = Setup("infobatch", optimizer=optax.sgd(0.1))
  params = jax.tree.map(np.array, fresh.state.params)  # copies: the state is donated
  active = fresh.planned().plan
  weights = jnp.linspace(0.1, 3, active.weight.shape[0], dtype=jnp.float32)
  active = active._replace(weight=weights)
  batch = take_rows(active, fresh.state.key, jnp.arange(BATCH, dtype=jnp.int32))
  np.testing.assert_array_equal(batch.weight, weights[batch.index])
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


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("rs2", {}),
    ("infobatch", {}),
    ("rep_div", {}),
    ("rs2", {"refresh_steps": 1}),
    ("loss", {"refresh_steps": 1}),
  ],
)
def test_one_program_trains_as_two_chosen_on_the_host(name, options):
  apart, losses_apart = Setup(name, **options).run(25)
  fused, losses_fused = Setup(name, **options).run(25, fused=True, steps=5)
  scanned, _ = Setup(name, **options).run(25, steps=4, look_every=7)
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
  plan = lambda *ids: Plan(jnp.zeros(512, bool).at[jnp.array(ids)].set(True), None)
  none = empty_plan(512, weighted=False, batch_size=4).carried
  active = next_plan(plan(*range(10)), none, jnp.int32(5))
  shuffled = np.asarray(take_rows(active, key, jnp.arange(10, dtype=jnp.int32)).index)
  assert sorted(shuffled) == list(range(10))
  left = left_over(active, key, jnp.int32(7), 4)  # two batches of 4 are gone
  after = next_plan(plan(*range(20, 30)), left, jnp.int32(7))
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


def test_a_plan_of_one_batch_is_in_the_order_of_its_ids():
  key, ids = jax.random.key(0), [3, 70, 71, 500]
  plan = lambda ids: Plan(jnp.zeros(512, bool).at[jnp.array(ids)].set(True), None)
  rows = lambda active: np.asarray(take_rows(active, key, jnp.arange(4, dtype=jnp.int32)).index)
  none = empty_plan(512, weighted=False, batch_size=4).carried
  assert rows(next_plan(plan(ids), none, jnp.int32(5))).tolist() == ids
  # With rows carried into it, some would be left over, and always those of the highest ids.
  one = none._replace(count=jnp.int32(1))
  last = {rows(next_plan(plan(ids), one, jnp.int32(step)))[-1] for step in range(40)}
  assert last == set(ids)


@pytest.mark.parametrize("fused", [False, True])
def test_a_thousand_steps_compile_nothing_new_and_move_nothing_implicitly(fused):
  setup = Setup("infobatch")  # its plans vary in length
  run, state, step = setup.dispatcher(fused, 10), setup.state, 0
  while step < 300:  # some plans of different lengths, and so all programs
    state, _, step = run(state, setup.pool, step, 300)
  programs = [run.program(fused, 10), run.program(fused, 1), *([] if fused else [setup.plan])]
  sizes = [program._cache_size() for program in programs]
  assert max(sizes) == 1
  with jax.transfer_guard("disallow"):
    while step < 1300:
      state, _, step = run(state, setup.pool, step, 1300)
  assert [program._cache_size() for program in programs] == sizes


def test_a_given_batch_takes_the_place_of_the_gather():
  setup, given = Setup(), Setup()
  state, metrics = setup.step(False)(setup.planned(), setup.pool, None)
  planned = given.planned()
  ids = make_plan_ids(mesh=given.mesh, batch_size=BATCH, steps=3)(
    planned.key, planned.plan, planned.step
  )
  np.testing.assert_array_equal(ids[0], batch_of(planned, given.mesh, BATCH).index)
  rows = Given(given.pool.rows["inputs"][ids[0]], given.pool.rows["labels"][ids[0]], ids[0])
  bare = Pool({}, given.pool.valid)  # the pool's rows are not in device memory
  other, other_metrics = given.step(False)(planned, bare, rows)
  np.testing.assert_allclose(metrics["loss"], other_metrics["loss"], rtol=1e-6)  # two programs
  np.testing.assert_array_equal(state.exposure.last_step, other.exposure.last_step)


def test_the_pool_stays_where_it_is():
  # The compiled program on eight devices has no collective of the pool's length.
  setup = Setup("rep_div", devices=8, refresh_steps=1)  # 64 candidates of each device are gathered
  text = setup.step(True).lower(setup.state, setup.pool, None).compile().as_text()
  padded = len(setup.pool.valid)
  gathers = [line for line in text.splitlines() if "all-gather" in line and f"[{padded}" in line]
  assert not gathers, gathers


@pytest.mark.parametrize("name", ["rs2", "infobatch", "loss", "rep_div"])
def test_what_is_dense_leaves_the_cond_in_place(name):
  # The compiled program copies nothing of the pool's length, but for flags of one byte and the
  # weights of a plan that has them: old and new ones, in either branch.
  setup = Setup(name)
  text = setup.step(True).lower(setup.state, setup.pool, None).compile().as_text()
  padded = len(setup.pool.valid)
  assert "conditional(" in text
  assert f"[{padded}" in text
  copies = re.findall(rf"= (?!pred)\w+\[{padded}[^=]* copy\(.*", text)
  assert len(copies) <= (2 if setup.selector.weighted else 0), copies


@pytest.mark.parametrize("name", ["rs2", "infobatch", "rep_div"])
def test_ids_of_a_plan_are_the_batches_that_the_steps_train_on(name):
  setup = Setup(name)
  state = setup.planned()
  steps = int(state.plan.count) // BATCH
  ids = make_plan_ids(mesh=setup.mesh, batch_size=BATCH, steps=steps)(
    state.key, state.plan, state.step
  )
  update, trained = setup.step(False), np.zeros(len(setup.pool.valid), int)
  for step in range(steps):
    state, _ = update(state, setup.pool, None)
    np.add.at(trained, np.asarray(ids[step]), 1)
    np.testing.assert_array_equal(state.exposure.times_selected, trained)


@pytest.mark.parametrize("devices", [1, 8])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(devices):
  whole, losses_whole = Setup("infobatch", devices=devices).run(20)
  parts, losses_parts = Setup("infobatch", devices=devices, accumulate=4).run(20)
  # The same sums in another order, carried over 20 steps of AdamW.
  np.testing.assert_allclose(losses_whole, losses_parts, rtol=1e-4)
  np.testing.assert_array_equal(whole.exposure.first_step, parts.exposure.first_step)


def test_parameters_split_over_a_second_axis_train_as_whole_ones():
  one, losses_one = Setup("rep_div").run(30)
  setup = Setup("rep_div", devices=8, fsdp=4)
  split, losses_split = setup.run(30)
  # The promise of the design for other devices; gradients are summed in another order.
  np.testing.assert_allclose(losses_one, losses_split, rtol=1e-4)
  np.testing.assert_array_equal(one.exposure.times_selected, split.exposure.times_selected)
  kernel = split.params["layers"][0]["kernel"].get_value()
  assert kernel.sharding.spec == jax.P(None, "fsdp")
  assert kernel.addressable_shards[0].data.shape == (12, 4)
  moments = [x for x in jax.tree.leaves(split.opt_state) if x.shape == (12, 16)]
  assert moments
  assert all(x.sharding.spec == jax.P(None, "fsdp") for x in moments)


def test_a_rule_that_does_not_fit_is_refused():
  mesh = jsel.make_mesh(jax.devices()[:4], fsdp=4)
  with pytest.raises(ValueError, match=r"'head' asks for \('fsdp',\) of head.bias"):
    parameter_sharding({"head": {"bias": np.zeros(5)}}, mesh, (("head", ("fsdp",)),))
  with pytest.raises(ValueError, match=r"sharding.fsdp=3 does not divide 4 devices"):
    jsel.make_mesh(jax.devices()[:4], fsdp=3)


@pytest.mark.parametrize("name", ["rs2", "loss", "rep_div", "rep_div_plain"])
def test_picks_among_candidates_are_trained_on_and_nothing_else(name):
  one, eight = (run_candidates(name, devices) for devices in (1, 8))
  for (ids, before, after, loss), (_, _, other, other_loss) in zip(one, eight, strict=True):
    trained = after - before
    assert trained.sum() == BATCH
    assert set(np.flatnonzero(trained)) <= set(ids.tolist())
    np.testing.assert_allclose(loss, other_loss, rtol=1e-4)
    if name != "loss":  # which goes by losses, whose last bits differ
      np.testing.assert_array_equal(after, other)


def run_candidates(name, devices, offered=160):
  setup = Setup(name, devices=devices, ratio=BATCH / offered)
  step = make_candidate_step(
    setup.learner, setup.selector, setup.state, mesh=setup.mesh, batch_size=BATCH
  )
  state, rng, made = setup.state, np.random.default_rng(0), []
  columns = {name: np.asarray(x) for name, x in setup.pool.rows.items()}
  for _ in range(6):
    ids = rng.choice(SIZE, offered, replace=False).astype(np.int32)
    rows = columns["inputs"][ids], columns["labels"][ids]
    rows = jax.device_put(rows, rows_sharding(setup.mesh))
    before = np.array(state.exposure.times_selected)
    state, metrics = step(state, Pool({}, setup.pool.valid), Given(*rows, jnp.asarray(ids)))
    made.append((ids, before, np.array(state.exposure.times_selected), metrics["loss"]))
  np.testing.assert_array_equal(state.selector.rows["planned"], state.exposure.times_selected)
  return made


def test_the_loss_selector_trains_on_the_hardest_candidates():
  setup = Setup("loss", epsilon=0.0)
  ids = jnp.arange(160, dtype=jnp.int32)
  given = Given(setup.pool.rows["inputs"][:160], setup.pool.rows["labels"][:160], ids)
  said = setup.learner.score(setup.state.params, setup.state.variables, given.inputs, given.labels)[
    "loss"
  ]
  hardest = set(np.argsort(-np.asarray(said))[:BATCH].tolist())
  step = make_candidate_step(
    setup.learner, setup.selector, setup.state, mesh=setup.mesh, batch_size=BATCH
  )
  state, _ = step(setup.state, Pool({}, setup.pool.valid), given)
  assert set(np.flatnonzero(state.exposure.times_selected).tolist()) == hardest


def test_a_plan_of_every_step_is_in_no_cond():
  def conds(refresh_steps):
    setup = Setup(refresh_steps=refresh_steps)
    jaxpr = setup.step(True).trace(setup.state, setup.pool, None).jaxpr
    return str(jaxpr).count(" cond[")

  assert conds(1) < conds(2)


@pytest.mark.parametrize(
  ("platform", "convolutional", "refresh_steps", "fused", "steps"),
  [
    ("cpu", False, 0, False, dispatch.SCANNED_STEPS),
    ("cpu", False, 1, True, dispatch.SCANNED_STEPS),
    ("cpu", True, 0, False, 1),
    ("cpu", True, 1, True, 1),
    ("gpu", True, 0, True, dispatch.SCANNED_STEPS),
  ],
)
def test_the_dispatch_goes_by_platform_model_and_plans(
  platform, convolutional, refresh_steps, fused, steps
):
  options = {"convolutional": convolutional, "refresh_steps": refresh_steps}
  how = dispatch.choose("auto", platform=platform, resident=True, **options)
  assert (how.fused, how.steps) == (fused, steps)
