"""What every selector must keep to."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel import selectors
from jsel.selectors import Batch, Candidates, Columns, Plan, Pool, methods

SIZE, ROWS, BATCH, STEPS = 700, 210, 32, 60  # 700 rows leave 324 of padding
SMALL_FIT = {"rank": 4, "latents": 16, "active": 3, "sae_steps": 20, "sae_batch_size": 64}
VARIANTS = {name: {} for name in selectors.SELECTORS}
VARIANTS["rep_div"] = SMALL_FIT
VARIANTS["rep_div_plain"] = SMALL_FIT
VARIANTS["dac_rounds"] = {"clusters": 6}
VARIANTS |= {
  "rep_div/loss_aware": {**SMALL_FIT, "loss_aware": True},
  "rep_div/weighted": {**SMALL_FIT, "importance_weights": True},
  "dac_rounds/of_this_round": {"clusters": 6, "compound": False, "temperature": 0.5},
}


def adam(learning_rate):
  """Optax's, which does not keep to strict promotion itself."""
  init, update = optax.adam(learning_rate)

  def lenient_update(*arguments):
    with jax.numpy_dtype_promotion("standard"):
      return update(*arguments)

  return optax.GradientTransformation(init, lenient_update)


def make(variant, axis_name=None, rows=ROWS):
  name = variant.split("/")[0]
  rows = SIZE if name == "full" else rows
  return selectors.make(
    name,
    size=SIZE,
    rows=rows,
    total_steps=STEPS,
    optimizer=adam,
    axis_name=axis_name,
    **VARIANTS[variant],
  )


@pytest.fixture(scope="module")
def features():
  rng = np.random.default_rng(0)
  # Clusters of unlike sizes, so that factors are unlike in frequency.
  cluster = rng.choice(6, SIZE, p=[0.5, 0.2, 0.15, 0.08, 0.05, 0.02])
  x = rng.standard_normal((6, 8))[cluster] * 3 + 0.3 * rng.standard_normal((SIZE, 8))
  return jsel.pad_rows(x.astype(np.float32), 1e9)


def make_pool(features):
  valid = np.arange(len(features)) < SIZE
  return Pool({"features": features, "labels": np.zeros(len(features), np.int32)}, valid)


def feedback_of(batch, step):
  """Losses as a function of the row and the step alone."""
  value = (batch.index * 37 % 101 + step).astype(jnp.float32) / 101
  return {"loss": value, "probability": jnp.exp(-value), "gap": value}


def chosen(plan):
  return np.flatnonzero(plan.mask).astype(np.int32)


def batch_of(index, plan):
  weight = jnp.ones(len(index)) if plan.weight is None else jnp.asarray(plan.weight)[index]
  return Batch(index, weight.astype(jnp.float32), jnp.ones(len(index), bool))


