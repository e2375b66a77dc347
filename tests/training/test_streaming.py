"""The feeds of train.py in one process: a run of few rows, put together as train.py does it."""

import functools

import jax
import numpy as np
import pytest

import jsel
from jsel import selectors
from jsel.data.arrays import Split
from jsel.data.rows import ArrayRows
from jsel.selectors import Pool
from jsel.training import collect, evaluate, memory, streaming
from jsel.training.config import base_config
from jsel.training.fit import fit_selector
from jsel.training.runners import make_runner
from jsel.training.setup import FEEDS, Examples, make_setup, pool_shapes
from jsel.training.state import Keys, init_state

SIZE, BATCH, CLASSES, FEATURES = 420, 32, 5, 12
STEPS = 32  # of every run: 2 to 5 plans
WITH_PICK = ("rs2", "loss", "rep_div", "rep_div_plain")
FITTED = ("dac_rounds", "rep_div", "rep_div_plain")
READING = {"threads": 2, "ahead": 4}


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax and Flax do not keep to strict promotion themselves.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def clusters():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES, SIZE).astype(np.int32)
  inputs = rng.standard_normal((CLASSES, FEATURES))[labels] + rng.standard_normal((SIZE, FEATURES))
  return inputs.astype(np.float32), labels


def configuration(name="rs2", feed="resident", **selector):
  config = base_config()
  config.batch_size, config.steps, config.feed = BATCH, STEPS + 1, feed
  config.model.mlp.hidden = (16,)
  config.selector.name = name
  config.selector.dac_rounds.clusters = 8
  config.selector.rep_div.latents = 16
  config.selector.rep_div.sae_steps = 5
  config.selector.rep_div.rank = config.selector.rep_div_plain.rank = 8
  if feed != "resident" and name in FITTED:
    # In the middle of a plan; the other one trains by the state that it begins with.
    config.selector.fit_step = 7 if name == "rep_div" else STEPS
  config.threads, config.read_ahead = 2, 4
  for key, value in selector.items():
    config.selector[key] = value
  return config


