"""What ImageNet takes of machines that are not there: memory, collectives, and what selection adds.

    python -m benchmarks.aot

Compiles configs/imagenet.py for TPU slices of 4 to 256 chips with 64 rows a chip, for other chips,
for eight GPUs, and for a pool of 1e9 examples; and the plan of every selector for such a pool on
256 chips. Needs libtpu and jax-cuda12-plugin (pip install 'jsel[aot-tpu,aot-cuda]'), no device and
no data. A compile takes minutes; what benchmarks/results/aot.json has is not compiled again without
--again. Nothing is timed: bytes and counts are the compiler's.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
from absl import app, flags

from benchmarks.machine import machine
from configs import imagenet

ROOT = pathlib.Path(__file__).parent.parent
PATH = ROOT / "benchmarks" / "results" / "aot.json"
ROWS_A_DEVICE = 64
SLICES = {"v5e:2x2": 4, "v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256}
OTHERS = {"v5p:2x2x4": 16, "v6e:4x4": 16, "cuda:h100:8": 8}
LARGE = "1e9"
SELECTORS = ("rs2", "random", "infobatch", "loss", "rep_div", "rep_div_plain")


def cases() -> dict[str, list[str]]:
  """Name and options of each compilation."""
  found = {
    topology: [f"--topology={topology}", *batch(devices)]
    for topology, devices in {**SLICES, **OTHERS}.items()
  }
  found[f"v5e:16x16, pool {LARGE}"] = [*found["v5e:16x16"], f"--pool={LARGE}"]
  return found


def batch(devices: int) -> list[str]:
  """The options of a batch of 64 rows a device and of the recipe that goes with it."""
  size = ROWS_A_DEVICE * devices
  warmup = round(5 * imagenet.RATIO * imagenet.EXAMPLES / size)
  return [
    f"--config.batch_size={size}",
    f"--config.optimizer.learning_rate={0.1 * size / 256}",
    f"--config.optimizer.warmup_steps={warmup}",
  ]


def compiled(options: list[str]) -> dict[str, Any]:
  """The report of one compilation, in a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "report.json"
    command = [sys.executable, "-m", "jsel.aot", "--config=configs/imagenet.py", f"--json={path}"]
    run = subprocess.run([*command, *options], cwd=ROOT, check=False)
    if not path.exists():
      raise RuntimeError(f"{' '.join([*command, *options])} ended with {run.returncode}")
    report = json.loads(path.read_text())
  del report["config"]
  for program in report["programs"]:
    del program["compile_seconds"]  # on whatever else the machine did
  return report


def plan_of(selector: str) -> dict[str, Any]:
  """What a plan of ``selector`` takes with a pool of 1e9 on 256 chips: the plan's program alone."""
  from jsel import aot, sharding
  from jsel.compiled import programs
  from jsel.compiled.account import compile_program
  from jsel.compiled.collectives import summarize
  from jsel.compiled.machines import machine as accelerators
  from jsel.compiled.operations import operations
  from jsel.training.memory import device_bytes

  topology = "v5e:16x16"
  config = imagenet.get_config()
  config.batch_size = ROWS_A_DEVICE * SLICES[topology]
  config.selector.name = selector
  if selector == "infobatch":
    config.selector.ratio = None
  if selector.startswith("rep_div"):
    config.selector.fit_step = 1000
  mesh = sharding.make_mesh(accelerators(topology).devices)
  run = programs.make_run(config, aot.examples_of(config, LARGE), mesh)
  plan = next(program for program in run.programs if program.name == "plan")
  account = compile_program(plan, mesh.size)
  counted = operations(plan.function.trace(*plan.arguments).jaxpr)[""]
  totals = summarize(account.collectives)
  return {
    "topology": topology,
    "pool": LARGE,
    "kept_bytes": device_bytes((run.state.selector, run.state.plan)),
    "temporaries": account.temporaries,
    "refused": account.refused,
    "collectives": {kind: total._asdict() for kind, total in totals.items()},
    "in_open_loops": sum(not collective.counted for collective in account.collectives),
    "operations_of_a_device": counted.total / mesh.size,
  }


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  jax.config.update("jax_platforms", "cpu")
  found = json.loads(PATH.read_text()) if PATH.exists() else {"steps": {}, "plans": {}}
  jobs = [
    ("steps", name, lambda options=options: compiled(options)) for name, options in cases().items()
  ]
  jobs += [("plans", name, lambda name=name: plan_of(name)) for name in SELECTORS]
  for kind, name, job in jobs:
    if given.only in name and (given.again or name not in found[kind]):
      found[kind][name] = job()
      found["machine"] = machine()
      PATH.write_text(json.dumps(found, indent=2) + "\n")
  print(table(found))


def table(found: dict[str, Any]) -> str:
  """Steps, and then plans alone, as Markdown."""
  mib = lambda size: f"{size / 2**20:,.1f}"
  lines = [
    "| compiled for | pool | batch | MiB a device | there are MiB | selection keeps MiB"
    " | sent MiB a step | of it selection |",
    f"|{8 * '---|'}",
  ]
  for name, report in found["steps"].items():
    memory, all_of = report["memory"], report["collectives"]["all"]
    columns = sum(memory.get(part, 0) for part in ("selector", "plan", "next plan", "exposure"))
    share = all_of["selection_wire_bytes"] / all_of["wire_bytes"]
    cells = [
      name.partition(",")[0],
      f"{report['pool']['examples']:,}",
      f"{report['batch_size']:,}",
      f"{memory['total'] / 2**20:,.0f}",
      f"{report['memory_of_device'] / 2**20:,.0f}, {'fits' if report['fits'] else 'does not fit'}",
      *(mib(columns), mib(all_of["wire_bytes"]), f"{100 * share:.3f} %"),
    ]
    lines.append(f"| {' | '.join(cells)} |")
  lines += [
    "",
    f"The plan alone, of a pool of {LARGE} rows on v5e:16x16, a chip:",
    "",
    "| plan of | kept MiB | temporaries MiB | put into collectives, MiB | operations |",
    f"|{5 * '---|'}",
  ]
  for name, plan in found["plans"].items():
    put_in = sum(total["operand_bytes"] for total in plan["collectives"].values())
    lines.append(
      f"| {name} | {mib(plan['kept_bytes'])} | {plan['refused'] or mib(plan['temporaries'])} |"
      f" {mib(put_in)} | {plan['operations_of_a_device']:.2g} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  flags.DEFINE_bool("again", False, "Compile what has been compiled before, too.")
  flags.DEFINE_string("only", "", "Compile the cases alone whose name has this in it.")
  app.run(main)
