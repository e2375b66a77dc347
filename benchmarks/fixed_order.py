"""What it costs to add gradients in a fixed order, bitwise the same on any number of devices.

    python -m benchmarks.fixed_order --devices=1
    python -m benchmarks.fixed_order --devices=8

The training step on Fashion-MNIST, batches of 128 that are ready, with gradients as the compiler
adds them and with --config.deterministic_reductions=8, in turns of some steps each, dispatched as
train.py does. --devices are those of the mesh; a CPU is divided into so many, which share its
cores. The losses of both are compared before. A case that is measured again replaces itself in
benchmarks/results/fixed_order.json.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.fused_step import Run, make_run, ready_rows
from benchmarks.machine import machine
from benchmarks.turns import Contender, take_turns
from jsel import sharding
from jsel.training.step import Given

ROOT = pathlib.Path(__file__).parent.parent
PATH = ROOT / "benchmarks" / "results" / "fixed_order.json"
BATCH, PARTS, STEPS = 128, 8, 50
MODELS = ("mlp", "cnn")


def contender(name: str, run: Run, steps: int) -> tuple[Contender, list[float]]:
  """Takes turns of ``steps`` steps on a state of its own; and the losses of those it has done."""
  mesh, ids = sharding.make_mesh(), ready_rows(run, BATCH)
  split = NamedSharding(mesh, P(*(ids.ndim - 1) * (None,), sharding.row_axes(mesh)))
  given = Given(*(sharding.place(x[ids], split) for x in (run.inputs, run.labels)))
  held, losses = [jax.tree.map(lambda leaf: leaf.copy(), run.state)], []

  def work() -> jax.Array:
    state = held.pop()
    for _ in range(steps // run.dispatched):
      state, metrics = run.many(state, run.pool, given)
      losses.append(metrics["loss"])
    held.append(state)
    return state.step

  return Contender(name, work, f"{steps} steps, {run.dispatched} a dispatch"), losses


def measure(
  model: str, *, source: str = "fashion_mnist", steps: int = STEPS, repeats: int, seconds: float
) -> dict[str, Any]:
  """A row of the table."""
  options = {"source": source, "refresh_steps": 0, "batch_size": BATCH}
  runs = {
    name: make_run(model, "rs2", **options, parts=parts)
    for name, parts in (("any order", 0), ("fixed order", PARTS))
  }
  who = {name: contender(name, run, steps) for name, run in runs.items()}
  times, _ = take_turns([one for one, _ in who.values()], repeats=repeats, seconds=seconds)
  first = [np.concatenate([np.ravel(x) for x in losses])[:steps] for _, losses in who.values()]
  np.testing.assert_allclose(*first, rtol=1e-3)  # sums in another order, carried over 50 steps
  ratios = np.divide(times["fixed order"].turns, times["any order"].turns)
  return {
    "model": model,
    "devices": jax.device_count(),
    "parts": PARTS,
    "times": {name: of.summary() for name, of in times.items()},
    "steps_of_a_turn": steps,
    "ratio": [float(x) for x in np.percentile(ratios, [25, 50, 75])],
  }


def table(result: dict[str, Any]) -> str:
  """A row a case, as Markdown."""
  lines = [
    "| model | devices | in any order, ms a step | in a fixed order | time to it (quartiles) |",
    f"|{5 * '---|'}",
  ]
  for case in sorted(result["cases"], key=lambda case: (case["devices"], case["model"])):
    each = [
      1e3 * case["times"][name]["seconds"] / case["steps_of_a_turn"]
      for name in ("any order", "fixed order")
    ]
    low, middle, high = case["ratio"]
    lines.append(
      f"| {case['model']} | {case['devices']} | {each[0]:.2f} | {each[1]:.2f} |"
      f" {middle:.2f} ({low:.2f} to {high:.2f}) |"
    )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  jax.config.update("jax_num_cpu_devices", given.devices)
  cases = json.loads(PATH.read_text())["cases"] if PATH.exists() else []
  for model in MODELS:
    case = measure(model, repeats=given.repeats, seconds=given.seconds)
    same = lambda other, case=case: all(other[key] == case[key] for key in ("model", "devices"))
    cases = [other for other in cases if not same(other)] + [case]
    PATH.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=2) + "\n")
  print(table({"cases": cases}))


if __name__ == "__main__":
  flags.DEFINE_integer("devices", 1, "Of the mesh, on a CPU.")
  flags.DEFINE_integer("repeats", 15, "Turns of each.")
  flags.DEFINE_float("seconds", 60.0, "After so many there are no more turns.")
  app.run(main)
