"""What it costs to choose each batch anew, against a batch that is ready and against the host.

    python -m benchmarks.fused_step
    python -m benchmarks.fused_step --models=mlp --selectors=rep_div_plain

On Fashion-MNIST (60,000 rows, batches of 128) the same training step, in turns of some steps each:

    ready      on batches that are on the device already
    planned    jsel: a plan of one batch at every step, its rows gathered from the device's memory,
               in the program of the step, as train.py has it
    host       numpy: argpartition of score - penalty * usage, the rows taken from the pool in the
               host's memory, moved to the device

The first two are dispatched as train.py does, several steps at once where the model has no
convolution, each on a batch of its own: of one batch for all XLA would do once what does not
depend on the parameters. The host has to choose before every step. And an epoch's plan alone, as a
share of the epoch. Only a turn's end is waited for, as in a run.
Before that: a plan has as many distinct rows as it is to have, and the host's choice of batches of
128 is that of `jsel.kernels.topk.penalized_top_k`. Leaves benchmarks/results/fused_step.json and
prints its table.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks.machine import machine
from benchmarks.turns import Contender, take_turns
from jsel import data, selectors, sharding
from jsel.data.normalize import normalizer
from jsel.kernels import topk
from jsel.selectors import Pool
from jsel.training.config import base_config
from jsel.training.dispatch import choose
from jsel.training.fit import fit_selector
from jsel.training.plan import make_plan
from jsel.training.setup import Examples, make_setup
from jsel.training.state import Keys, TrainState, init_state
from jsel.training.step import Given, make_step

ROOT = pathlib.Path(__file__).parent.parent
PATH = ROOT / "benchmarks" / "results" / "fused_step.json"
PENALTY = 0.2  # of the host's choice, for each time that a row was trained on
MOST = {"cnn": 5.0, "mlp": 8.0}  # percent that choosing may add to a step
MOST_EPOCH, MOST_TO_HOST = 0.3, 1.05


class Run(NamedTuple):
  """A run that can go on from any state."""

  state: TrainState
  pool: Pool  # on the device
  inputs: np.ndarray  # [n, values], the same rows in the host's memory
  labels: np.ndarray  # [n]
  step: Callable[..., tuple[TrainState, Any]]
  planned: Callable[[TrainState], TrainState]  # with a new plan
  many: Callable[..., tuple[TrainState, Any]]  # `dispatched` steps on batches that it is given
  fused: Callable[..., tuple[TrainState, Any]]  # `dispatched` steps, each with its plan
  dispatched: int
  plan_rows: int
  steps_per_plan: int


def make_run(
  model: str,
  selector: str,
  *,
  source: str,
  refresh_steps: int,
  batch_size: int,
  parts: int = 0,
) -> Run:
  """As `train.py` makes it, its selector fitted; ``parts`` are its deterministic_reductions."""
  config = base_config()
  config.deterministic_reductions = parts
  config.data.name, config.model.name = source, model
  config.selector.name, config.selector.refresh_steps = selector, refresh_steps
  config.batch_size = batch_size
  dataset = data.load(config.data)
  train, mesh = data.as_rows(dataset.train), sharding.make_mesh()
  examples = Examples(
    train.size, train.input_shape, train.input_dtype, dataset.classes, normalizer(dataset)
  )
  setup = make_setup(config, examples, mesh)
  held, split = data.read_all(train), sharding.rows_sharding(mesh)
  rows = {"inputs": held.inputs.reshape(train.size, -1), "labels": held.labels}
  valid = np.arange(sharding.padded_size(train.size)) < train.size
  placed = {name: sharding.place_rows(x, split) for name, x in rows.items()}
  pool = Pool(placed, sharding.place(valid, split))
  model_key, selector_key, fit_key, step_key = jax.random.split(jax.random.key(0), 4)
  keys, of_batch = Keys(model_key, selector_key, step_key), {"batch_size": batch_size, "mesh": mesh}
  state = init_state(
    keys, setup.make_model, setup.learner.optimizer, setup.selector, pool, **of_batch
  )
  if setup.selector.fit:
    found = fit_selector(setup.selector, fit_key, pool.rows["inputs"], pool, mesh)
    state = state._replace(selector=selectors.with_fit(state.selector, found.columns))
  plan = make_plan(setup.selector, state.selector, state.plan, **of_batch)
  build = lambda fused, steps: make_step(
    setup.learner,
    setup.selector,
    state,
    refresh_steps=refresh_steps,
    fused=fused,
    steps=steps,
    **of_batch,
  )
  how = choose(
    "auto",
    platform=jax.default_backend(),
    convolutional=setup.convolutional,
    resident=True,
    refresh_steps=refresh_steps,
  )

  def planned(state: TrainState) -> TrainState:
    columns, active = plan(state.key, state.step, state.selector, state.plan, pool)
    return state._replace(selector=columns, plan=active)

  programs = build(False, 1), planned, build(False, how.steps), build(True, how.steps), how.steps
  of_plan = setup.budget.plan_rows, setup.budget.steps_per_plan
  return Run(state, pool, rows["inputs"], rows["labels"], *programs, *of_plan)


class HostChoice:
  """The batch of highest score - penalty * usage, by numpy."""

  def __init__(self, size: int, batch_size: int):
    self.score = np.random.default_rng(0).random(size, np.float32)
    self.usage = np.zeros(size, np.int32)
    self._batch_size = batch_size

  def __call__(self) -> np.ndarray:
    penalized = self.score - np.float32(PENALTY) * self.usage.astype(np.float32)
    ids = np.argpartition(penalized, -self._batch_size)[-self._batch_size :]
    self.usage[ids] += 1
    return ids


def check(run: Run, batch_size: int) -> None:
  """Raises an AssertionError unless plans and the host's choices are what they should be."""
  state = jax.tree.map(lambda leaf: leaf.copy(), run.state)
  for _ in range(3):
    state = run.planned(state)
    assert int(state.plan.count) == run.plan_rows
  host = HostChoice(len(run.labels), batch_size)
  for _ in range(5):
    before = host.usage.copy()
    found = topk.penalized_top_k(host.score, before, batch_size, penalty=PENALTY).indices
    assert np.array_equal(np.sort(host()), found)