def run(variant, features, devices, plans=6, fit=None):
  """Plans and trains ``plans`` times on a mesh; plans, states and the fit."""
  mesh = jsel.make_mesh(jax.devices()[:devices])
  selector = make(variant, "data")
  columns, rows, same = Columns(P("data"), P()), P("data"), P()
  over = lambda f, i, o: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=i, out_specs=o))
  pool = jax.device_put(make_pool(features), jax.NamedSharding(mesh, rows))
  key = jax.random.key(7)
  if selector.fit and fit is None:
    fit = over(selector.fit, (same, rows, rows), columns)(key, pool.rows["features"], pool)
  if fit is None:
    state = over(lambda k, p: selector.init(k, p, None), (same, rows), columns)(key, pool)
  else:
    fit = jax.tree.map(np.asarray, fit)
    state = over(selector.init, (same, rows, columns), columns)(key, pool, fit)
  select = over(
    selector.select,
    (same, columns, rows, same),
    (columns, Plan(rows, rows if selector.weighted else None), same),
  )
  update = over(selector.update, (columns, same, same), columns)
  plans_made = []
  for step in range(0, 10 * plans, 10):
    state, plan, _ = select(jax.random.fold_in(key, step), state, pool, jnp.int32(step))
    plans_made.append(jax.tree.map(np.asarray, plan))
    index = chosen(plan)[: 4 * BATCH]
    for first in range(0, len(index) // BATCH * BATCH, BATCH):
      batch = batch_of(index[first : first + BATCH], plan)
      state = update(state, batch, feedback_of(batch, step))
  return plans_made, state, fit


@pytest.fixture(scope="module")
def on_one_device(features):
  cache = {}

  def get(variant):
    if variant not in cache:
      cache[variant] = run(variant, features, 1)
    return cache[variant]

  return get


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_has_rows_of_the_pool_and_no_padding(on_one_device, variant):
  selector = make(variant)
  plans, state, _ = on_one_device(variant)
  total = np.zeros(SIZE, int)
  for plan in plans:
    assert plan.mask.dtype == bool
    assert plan.mask.shape == (len(state.rows["planned"]),)
    index = chosen(plan)
    assert selector.least <= len(index) <= selector.most
    assert index.max() < SIZE
    assert selector.weighted == (plan.weight is not None)
    if selector.weighted:
      assert plan.weight.dtype == np.float32
      assert np.isfinite(plan.weight).all()
      assert (plan.weight[index] > 0).all()
    total[index] += 1
  planned = np.asarray(state.rows["planned"])
  np.testing.assert_array_equal(planned[:SIZE], total)
  assert not planned[SIZE:].any()


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_choice_is_the_same_on_any_device_count(on_one_device, features, variant, devices):
  # From the same fit and the same feedback: bitwise, weights too.
  plans, state, fit = on_one_device(variant)
  others, other_state, _ = run(variant, features, devices, fit=fit)
  for plan, other in zip(plans, others, strict=True):
    jax.tree.map(np.testing.assert_array_equal, plan, other)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), state.rows, other_state.rows)


@pytest.mark.parametrize("variant", ["rep_div", "rep_div_plain", "dac_rounds"])
def test_a_fit_is_the_same_on_any_device_count(on_one_device, features, variant):
  # Bitwise: eight forced devices share one process and so one thread pool size.
  _, _, fit = on_one_device(variant)
  _, _, other = run(variant, features, 8, plans=1)
  jax.tree.map(np.testing.assert_array_equal, fit, jax.tree.map(np.asarray, other))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_keeps_its_shape_and_nothing_retraces(features, variant):
  selector = make(variant)
  pool = jax.tree.map(jnp.asarray, make_pool(features))
  state = selector.init(jax.random.key(0), pool, None)
  traces = []

  @jax.jit
  def one(key, state, step):
    traces.append(step)
    state, plan, _ = selector.select(key, state, pool, step)
    batch = batch_of(jnp.flatnonzero(plan.mask, size=BATCH).astype(jnp.int32), plan)
    return selector.update(state, batch, feedback_of(batch, step))

  before = jax.tree.map(jax.typeof, state)
  for step in range(4):
    state = one(jax.random.key(step), state, jnp.int32(step))
  assert jax.tree.map(jax.typeof, state) == before
  assert len(traces) == 1