class Run:
  """What train.py makes of a configuration, without files.

  ``given`` are inputs and labels, `SIZE` of them, in place of `clusters`.
  """

  def __init__(self, config, devices=1, fsdp=1, given=None):
    self.config = config
    self.mesh = jsel.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    inputs, labels = given or clusters()
    self.rows = ArrayRows(inputs, labels, what="clusters", classes=CLASSES)
    self.examples = Examples(SIZE, inputs.shape[1:], inputs.dtype, CLASSES, lambda x: x)
    self.setup = make_setup(config, self.examples, self.mesh)
    split = jsel.sharding.rows_sharding(self.mesh)
    placed = lambda x: jax.device_put(jsel.pad_rows(x), split)
    self.whole = Pool(
      {"inputs": placed(inputs), "labels": placed(labels)}, placed(np.ones(SIZE, bool))
    )
    self.pool = self.whole if config.feed == "resident" else Pool({}, self.whole.valid)
    self.keys = Keys(*jax.random.split(jax.random.key(3), 3))
    self.state = self.begin(self.pool)
    self.step = 0

  def begin(self, pool):
    make = functools.partial(init_state, self.keys, self.setup.make_model)
    optimizer, selector = self.setup.learner.optimizer, self.setup.selector
    rules = self.config.sharding.rules
    return make(optimizer, selector, pool, batch_size=BATCH, mesh=self.mesh, rules=rules)

  def runner(self):
    return make_runner(
      self.config,
      self.setup,
      self.state,
      self.rows,
      step=self.step,
      candidates_key=self.keys.selector,
      mesh=self.mesh,
      note=lambda text: None,
    )

  def features(self):
    reading = {"size": len(self.pool.valid), "batch_size": 64, "mesh": self.mesh, **READING}
    batches = collect.read_batches(self.rows, **reading)
    model = (self.setup.learner, self.state.params, self.state.variables)
    found = collect.collect(
      *model, batches, ("features",), size=len(self.pool.valid), mesh=self.mesh
    )
    return found["features"]

  def fit(self):
    key, selector = jax.random.key(5), self.setup.selector
    fit = fit_selector(selector, key, self.features(), self.pool, self.mesh)
    self.state = self.state._replace(selector=selectors.with_fit(self.state.selector, fit.columns))

  def go(self, stop, look_every=50, seen=None):
    """Runs up to ``stop``; ``seen`` is called with the exposure before and after every step."""
    runner, losses = self.runner(), []
    fit_step = self.config.selector.fit_step
    try:
      with jax.transfer_guard("disallow"):
        while self.step < stop:
          if self.setup.selector.fit and self.step == fit_step:
            with jax.transfer_guard("allow"):
              self.fit()
          looks = [(self.step // look_every + 1) * look_every, stop]
          looks += [fit_step] if fit_step > self.step else []
          self.state, metrics, self.step = runner(self.state, self.pool, self.step, min(looks))
          losses.append(metrics["loss"])
          if seen:
            seen(self.step, self.state)
    finally:
      runner.close()
    return np.concatenate([np.ravel(x) for x in jax.device_get(losses)])


def exposure_of(run):
  exposure = jax.device_get(run.state.exposure)
  return {name: x[:SIZE] for name, x in exposure._asdict().items() if name != "last_loss"}


def same_choice(one, other):
  for name, column in exposure_of(one).items():
    np.testing.assert_array_equal(column, exposure_of(other)[name], err_msg=name)


def plain(tree):
  is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.device_get(jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree))


# ---- Planned ------------------------------------------------------------------------------------


@functools.cache
def resident(name, devices, **selector):
  config = configuration(name, "planned", **selector)  # with a fit that it can make too
  config.feed, config.dispatch = "resident", "step"
  run = Run(config, devices)
  return run, run.go(STEPS)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", selectors.SELECTORS)
def test_a_feed_trains_on_what_the_resident_pool_does(name, devices):
  run = Run(configuration(name, "planned"), devices)
  # Where the model has a say its last bits may matter, which are those of as many devices.
  model_matters = run.setup.selector.feedback or name == "rep_div"
  expected, losses = resident(name, devices if model_matters else 1)
  assert not run.pool.rows
  found = run.go(STEPS)
  same_choice(run, expected)
  # Programs of the same formula, which may round differently, over 32 steps of AdamW.
  np.testing.assert_allclose(found, losses, rtol=1e-4)
  assert exposure_of(run)["times_selected"].sum() == STEPS * BATCH


@pytest.mark.parametrize(("name", "ids"), [("rs2", 1), ("infobatch", 3 * BATCH), ("rep_div", 96)])
def test_ids_that_are_published_in_pieces_are_those_of_the_plan(name, ids, monkeypatch):
  # A step at a time, and three of the 6 to 13 that a plan has.
  monkeypatch.setattr(streaming, "PUBLISHED_IDS", ids)
  run = Run(configuration(name, "planned"))
  run.go(STEPS)
  same_choice(run, resident(name, 1)[0])


@pytest.mark.parametrize("horizon", [0, 3])
def test_plans_made_ahead_are_those_that_would_be_made_later(horizon, monkeypatch):
  monkeypatch.setattr(streaming, "HORIZON", horizon)
  run = Run(configuration("rs2", "planned"))
  run.go(STEPS)
  same_choice(run, resident("rs2", 1)[0])


@pytest.mark.parametrize(
  ("name", "ahead"), [("rs2", [True, True]), ("loss", [False, False]), ("rep_div", [False, True])]
)
def test_a_plan_is_made_ahead_only_without_feedback_and_after_the_fit(name, ahead):
  run, found = Run(configuration(name, "planned")), []
  runner = run.runner()
  try:
    while len(found) < 2:
      if run.setup.selector.fit and run.step == 7:
        run.fit()
      if run.step and run.step == runner.plan_end:
        found.append(runner._feed.published > run.step)
      run.state, _, run.step = runner(run.state, run.pool, run.step, 50)
  finally:
    runner.close()
  assert found == ahead


@pytest.mark.parametrize(
  ("name", "devices", "refresh_steps"), [("rs2", 8, 1), ("loss", 1, 3), ("rep_div_plain", 1, 3)]
)
def test_a_plan_every_few_steps(name, devices, refresh_steps):
  expected, losses = resident(name, devices, refresh_steps=refresh_steps)
  run = Run(configuration(name, "planned", refresh_steps=refresh_steps), devices)
  np.testing.assert_allclose(run.go(STEPS), losses, rtol=1e-4)
  same_choice(run, expected)


@pytest.mark.parametrize(
  ("name", "feed"),
  [
    ("rs2", "planned"),
    ("infobatch", "planned"),
    ("rep_div", "planned"),
    ("rep_div", "super_batch"),
  ],
)
def test_going_on_in_the_middle_of_a_plan_is_as_never_stopping(name, feed):
  whole, parts = (Run(configuration(name, feed)) for _ in range(2))
  losses = whole.go(STEPS)
  # Within a plan, at the step of the fit, behind it, and where a plan of rs2 ends.
  pieces = [parts.go(stop) for stop in (4, 7, 8, 13, STEPS)]
  np.testing.assert_array_equal(losses, np.concatenate(pieces))
  jax.tree.map(np.testing.assert_array_equal, plain(whole.state), plain(parts.state))


def test_parameters_on_a_second_axis_change_nothing_with_a_feed():
  expected, losses = resident("rs2", 1)
  run = Run(configuration("rs2", "planned"), 8, fsdp=4)
  np.testing.assert_allclose(run.go(STEPS), losses, rtol=1e-4)
  same_choice(run, expected)


def test_measuring_changes_nothing():
  run = Run(configuration("rs2", "planned"))
  runner = run.runner()
  try:
    before = jax.device_get(run.state.exposure)
    overhead = runner.measure(run.state, run.pool)
    assert 0 < overhead.share < 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(run.state.exposure))
  finally:
    runner.close()
  run.go(STEPS)
  same_choice(run, resident("rs2", 1)[0])


