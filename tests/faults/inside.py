"""train.py inside this process: a start takes a second, as compiled programs are kept between."""

import importlib
import signal
import unittest.mock

import jax
from absl import flags
from ml_collections import config_flags

from configs.digits import get_config
from jsel import data, models, sharding
from jsel.models.mlp import MLP
from jsel.models.resnet import Norm
from jsel.training import evaluate, runners, streaming

FITTED = ("dac_rounds", "rep_div", "rep_div_plain")
FIT_STEP = 3  # for the feeds whose pool is not at hand before the first step


class NormalizedMLP(MLP):
  """With batch statistics, which are part of what a resume has to bring back."""

  def __init__(self, *, rngs, input_shape, classes, dtype="float32", hidden=(16,)):
    super().__init__(
      rngs=rngs, input_shape=input_shape, classes=classes, dtype=dtype, hidden=hidden
    )
    self.norm = Norm(input_shape[-1], dtype="float32", rngs=rngs)

  def __call__(self, x, *, valid=None, train):
    return super().__call__(self.norm(x, valid=valid, train=train), train=train)


def configuration(name, feed="resident", *, steps, constants=None, **options):
  """The configuration of digits, its model and its fit small."""
  config = get_config()
  config.steps, config.feed, config.selector.name = steps, feed, name
  config.log_every, config.eval_every = 4, 10
  config.selector.rep_div.rank = config.selector.rep_div_plain.rank = 8
  config.selector.rep_div.latents, config.selector.rep_div.sae_steps = 32, 20
  config.selector.dac_rounds.clusters = 8
  config.selector[name].update(constants or {})
  if feed != "resident" and name in FITTED:
    config.selector.fit_step = FIT_STEP
  config.update(options)
  return config.lock()


def keeping(build, arguments):
  """``build``, whose results are kept by the identity of its first ``arguments`` and its options.

  The arguments after those are arrays, of which compiled programs depend on the shapes alone.
  """
  made = {}

  def call(*given, **options):
    key = (*map(id, given[:arguments]), *sorted((name, str(x)) for name, x in options.items()))
    if key not in made:
      made[key] = given[:arguments], build(*given, **options)  # ids are those of what is alive
    return made[key][1]

  return call


class Train:
  """Runs train.py in this process.

  Args:
    patch: a `pytest.MonkeyPatch`.
    on_step: called with the step that every dispatch ends at.
  """

  def __init__(self, patch, on_step=lambda step: None):
    with (  # of the same names as select.py's, which other tests import in this process
      unittest.mock.patch.object(config_flags, "DEFINE_config_file"),
      unittest.mock.patch.object(flags, "DEFINE_string"),
    ):
      self._module = importlib.import_module("train")
    self._calls, self._devices, self._told = None, 1, on_step
    self.dispatched = []  # where the dispatches of the last start ended
    make_mesh, make_runner = sharding.make_mesh, self._module.make_runner
    set_up, begin = self._module.make_setup, self._module.init_state
    setups, states = {}, {}

    def make_setup(config, examples, mesh):
      key = config.to_json(), mesh
      if key not in setups:
        setups[key] = set_up(config, examples, mesh)
      return setups[key]

    def init_state(keys, make_model, optimizer, selector, pool, **options):
      key = id(make_model), options["mesh"], isinstance(pool.valid, jax.Array)
      if key not in states:
        states[key] = begin(keys, make_model, optimizer, selector, pool, **options)
      if not key[-1]:
        return states[key]
      return jax.tree.map(lambda leaf: leaf.copy(), states[key])  # it will be donated

    def telling_runner(*given, **options):
      return _Told(make_runner(*given, **options), self._on_step)

    patch.setitem(models.MODELS, "mlp", NormalizedMLP)
    patch.setattr(
      sharding, "make_mesh", lambda *, fsdp: make_mesh(jax.devices()[: self._devices], fsdp=fsdp)
    )
    patch.setattr(data, "load", keeping(data.load, 0))  # of one set
    patch.setattr(data, "open_rows", keeping(data.open_rows, 0))
    patch.setattr(self._module, "plan_memory", keeping(self._module.plan_memory, 1))
    patch.setattr(self._module, "plot_curves", lambda workdir: None)
    patch.setattr(self._module, "make_setup", make_setup)
    patch.setattr(self._module, "init_state", init_state)
    patch.setattr(self._module, "make_runner", telling_runner)
    patch.setattr(evaluate, "make_evaluation", keeping(evaluate.make_evaluation, 1))
    patch.setattr(streaming, "make_plan_ids", keeping(streaming.make_plan_ids, 0))
    patch.setattr(runners, "make_plan", keeping(runners.make_plan, 1))
    for name in ("make_step", "make_candidate_step", "make_pick"):
      patch.setattr(runners, name, keeping(getattr(runners, name), 2))

  def __call__(self, config, workdir, *, devices=1, stop_after=None):
    """The exit code of a start, with SIGTERM after ``stop_after`` dispatches of it."""
    self._devices, self._calls, self.dispatched = devices, stop_after, []
    # Optax and Flax do not keep to strict promotion themselves.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
      return self._module.train_and_evaluate(config, str(workdir))

  def _on_step(self, step):
    self.dispatched.append(step)
    self._told(step)
    if len(self.dispatched) == self._calls:
      signal.raise_signal(signal.SIGTERM)


class _Told:
  """A runner that tells where each of its dispatches ends."""

  def __init__(self, run, on_step):
    self._run, self._on_step = run, on_step
    self.warm_up, self.measure, self.close = run.warm_up, run.measure, run.close

  def __call__(self, *arguments):
    state, metrics, step = self._run(*arguments)
    self._on_step(step)
    return state, metrics, step