@pytest.mark.parametrize("variant", ["full", "random", "rs2", "infobatch", "loss"])
def test_jit_chooses_as_eager_does(features, variant):
  selector = make(variant)
  pool = jax.tree.map(jnp.asarray, make_pool(features))
  state = selector.init(jax.random.key(0), pool, None)
  arguments = (jax.random.key(1), state, pool, jnp.int32(0))
  eager, compiled = selector.select(*arguments), jax.jit(selector.select)(*arguments)
  jax.tree.map(np.testing.assert_array_equal, eager[1], compiled[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_fit_the_pool_is_still_visited_evenly(features, variant):
  if variant == "random":
    pytest.skip("the subset is fixed")
  selector = make(variant)
  pool = jax.tree.map(jnp.asarray, make_pool(features))
  state = selector.init(jax.random.key(0), pool, None)
  select = jax.jit(selector.select)
  for step in range(12):
    state, plan, _ = select(jax.random.key(step), state, pool, jnp.int32(step))
    if selector.feedback:
      batch = batch_of(jnp.asarray(chosen(plan)), plan)
      feedback = dict.fromkeys(("loss", "probability", "gap"), jnp.ones(len(batch.index)))
      state = selector.update(state, batch, feedback)
  planned = np.asarray(state.rows["planned"])[:SIZE]
  # 12 plans of 30 %: 3.6 visits each; `loss` has only its draws to even ties out.
  assert planned.min() >= (0 if variant == "loss" else 1)
  assert planned.mean() == pytest.approx(12 * selector.most / SIZE, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_feedback_never_wins_and_never_spreads(features, variant):
  selector = make(variant)
  if not selector.feedback:
    assert selector.update("state", None, None) == "state"
    return
  pool = jax.tree.map(jnp.asarray, make_pool(features))
  state = selector.init(jax.random.key(0), pool, None)
  index = jnp.arange(SIZE, dtype=jnp.int32)
  losses = jnp.where(index < 5, jnp.nan, 1 + index.astype(jnp.float32) / SIZE)
  batch = Batch(index, jnp.ones(SIZE), jnp.ones(SIZE, bool))
  feedback = {"loss": losses, "probability": jnp.exp(-losses), "gap": losses}
  state = selector.update(state, batch, feedback)
  state, plan, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(1))
  assert selector.least <= len(chosen(plan)) <= selector.most
  assert plan.weight is None or np.isfinite(np.asarray(plan.weight)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_rows_can_be_planned(features, variant):
  selector = make(variant, rows=SIZE)
  pool = jax.tree.map(jnp.asarray, make_pool(features))
  state = selector.init(jax.random.key(0), pool, None)
  _, plan, _ = jax.jit(selector.select)(jax.random.key(1), state, pool, jnp.int32(0))
  np.testing.assert_array_equal(chosen(plan), np.arange(SIZE))


CANDIDATES, PICKED = 80, 24
PICKING = [variant for variant in VARIANTS if "candidates" in make(variant).scope]


def test_what_a_selector_declares_is_what_it_has():
  for variant in VARIANTS:
    selector = make(variant)
    assert set(selector.scope) <= {"pool", "candidates"}
    assert ("candidates" in selector.scope) == (selector.pick is not None)


def pick_often(variant, features, devices, fit, rounds=18):
  """Picks of candidates that pass over the pool twice, on a mesh, and the state after them."""
  mesh = jsel.make_mesh(jax.devices()[:devices])
  selector = make(variant, "data", rows=SIZE * PICKED // CANDIDATES)
  columns, rows, same = Columns(P("data"), P()), P("data"), P()
  over = lambda f, i, o: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=i, out_specs=o))
  pool = jax.device_put(make_pool(features), jax.NamedSharding(mesh, rows))
  key = jax.random.key(7)
  if fit is None:
    state = over(lambda k, p: selector.init(k, p, None), (same, rows), columns)(key, pool)
  else:
    state = over(selector.init, (same, rows, columns), columns)(key, pool, fit)
  pick = over(
    lambda k, s, p, c, t: selector.pick(k, s, p, c, PICKED, t),
    (same, columns, rows, same, same),
    (columns, same),
  )
  update = over(selector.update, (columns, same, same), columns)
  order = np.concatenate([np.random.default_rng(e).permutation(SIZE) for e in range(3)])
  made = []
  for step in range(rounds):
    ids = jnp.asarray(order[step * CANDIDATES : (step + 1) * CANDIDATES], jnp.int32)
    given = feedback_of(Batch(ids, None, None), step)
    outputs = {name: given[name] for name in selector.feedback}
    candidates = Candidates(ids, outputs)
    state, picks = pick(jax.random.fold_in(key, step), state, pool, candidates, jnp.int32(step))
    picks = jax.tree.map(np.asarray, picks)
    batch = Batch(ids[picks.position], picks.weight, jnp.ones(PICKED, bool))
    state = update(state, batch, feedback_of(batch, step))
    made.append((picks, np.asarray(batch.index)))
  return made, state


@pytest.mark.parametrize("variant", PICKING)
def test_picks_are_distinct_candidates_and_the_same_on_any_device_count(
  on_one_device, features, variant
):
  _, _, fit = on_one_device(variant)
  made, state = pick_often(variant, features, 1, fit)
  total = np.zeros(len(features), int)
  for picks, index in made:
    assert picks.position.shape == picks.weight.shape == (PICKED,)
    assert len(np.unique(picks.position)) == PICKED
    assert picks.position.min() >= 0
    assert picks.position.max() < CANDIDATES
    assert (picks.weight > 0).all()
    np.add.at(total, index, 1)
  np.testing.assert_array_equal(state.rows["planned"], total)
  others, other_state = pick_often(variant, features, 8, fit)
  for (picks, _), (other, _) in zip(made, others, strict=True):
    jax.tree.map(np.testing.assert_array_equal, picks, other)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), state.rows, other_state.rows)


