"""Trains a model while a selector keeps choosing its data, in one compiled program.

    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/fashion_mnist.py --config.selector.name=rs2 --workdir=runs/rs2

The same command again goes on where the run stopped. Exit codes: 0 done; 2 a
mistake in what was asked for, in one line; 143 and 130 stopped by SIGTERM and
SIGINT after saving; 1 anything else.
"""

import math
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from jsel import data, selectors, sharding
from jsel.data.normalize import normalizer
from jsel.data.vocabulary import vocabulary
from jsel.kernels.random import key_of_seed
from jsel.selectors import Pool
from jsel.training import checkpoint, collect, evaluate, outputs
from jsel.training.command import repeat_bitwise, run_main
from jsel.training.config import HARMLESS
from jsel.training.curves import plot_curves
from jsel.training.fit import fit_selector
from jsel.training.memory import check_fits, plan_memory
from jsel.training.metrics import MetricsWriter, Progress
from jsel.training.resuming import check_resumable
from jsel.training.rounds import train_in_rounds
from jsel.training.runners import make_runner
from jsel.training.setup import Examples, make_setup, pool_shapes
from jsel.training.state import Keys, init_state
from jsel.training.stopping import StopSignals

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
  sharding.join_hosts(timeout=config.host_timeout)
  is_first = jax.process_index() == 0
  note = lambda text: print(f"jsel: {text}", flush=True) if is_first else None

  # ---- What was asked for -----------------------------------------------------------------------

  path = outputs.check_workdir(workdir)
  if is_first:
    outputs.hold(path)
  outputs.check_holds_no("a subset of python -m jsel.select", path)
  resolved = outputs.config_dict(config)
  if config.compilation_cache:
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  resident = config.feed == "resident"

  # ---- Mesh -------------------------------------------------------------------------------------

  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
  rules = config.sharding.rules
  split = sharding.rows_sharding(mesh)
  note(
    f"{mesh.size} x {jax.devices()[0].device_kind}, {jax.process_count()} processes,"
    f" JAX {jax.__version__}"
  )

  # ---- Data -------------------------------------------------------------------------------------

  dataset = data.load(config.data) if resident else data.open_rows(config.data)
  train = data.as_rows(dataset.train)
  size = train.size
  note(f"{dataset.name}: {size:,} examples of {train.input_shape}, {dataset.classes} classes")
  if config.data.subset:
    note(f"trained on: {dataset.source}")
  examples = Examples(
    size,
    train.input_shape,
    train.input_dtype,
    dataset.classes,
    normalizer(dataset),
    weighted=dataset.weights is not None,
    vocabulary=vocabulary(dataset),
  )
  reading = {"threads": config.threads, "ahead": config.read_ahead}
  eval_options = {"batch_size": config.eval_batch_size // mesh.size * mesh.size, "mesh": mesh}
  parts = config.deterministic_reductions
  in_batches = lambda part: evaluate.batches(part, **eval_options, **reading, parts=parts)
  eval_name = "validation" if dataset.validation else "test"
  test_batches = in_batches(dataset.test)
  eval_batches = in_batches(dataset.validation) if dataset.validation else test_batches

  # ---- Model, optimizer and selector ------------------------------------------------------------

  name = config.selector.name
  model_key, selector_key, fit_key, step_key = jax.random.split(key_of_seed(config.seed), 4)
  setup = make_setup(config, examples, mesh)
  budget, selector, learner = setup.budget, setup.selector, setup.learner
  total_steps, fit_step = budget.total_steps, config.selector.fit_step
  of_batch = {"mesh": mesh, "batch_size": config.batch_size}
  begin_state = lambda keys, pool: init_state(
    keys, setup.make_model, learner.optimizer, selector, pool, rules=rules, **of_batch
  )

  # ---- Memory: what it takes, before any is taken -----------------------------------------------

  keys = Keys(model_key, selector_key, step_key)
  shapes = pool_shapes(examples, config.feed, mesh)
  memory = plan_memory(
    learner,
    begin_state(keys, shapes),
    shapes,
    batch_size=config.batch_size,
    input_shape=train.input_shape,
    input_dtype=train.input_dtype,
    given_rows=0 if resident else 2 * (setup.candidates or config.batch_size),
    device=jax.local_devices()[0],
  )
  check_fits(memory, feed=config.feed, note=note)
  columns = {}
  if resident:
    held = data.read_all(train)
    columns = {"inputs": held.inputs.reshape(size, -1), "labels": held.labels}
  if dataset.weights is not None:
    columns["weight"] = dataset.weights
  pool = Pool(
    {what: sharding.place_rows(x, split) for what, x in columns.items()},
    sharding.place(np.arange(sharding.padded_size(size)) < size, split),
  )

  # ---- State, fresh or restored -----------------------------------------------------------------

  state = begin_state(keys, pool)
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
    # The config first: its keys tell a person more than the leaves of another state.
    check_resumable(checkpoints.metadata(resumed)["config"], resolved, harmless=HARMLESS)
    state, saved = checkpoints.restore(resumed, checkpoint.abstract(state))
    if saved["data_sha256"] != dataset.sha256 and not config.allow_data_change:
      raise ValueError(
        f"the data of {dataset.name} is not what the run in {path} was trained on: its hash was"
        f" {saved['data_sha256'][:12]}, now it is {dataset.sha256[:12]}. Choose"
        " another --workdir, or go on all the same with --config.allow_data_change"
      )
    about = {name: saved[name] for name in about}
    if resumed >= total_steps and (path / "summary.json").exists():
      note(f"all {total_steps} steps are done, see {path / 'summary.json'}")
      checkpoints.close()
      return 0
    note(f"going on from step {resumed}")
  elif is_first:
    outputs.write_json(path / "config.json", resolved)
    facts = {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256}
    outputs.write_json(path / "manifest.json", outputs.manifest(data=facts, seed=config.seed))
  before = about["wall_seconds"]
  uncounted = 0.0
  wall_seconds = lambda: before + time.perf_counter() - began - uncounted

  # ---- Steps ------------------------------------------------------------------------------------

  run = make_runner(
    config, setup, state, train, step=step, candidates_key=selector_key, mesh=mesh, note=note
  )
  score = evaluate.make_evaluation(
    learner.graphdef,
    learner.loss_function,
    learner.normalize,
    mesh=mesh,
    parts=parts,
    unroll=learner.unroll,
  )
  note(f"{total_steps:,} steps of {config.batch_size} rows")

  def features_of_pool():
    if not fit_step:
      return pool.rows["inputs"]
    length = sharding.padded_size(size)
    if resident:
      batches = collect.resident_batches(pool, **eval_options)
    else:
      batches = collect.read_batches(train, size=length, **eval_options, **reading)
    model = (learner, state.params, state.variables)
    return collect.collect(*model, batches, ("features",), size=length, mesh=mesh)["features"]

  # ---- Loop -------------------------------------------------------------------------------------

  eval_every = config.eval_every or budget.steps_per_epoch
  checkpoint_every = config.checkpoint_every or budget.steps_per_epoch
  warm = min(resumed + run.warm_up, total_steps)
  traced = (warm, min(warm + 10, total_steps))
  of_process = {"process_index": jax.process_index()}
  writer = MetricsWriter(path, resume_step=resumed or None, **of_process)
  progress = Progress(total_steps, start_step=resumed, **of_process)
  unlogged = {what: np.asarray(rows, np.float32) for what, rows in about["unlogged"].items()}
  kept, kept_since = [unlogged] if unlogged else [], time.perf_counter()
  joined = lambda kept: {
    what: np.concatenate([np.ravel(part[what]) for part in kept]) for what in (kept or [{}])[0]
  }

  def save():
    about["wall_seconds"] = wall_seconds()
    about["unlogged"] = {what: x.tolist() for what, x in joined(jax.device_get(kept)).items()}
    checkpoints.save(step, state, {**about, "config": resolved, "data_sha256": dataset.sha256})

  stop = StopSignals()
  try:
    with stop, jax.transfer_guard("disallow"):
      while step < total_steps and not stop.asked(together=step % config.log_every == 0):
        if selector.fit and step == fit_step:
          with jax.transfer_guard("allow"):
            fit = fit_selector(selector, fit_key, features_of_pool(), pool, mesh)
          state = state._replace(selector=selectors.with_fit(state.selector, fit.columns))
          about["fit_seconds"] = fit.seconds
          note(
            f"{name} fitted at step {fit_step} in {fit.seconds:.1f} s, after"
            f" {fit.compile_seconds:.1f} s of compiling"
          )
        intervals = (config.log_every, eval_every, checkpoint_every)
        looks = [(step // every + 1) * every for every in intervals]
        # Scans begin anew at each, so none may depend on where a start of the run began.
        looks += [at for at in (fit_step, *(traced if config.profile else ())) if at > step]
        if config.profile and step == traced[0]:
          jax.profiler.start_trace(path / "profile")
        state, metrics, step = run(state, pool, step, min(*looks, total_steps))
        kept.append(metrics)
        if config.profile and step == traced[1]:
          jax.block_until_ready(state.step)
          jax.profiler.stop_trace()
          note(f"a trace of steps {traced[0]} to {traced[1]} is in {path / 'profile'}")

        if step >= warm and about["selection"] is None:
          begin = time.perf_counter()
          with jax.transfer_guard("allow"):
            about["selection"] = run.measure(state, pool)._asdict()
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
            values["train/learning_rate"] = float(setup.learning_rate(step - 1))
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
        if step % checkpoint_every == 0 or at_end:
          save()
      if step < total_steps:
        save()
  finally:
    run.close()
    progress.close()
    writer.close()
    checkpoints.close()
  if step < total_steps:
    note(f"stopped and saved at step {step}: the same command goes on from there")
    return stop.exit_code

  # ---- What is left behind ----------------------------------------------------------------------

  found = score(state.params, state.variables, test_batches)
  chosen_by = {n: x for n, x in state.selector.rows.items() if x.ndim == 1}
  columns = sharding.on_every_host({**state.exposure._asdict(), **chosen_by})
  if not is_first:
    return 0
  columns = {n: x[:size] for n, x in columns.items()}
  index, rows = np.arange(size), dataset.source_rows
  columns = {"index": index, "source_row": index if rows is None else rows, **columns}
  outputs.write_exposure(path / "exposure.parquet", columns)
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
    "ratio": config.batch_size / setup.candidates if setup.candidates else budget.epoch_rows / size,
    "feed": config.feed,
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
  if CONFIG.value.deterministic:
    repeat_bitwise()
  if CONFIG.value.get("task") == "rounds":
    return train_in_rounds(CONFIG.value, WORKDIR.value)
  return train_and_evaluate(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  run_main(main, default_config="configs/digits.py")