# ---- Candidates ---------------------------------------------------------------------------------


@functools.cache
def picked(name, devices):
  """The exposure after every step, and what every step was offered."""
  run = Run(configuration(name, "super_batch"), devices)
  offered, times, runner = [], [], run.runner()
  publish = runner._feed.publish
  runner._feed.publish = lambda first, ids: (offered.append(ids.copy()), publish(first, ids))
  run.runner = lambda: runner
  # A copy, which is asked for in so many words: the state is donated, in steps that move nothing.
  copy = lambda state: np.array(jax.device_get(state.exposure.times_selected))
  losses = run.go(STEPS, seen=lambda step, state: times.append(copy(state)))
  return run, np.concatenate(offered), np.array(times), losses


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", WITH_PICK)
def test_a_step_picks_a_batch_of_what_it_is_offered(name, devices):
  run, offered, times, _ = picked(name, devices)
  assert offered.shape == (STEPS + 1, 2 * BATCH)
  before = np.zeros_like(times[0])
  for ids, after in zip(offered[:STEPS], times, strict=True):
    trained = after - before
    assert trained.sum() == BATCH
    assert set(np.flatnonzero(trained)) <= set(ids.tolist())
    before = after
  # Every pass over the pool offers each row once.
  stream = offered.ravel()
  assert len(stream) > 4 * SIZE
  for first in range(0, len(stream) - SIZE, SIZE):
    np.testing.assert_array_equal(np.sort(stream[first : first + SIZE]), np.arange(SIZE))
  np.testing.assert_array_equal(run.state.selector.rows["planned"], times[-1])