@pytest.mark.parametrize("variant", PICKING)
def test_candidates_without_a_finite_loss_are_not_preferred(features, variant):
  selector = make(variant, rows=SIZE * PICKED // CANDIDATES)
  pool = jax.tree.map(jnp.asarray, make_pool(features))
  state = selector.init(jax.random.key(0), pool, None)
  ids = jnp.arange(CANDIDATES, dtype=jnp.int32)
  losses = jnp.where(ids % 2 == 0, jnp.nan, ids.astype(jnp.float32))
  outputs = dict.fromkeys(selector.feedback, losses)
  _, picks = selector.pick(
    jax.random.key(1), state, pool, Candidates(ids, outputs), PICKED, jnp.int32(0)
  )
  assert len(np.unique(picks.position)) == PICKED
  if variant == "loss":
    finite = np.asarray(picks.position) % 2 == 1
    assert finite.sum() >= PICKED - round(0.1 * PICKED)


def test_unknown_names_are_refused_with_the_nearest():
  with pytest.raises(ValueError, match="no selector 'rs3': did you mean 'rs2'"):
    selectors.make("rs3")
  with pytest.raises(ValueError, match="no constant 'epsilom': did you mean 'epsilon'"):
    selectors.make("loss", size=10, rows=5, epsilom=0.2)
  with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got 1.5"):
    selectors.plan_rows("rs2", size=10, ratio=1.5)
  with pytest.raises(ValueError, match="no meaning for infobatch"):
    selectors.plan_rows("infobatch", size=10, ratio=0.5)


def test_every_constant_has_a_default_and_a_word_in_the_docstring():
  for name, build in selectors.SELECTORS.items():
    for constant, default in selectors.constants(name).items():
      assert default is not inspect.Parameter.empty, (name, constant)
      assert constant in inspect.getdoc(build), (name, constant)


FACTORIES = [
  *((name, build, {}) for name, build in methods.METHODS.items()),
  *((name, build, {"size": 900, "rows": 270, "total_steps": 10, "optimizer": optax.adam})
    for name, build in selectors.SELECTORS.items()),
]  # fmt: skip
NUMBERS = [
  pytest.param(name, build, context, constant.name, id=f"{name}.{constant.name}")
  for name, build, context in FACTORIES
  for constant in inspect.signature(build).parameters.values()
  if type(constant.default) in (int, float)
]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "build", "context", "constant"), NUMBERS)
def test_constants_that_are_no_finite_numbers_are_refused(name, build, context, constant, value):
  known = inspect.signature(build).parameters
  given = {key: known_value for key, known_value in context.items() if key in known}
  with pytest.raises(
    ValueError, match=rf"{name}\.{constant} must be a finite number, got .+: give"
  ):
    build(**given, **{constant: value})


def test_the_constants_that_are_tried_are_many():
  tried = {parameter.id for parameter in NUMBERS}
  assert len(tried) > 50
  assert tried > {"sensitivity.slope", "kmq.temperature", "crds_w.shrinkage", "rep_div.loss_floor"}