def ready_rows(run: Run, batch_size: int) -> np.ndarray:
  """The first rows of the pool, as batches for what is dispatched at once."""
  ids = np.arange(run.dispatched * batch_size)
  return ids.reshape(-1, batch_size) if run.dispatched > 1 else ids


def contenders(run: Run, steps: int, batch_size: int) -> list[Contender]:
  """Those that take turns of ``steps`` steps, each on a state of its own."""
  if steps % run.dispatched:
    raise ValueError(f"steps={steps} is no multiple of the {run.dispatched} of a dispatch")
  host = HostChoice(len(run.labels), batch_size)
  given = lambda ids: Given(*jax.device_put((run.inputs[ids], run.labels[ids])))
  ready = given(ready_rows(run, batch_size))

  def on_ready(state):
    return run.many(state, run.pool, ready)[0]

  def on_planned(state):
    return run.fused(state, run.pool, None)[0]

  def on_host(state):
    return run.step(state, run.pool, given(host()))[0]

  def contender(
    name: str, step: Callable[[TrainState], TrainState], at_once: int, settings: str
  ) -> Contender:
    held = [jax.tree.map(lambda leaf: leaf.copy(), run.state)]

    def work() -> jax.Array:
      state = held.pop()
      for _ in range(steps // at_once):
        state = step(state)
      held.append(state)
      return state.step

    return Contender(name, work, settings)

  many = f"{steps} steps, {run.dispatched} a dispatch"
  return [
    contender("ready", on_ready, run.dispatched, f"{many}, on batches in device memory"),
    contender("planned", on_planned, run.dispatched, f"{many}, each with its plan"),
    contender("host", on_host, 1, f"{steps} times numpy.argpartition, device_put and a step"),
    contender("plan", run.planned, 1, f"{steps} plans"),
  ]


def measure(
  model: str,
  selector: str,
  *,
  source: str = "fashion_mnist",
  batch_size: int = 128,
  steps: int = 50,
  repeats: int = 15,
  seconds: float = 60.0,
) -> dict[str, Any]:
  """A row of the table."""
  limits = {"repeats": repeats, "seconds": seconds}
  each = make_run(model, selector, source=source, refresh_steps=1, batch_size=batch_size)
  check(each, batch_size)
  times, _ = take_turns(contenders(each, steps, batch_size), **limits)
  epoch = make_run(model, selector, source=source, refresh_steps=0, batch_size=batch_size)
  check(epoch, batch_size)
  ready, *_, plan_alone = contenders(epoch, steps, batch_size)
  rare, _ = take_turns([ready, plan_alone], **limits)
  of = lambda times: {name: found.summary() for name, found in times.items()}
  by_turn = lambda a, b: np.divide(times[a].turns, times[b].turns)
  plan, step = (np.array(rare[name].turns) for name in ("plan", "ready"))
  return {
    "model": model,
    "selector": selector,
    "rows": len(each.labels),
    "batch_size": batch_size,
    "steps_a_turn": steps,
    "steps_a_dispatch": each.dispatched,
    "every_step": of(times),
    "an_epoch": of(rare),
    "steps_per_plan": epoch.steps_per_plan,
    "added_percent": (100 * (by_turn("planned", "ready") - 1)).tolist(),
    "to_host": by_turn("planned", "host").tolist(),
    "epoch_percent": (100 * plan / (epoch.steps_per_plan * step)).tolist(),
  }


def table(results: list[dict[str, Any]]) -> str:
  """A row a model and selector, as Markdown."""
  lines = [
    "| model | selector | step on a ready batch ms | plan and step ms | added (quartiles)"
    " | at most | selection on the host ms | jsel's time to it | at most | a plan an epoch |"
    " at most |",
    f"|{11 * '---|'}",
  ]
  for result in results:
    ms = lambda name, result=result: (
      1e3 * result["every_step"][name]["seconds"] / result["steps_a_turn"]
    )
    low, middle, high = np.percentile(result["added_percent"], [25, 50, 75])
    cells = [
      result["model"],
      result["selector"],
      f"{ms('ready'):.2f}",
      f"{ms('planned'):.2f}",
      f"{middle:.1f} % ({low:.1f} to {high:.1f})",
      f"{MOST[result['model']]:g} %",
      f"{ms('host'):.2f}",
      f"{np.median(result['to_host']):.2f}",
      f"{MOST_TO_HOST}",
      f"{np.median(result['epoch_percent']):.2f} %",
      f"{MOST_EPOCH} %",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  results = json.loads(PATH.read_text())["results"] if PATH.exists() else []
  for model in given.models:
    for selector in given.selectors:
      found = measure(model, selector, repeats=given.repeats, seconds=given.seconds)
      found |= {"machine": machine(), "machine_shared": given.shared}
      case = (model, selector)
      results = [r for r in results if (r["model"], r["selector"]) != case] + [found]
      PATH.write_text(json.dumps({"results": results}, indent=2) + "\n")
      print(table([found]).splitlines()[-1], flush=True)
  print(table(results))


if __name__ == "__main__":
  flags.DEFINE_list("models", ["cnn", "mlp"], "Of the steps.")
  flags.DEFINE_list("selectors", ["rs2", "rep_div_plain", "rep_div"], "That plan.")
  flags.DEFINE_integer("repeats", 15, "Turns of each contender, at most.")
  flags.DEFINE_float("seconds", 60.0, "Of the turns of a case, about; three turns at least.")
  flags.DEFINE_bool("shared", False, "Others use the machine: times are less of a measure.")
  app.run(main)