@pytest.mark.parametrize("name", WITH_PICK)
def test_eight_devices_pick_what_one_does(name):
  one, offered, _, losses = picked(name, 1)
  eight, offered_to_eight, _, losses_of_eight = picked(name, 8)
  np.testing.assert_array_equal(offered, offered_to_eight)
  if not one.setup.selector.feedback and name != "rep_div":
    same_choice(one, eight)
  # Up to the fit, which is on features of models that differ in their last bits.
  np.testing.assert_allclose(losses[:7], losses_of_eight[:7], rtol=1e-4)


def test_candidates_that_are_published_in_pieces_are_the_same(monkeypatch):
  monkeypatch.setattr(streaming, "PUBLISHED_IDS", 5 * BATCH)
  run = Run(configuration("rs2", "super_batch"))
  run.go(STEPS)
  same_choice(run, picked("rs2", 1)[0])


# ---- Pairs that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize("name", selectors.SELECTORS)
@pytest.mark.parametrize("feed", FEEDS)
def test_every_other_pair_names_those_that_can(name, feed):
  mesh = jsel.make_mesh(jax.devices()[:1])
  examples = Examples(SIZE, (FEATURES,), np.dtype(np.float32), CLASSES, lambda x: x)
  config = configuration(name, feed)
  if FEEDS[feed] == "pool" or name in WITH_PICK:
    setup = make_setup(config, examples, mesh)
    assert FEEDS[feed] in setup.selector.scope
    if name in FITTED and feed != "resident":
      config.selector.fit_step = 0
      with pytest.raises(ValueError, match=f"{name} fits on features .* set selector.fit_step"):
        make_setup(config, examples, mesh)
    return
  able = "loss, rep_div, rep_div_plain, rs2"
  with pytest.raises(ValueError, match=f"{name} does not work with feed='super_batch'.*: {able}$"):
    make_setup(config, examples, mesh)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"feed": "planed"}, "feed must be 'resident' or 'planned' or 'super_batch', got 'planed'"),
    ({"feed": "super_batch", "refresh_steps": 2}, "refresh_steps=2 with feed='super_batch'"),
    ({"feed": "super_batch", "ratio": 0.01}, "picks from 3200 rows and the pool has 420"),
    ({"feed": "planned", "fit_step": 3}, "fit_step=3 with rs2, which fits nothing"),
  ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
  mesh = jsel.make_mesh(jax.devices()[:1])
  examples = Examples(SIZE, (FEATURES,), np.dtype(np.float32), CLASSES, lambda x: x)
  with pytest.raises(ValueError, match=message):
    make_setup(configuration("rs2", **options), examples, mesh)


def test_a_feed_has_no_scanned_steps():
  config = configuration("rs2", "planned")
  config.dispatch = "scan"
  with pytest.raises(ValueError, match="dispatch='scan' needs feed='resident'"):
    Run(config).runner()


# ---- Collecting and evaluating rows that are read -----------------------------------------------


@pytest.mark.parametrize(
  ("devices", "fsdp", "batch_size"), [(1, 1, 200), (8, 1, 64), (8, 1, 1024), (8, 2, 200)]
)
def test_collecting_from_rows_is_collecting_from_the_pool(devices, fsdp, batch_size):
  run = Run(configuration(), devices, fsdp)
  size, options = len(run.whole.valid), {"batch_size": batch_size, "mesh": run.mesh}
  model = (run.setup.learner, run.state.params, run.state.variables)
  gather = lambda batches: collect.collect(
    *model, batches, ("features", "loss"), size=size, mesh=run.mesh
  )
  held = gather(collect.resident_batches(run.whole, **options))
  read = gather(collect.read_batches(run.rows, size=size, **options, **READING))
  inputs, labels = clusters()
  plain = run.setup.learner.score(*model[1:], inputs, labels)
  for name in held:
    assert held[name].sharding == read[name].sharding == run.whole.valid.sharding
    np.testing.assert_array_equal(held[name][:SIZE], read[name][:SIZE])
    # In float32, in batches of another size.
    np.testing.assert_allclose(held[name][:SIZE], plain[name], rtol=1e-5, atol=1e-6)
    assert np.isfinite(np.asarray(read[name])).all()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [64, 512])
