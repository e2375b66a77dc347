"""Trains a model while a selector keeps choosing its data, in one compiled program.

    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/fashion_mnist.py --config.selector.name=rs2 --workdir=runs/rs2

The same command again goes on where the run stopped. Exit codes: 0 done; 2 a
mistake in what was asked for, in one line; 143 and 130 stopped by SIGTERM and
SIGINT after saving; 1 anything else.
"""

import functools
import math
import signal
import time
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from flax import nnx
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict, config_flags

from jsel import data, models, selectors, sharding
from jsel.data.augment import augment
from jsel.data.normalize import normalizer
from jsel.selectors import Pool
from jsel.training import checkpoint, collect, dispatch, evaluate, losses, outputs, overhead
from jsel.training.budget import make_budget
from jsel.training.config import check_resumable
from jsel.training.curves import plot_curves
from jsel.training.gradients import Learner
from jsel.training.metrics import MetricsWriter, Progress
from jsel.training.optimizer import make_optimizer
from jsel.training.plan import make_plan
from jsel.training.state import Keys, init_state
from jsel.training.step import make_step

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "What to train on what, and how; configs/digits.py if not given.",
  lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps everything.")


def train_and_evaluate(config: ConfigDict, workdir: str) -> int:
  """The whole run, or the rest of it; returns the exit code."""
  began = time.perf_counter()
  note = lambda text: print(f"jsel: {text}", flush=True)

  # ---- What was asked for -----------------------------------------------------------------------

  path = outputs.check_workdir(workdir)
  resolved = outputs.config_dict(config)
  if config.feed != "resident":
    raise ValueError(f"feed must be 'resident', got {config.feed!r}: there is no other yet")
  if config.compilation_cache:
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

  # ---- Mesh -------------------------------------------------------------------------------------

  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
  rules = config.sharding.rules
  if config.batch_size < 1 or config.batch_size % mesh.size:
    raise ValueError(
      f"batch_size={config.batch_size} does not divide among {mesh.size} devices: choose a"
      f" multiple of {mesh.size}"
    )
  parts = config.accumulate
  if parts < 1 or config.batch_size % (parts * mesh.size):
    raise ValueError(
      f"accumulate={parts} does not cut batch_size={config.batch_size} into parts for {mesh.size}"
      f" devices: {parts * mesh.size} has to divide it"
    )
  split = sharding.rows_sharding(mesh)
  note(f"{mesh.size} x {jax.devices()[0].device_kind}, JAX {jax.__version__}")

  # ---- Data -------------------------------------------------------------------------------------

  dataset = data.load(config.data)
  train = dataset.train
  size, input_shape = len(train.labels), train.inputs.shape[1:]
  eval_name = "validation" if dataset.validation else "test"
  note(f"{dataset.name}: {size:,} examples of {input_shape}, {dataset.classes} classes")
  normalize = normalizer(dataset)
  if len(input_shape) != 3 and (config.augment.flip or config.augment.crop):
    raise ValueError("augment.flip and augment.crop are for images [h, w, c]: set them off")

  def preprocess(key, inputs, ids):
    if config.augment.flip or config.augment.crop:
      inputs = augment(key, inputs, ids, flip=config.augment.flip, crop=config.augment.crop)
    return normalize(inputs)

  rows = {"inputs": sharding.pad_rows(train.inputs), "labels": sharding.pad_rows(train.labels)}
  valid = np.arange(sharding.padded_size(size)) < size
  pool = jax.device_put(Pool(rows, valid), split)
  in_batches = lambda part: evaluate.evaluation_batches(
    part.inputs, part.labels, batch_size=config.eval_batch_size, mesh=mesh
  )
  test_batches = in_batches(dataset.test)
  eval_batches = in_batches(dataset.validation) if dataset.validation else test_batches

  # ---- Model and optimizer ----------------------------------------------------------------------

  name = config.selector.name
  budget = make_budget(config, size)
  key = jax.random.key(config.seed)
  model_key, selector_key, fit_key, step_key = jax.random.split(key, 4)
  make_model = lambda rngs: models.make(
    config.model.name,
    rngs=rngs,
    input_shape=input_shape,
    classes=dataset.classes,
    dtype=config.model.dtype,
    **config.model.get(config.model.name, {}),
  )
  optimizer, learning_rate = make_optimizer(config.optimizer, budget.total_steps)
  loss_function = functools.partial(losses.classification, label_smoothing=config.label_smoothing)

  # ---- Selector ---------------------------------------------------------------------------------

  refresh_steps, fit_step = config.selector.refresh_steps, config.selector.fit_step
  selector = selectors.make(
    name,
    size=size,
    rows=budget.plan_rows,
    total_steps=budget.total_steps,
    optimizer=optax.adam,
    axis_name=sharding.row_axes(mesh),
    **config.selector[name],
  )
  if selector.least < config.batch_size:
    raise ValueError(
      f"a plan of {name} may have {selector.least} rows, less than a batch of {config.batch_size}:"
      " lower batch_size or raise selector.ratio"
    )
  if fit_step and selector.fit is None:
    raise ValueError(f"selector.fit_step={fit_step} with {name}, which fits nothing: set it to 0")
  rows_spec, same = P(sharding.row_axes(mesh)), P()
  columns_spec = selectors.Columns(rows_spec, same)

  @jax.jit
  def fit(key, features, pool):
    features = features.reshape(features.shape[0], -1)
    return jax.shard_map(
      selector.fit, mesh=mesh, in_specs=(same, rows_spec, rows_spec), out_specs=columns_spec
    )(key, features, pool)  # pyrefly: ignore

  # ---- State, fresh or restored -----------------------------------------------------------------

  graphdef, state = init_state(
    Keys(model_key, selector_key, step_key),
    make_model,
    optimizer,
    selector,
    pool,
    batch_size=config.batch_size,
    mesh=mesh,
    rules=rules,
  )
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  note(f"{config.model.name}: {parameters:,} parameters, {config.model.dtype}")
  checkpoints = checkpoint.Checkpoints(path / "checkpoints", keep=config.keep_checkpoints)
  about: dict[str, Any] = {
    "wall_seconds": 0.0,
    "fit_seconds": 0.0,
    "selection": None,
    "unlogged": {},
  }
  step = resumed = checkpoints.latest() or 0
  if resumed:
    state, saved = checkpoints.restore(resumed, checkpoint.abstract(state))
    check_resumable(saved["config"], resolved)
    if saved["data_sha256"] != dataset.sha256:
      raise ValueError(
        f"the data of {dataset.name} is not what the run in {path} was trained on: its hash was"
        f" {saved['data_sha256'][:12]}, now it is {dataset.sha256[:12]}. Choose another --workdir"
      )
    about = {name: saved[name] for name in about}
    if resumed >= budget.total_steps and (path / "summary.json").exists():
      note(f"all {budget.total_steps} steps are done, see {path / 'summary.json'}")
      checkpoints.close()
      return 0
    note(f"going on from step {resumed}")
  else:
    outputs.write_json(path / "config.json", resolved)
    facts = {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256}
    outputs.write_json(path / "manifest.json", outputs.manifest(data=facts, seed=config.seed))
  before = about["wall_seconds"]
  uncounted = 0.0
  wall_seconds = lambda: before + time.perf_counter() - began - uncounted

  # ---- Steps ------------------------------------------------------------------------------------

  learner = Learner(
    graphdef,
    loss_function,
    preprocess,
    normalize,
    optimizer,
    mesh,
    feedback=selector.feedback,
    accumulate=config.accumulate,
  )
  plan = make_plan(selector, state.selector, state.plan, mesh=mesh, batch_size=config.batch_size)
  build = lambda fused, steps: make_step(
    learner,
    selector,
    state,
    mesh=mesh,
    batch_size=config.batch_size,
    refresh_steps=refresh_steps,
    fused=fused,
    steps=steps,
    rules=rules,
  )
  how = dispatch.choose(
    config.dispatch,
    platform=jax.devices()[0].platform,
    convolutional=nnx.eval_shape(lambda: make_model(nnx.Rngs(0))).convolutional,  # pyrefly: ignore
  )
  note(f"dispatch: {how.reason}")
  run = dispatch.Dispatcher(
    build, plan, how, selector, state, batch_size=config.batch_size, refresh_steps=refresh_steps
  )
  score = evaluate.make_evaluation(graphdef, losses.classification, normalize, mesh=mesh)
  total_steps = budget.total_steps
  note(
    f"{name}: {budget.plan_rows:,} of {size:,} rows a plan, {total_steps:,} steps of"
    f" {config.batch_size}"
  )

  def fit_selector(state):
    features = pool.rows["inputs"]
    if fit_step:
      features = collect.collect(
        graphdef,
        losses.classification,
        normalize,
        state.params,
        state.variables,
        pool,
        ("features",),
        batch_size=config.eval_batch_size // mesh.size * mesh.size,
        mesh=mesh,
      )["features"]
    begin = time.perf_counter()
    compiled = fit.lower(fit_key, features, pool).compile()
    compiled_at = time.perf_counter()
    fitted = jax.block_until_ready(compiled(fit_key, features, pool))
    about["fit_seconds"] = time.perf_counter() - compiled_at
    note(
      f"{name} fitted at step {fit_step} in {about['fit_seconds']:.1f} s, after"
      f" {compiled_at - begin:.1f} s of compiling"
    )
    return state._replace(selector=selectors.with_fit(state.selector, fitted))

  # ---- Loop -------------------------------------------------------------------------------------

  stopped: list[int] = []

  def stop_soon(signum, frame):
    del frame
    stopped.append(signum)
    signal.signal(signum, signal.SIG_DFL)  # a second one stops at once

  handlers = {s: signal.signal(s, stop_soon) for s in (signal.SIGTERM, signal.SIGINT)}
  eval_every = config.eval_every or budget.steps_per_epoch
  checkpoint_every = config.checkpoint_every or budget.steps_per_epoch
  warm = min(resumed + max(3 * how.steps, 10), total_steps)
  traced = (warm, min(warm + 10, total_steps))
  writer = MetricsWriter(path, resume_step=resumed or None)
  progress = Progress(total_steps, start_step=resumed)
  unlogged = {what: np.asarray(rows, np.float32) for what, rows in about["unlogged"].items()}
  kept, kept_since = [unlogged] if unlogged else [], time.perf_counter()
  joined = lambda kept: {
    what: np.concatenate([np.ravel(part[what]) for part in kept]) for what in (kept or [{}])[0]
  }

  def save():
    about["wall_seconds"] = wall_seconds()
    about["unlogged"] = {what: x.tolist() for what, x in joined(jax.device_get(kept)).items()}
    checkpoints.save(step, state, {**about, "config": resolved, "data_sha256": dataset.sha256})

  try:
    with jax.transfer_guard("disallow"):
      while step < total_steps and not stopped:
        if selector.fit and step == fit_step:
          with jax.transfer_guard("allow"):
            state = fit_selector(state)
        intervals = (config.log_every, eval_every, checkpoint_every)
        looks = [(step // every + 1) * every for every in intervals]
        looks += [at for at in (fit_step, *traced) if at > step]
        if config.profile and step == traced[0]:
          jax.profiler.start_trace(path / "profile")
        state, metrics, step = run(state, pool, step, min(*looks, total_steps))
        kept.append(metrics)
        if config.profile and step == traced[1]:
          jax.block_until_ready(state.step)
          jax.profiler.stop_trace()
          note(f"a trace of steps {traced[0]} to {traced[1]} is in {path / 'profile'}")

        if step == warm and about["selection"] is None:
          begin = time.perf_counter()
          with jax.transfer_guard("allow"):
            cost = overhead.measure(
              plan,
              lambda state, pool: run.program(False, 1)(state, pool, None),
              state,
              pool,
              steps_between_plans=budget.steps_per_plan,
            )
          about["selection"] = cost._asdict()
          writer.write(step, {f"selection/{what}": x for what, x in about["selection"].items()})
          uncounted += time.perf_counter() - begin
          kept_since += time.perf_counter() - begin

        at_end = step == total_steps
        if step % config.log_every == 0 or at_end:
          steps = joined(jax.device_get(kept))
          values = {f"train/{what}": float(x.mean()) for what, x in steps.items()}
          if not math.isfinite(values["train/loss"]):
            raise FloatingPointError(
              f"the loss is {values['train/loss']} in the steps up to {step}: lower"
              " --config.optimizer.learning_rate or set --config.optimizer.clip_norm"
            )
          seconds = time.perf_counter() - kept_since
          rows_done = steps["loss"].size * config.batch_size
          with jax.transfer_guard("allow"):
            values["train/learning_rate"] = float(learning_rate(step - 1))
          values |= {
            "examples_seen": step * config.batch_size,
            "examples_per_second": rows_done / seconds,
            "wall_seconds": wall_seconds(),
          }
          if about["selection"]:
            values["selection_overhead_pct"] = 100 * about["selection"]["share"]
          writer.write(step, values)
          progress.update(step, values)
          kept, kept_since = [], time.perf_counter()
        if step % eval_every == 0 or at_end:
          jax.block_until_ready(state.step)
          begin = time.perf_counter()
          found = score(state.params, state.variables, eval_batches)
          writer.write(
            step,
            {f"eval/{what}": value for what, value in found.items()}
            | {"examples_seen": step * config.batch_size, "wall_seconds": wall_seconds()},
          )
          kept_since += time.perf_counter() - begin
        if step % checkpoint_every == 0 or at_end or stopped:
          save()
  finally:
    progress.close()
    writer.close()
    checkpoints.close()
    for signum, handler in handlers.items():
      signal.signal(signum, handler)
  if stopped and step < total_steps:
    note(f"stopped and saved at step {step}: the same command goes on from there")
    return 128 + stopped[0]

  # ---- What is left behind ----------------------------------------------------------------------

  found = score(state.params, state.variables, test_batches)
  exposure = jax.device_get(state.exposure)._asdict()
  chosen_by = jax.device_get({n: x for n, x in state.selector.rows.items() if x.ndim == 1})
  columns = {n: np.asarray(x)[:size] for n, x in {**exposure, **chosen_by}.items()}
  outputs.write_exposure(path / "exposure.parquet", {"index": np.arange(size), **columns})
  selection = about["selection"] or {"share": float("nan")}
  summary = {
    "test_accuracy": found["accuracy"],
    "test_loss": found["loss"],
    "examples_seen": step * config.batch_size,
    "steps": step,
    "wall_seconds": wall_seconds(),
    "fit_seconds": about["fit_seconds"],
    "selection_overhead_pct": 100 * selection["share"],
    "select_seconds": selection.get("select_seconds"),
    "step_seconds": selection.get("step_seconds"),
    "selector": name,
    "ratio": budget.epoch_rows / size,
    "seed": config.seed,
    "data": dataset.name,
    "model": config.model.name,
    "curves_of": eval_name,
  }
  outputs.write_json(path / "summary.json", summary)
  plot_curves(path)
  note(
    f"test accuracy {100 * found['accuracy']:.2f} % after {summary['examples_seen']:,} examples in"
    f" {summary['wall_seconds']:.0f} s, selection {summary['selection_overhead_pct']:.2f} %"
  )
  note(f"see {path / 'curves.png'} and {path / 'summary.json'}")
  return 0


def main(argv: list[str]) -> int:
  del argv
  if not WORKDIR.value:
    raise ValueError("--workdir is missing: where the run is to keep everything")
  return train_and_evaluate(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  from jsel.training.command import run_main

  run_main(main, default_config="configs/digits.py")