def test_a_split_that_is_read_is_evaluated_as_one_on_the_devices(devices, batch_size):
  run = Run(configuration(), devices)
  learner = run.setup.learner
  score = evaluate.make_evaluation(
    learner.graphdef, learner.loss_function, learner.normalize, mesh=run.mesh
  )
  options = {"batch_size": batch_size, "mesh": run.mesh, **READING}
  held = evaluate.batches(Split(*clusters()), **options)
  read = evaluate.batches(run.rows, **options)
  assert isinstance(read, evaluate.ReadBatches)
  model = (run.state.params, run.state.variables)
  with jax.transfer_guard("disallow"):
    expected, found, again = (score(*model, batches) for batches in (held, read, read))
  assert found == again
  assert found["accuracy"] == expected["accuracy"]
  np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)


# ---- Memory -------------------------------------------------------------------------------------


def planned_memory(run):
  shapes = pool_shapes(run.examples, run.config.feed, run.mesh)
  candidates = run.setup.candidates
  return memory.plan_memory(
    run.setup.learner,
    run.begin(shapes),
    shapes,
    batch_size=BATCH,
    input_shape=run.examples.input_shape,
    input_dtype=run.examples.input_dtype,
    given_rows=0 if run.config.feed == "resident" else 2 * (candidates or BATCH),
    device=jax.devices()[0],
  )


def bytes_of(tree):
  """Bytes that device 0 holds of ``tree``."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    parts = [shard.data for shard in leaf.addressable_shards if shard.device == jax.devices()[0]]
    total += sum(part.nbytes for part in parts)
  return total


@pytest.mark.parametrize(
  ("name", "feed", "devices", "fsdp"),
  [
    ("infobatch", "resident", 1, 1),
    ("infobatch", "resident", 8, 1),
    ("rep_div", "planned", 8, 4),
    ("loss", "super_batch", 8, 1),
  ],
)
def test_the_memory_plan_counts_the_bytes_that_arrays_take(name, feed, devices, fsdp):
  config = configuration(name, feed)
  config.model.mlp.hidden = (16, 2048)  # large enough to be split
  run = Run(config, devices, fsdp)
  kinds, state = planned_memory(run).kinds, run.state
  assert kinds["pool"] == bytes_of(run.pool)
  assert kinds["selector"] == bytes_of(state.selector)
  assert kinds["plan"] == bytes_of(state.plan)
  assert kinds["exposure"] == bytes_of(state.exposure)
  assert kinds["parameters"] == bytes_of(state.params) + bytes_of(state.variables)
  assert kinds["gradients"] == bytes_of(state.params)
  assert kinds["optimizer"] == bytes_of(state.opt_state)
  assert kinds["activations"] >= BATCH * 2048 * 4 // devices
  if fsdp > 1:
    assert kinds["parameters"] < 4 * sum(x.size for x in jax.tree.leaves(state.params)) / 2


def test_a_run_that_does_not_fit_is_refused_with_what_to_change():
  run = Run(configuration())
  plan = planned_memory(run)
  notes = []
  memory.check_fits(plan, feed="resident", note=notes.append)
  assert "pool 26.5 KiB" in notes[0]
  before = {id(x) for x in jax.live_arrays()}
  large = pool_shapes(run.examples._replace(size=10**9), "resident", run.mesh)
  plan = plan._replace(kinds={**plan.kinds, "pool": memory.device_bytes(large)}, limit=2**34)
  with pytest.raises(ValueError, match=r"does not fit: .* use --config.feed=planned$"):
    memory.check_fits(plan, feed="resident", note=notes.append)
  assert not [x for x in jax.live_arrays() if id(x) not in before]  # and nothing was allocated
  plan = plan._replace(kinds={**plan.kinds, "optimizer": 2**45})
  with pytest.raises(ValueError, match=r"optimizer takes 32 TiB: raise --config.sharding.fsdp"):
    memory.check_fits(plan, feed="planned", note=notes.append)
