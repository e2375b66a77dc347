"""What selection costs in a real run: a plan an epoch, and a plan at every step.

    python -m benchmarks.overhead

Starts train.py on Fashion-MNIST with the cnn, as long a run as the configuration says, and stops it
once it has measured: after warm-up, planning and a step on planned rows, alternating, on a copy of
the state. Leaves benchmarks/results/overhead.json and prints its table.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.machine import machine

ROOT = pathlib.Path(__file__).parent.parent
SELECTORS = ("rs2", "rep_div_plain", "rep_div")


def measured(options: list[str]) -> dict[str, Any]:
  """The line of metrics.jsonl in which a run says what selection costs."""
  with tempfile.TemporaryDirectory() as workdir:
    path = pathlib.Path(workdir) / "metrics.jsonl"
    run = subprocess.Popen(
      [sys.executable, "train.py", f"--workdir={workdir}", *options],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
    )
    try:
      while run.poll() is None:
        for line in path.read_text().splitlines() if path.exists() else []:
          if "selection/share" in line:
            return json.loads(line)
        time.sleep(0.2)
    finally:
      run.terminate()
      run.wait()
  raise RuntimeError(f"train.py {' '.join(options)} measured nothing, exit code {run.returncode}")


def measure(
  config: str, overrides: list[str], *, selectors: tuple[str, ...], repeats: int
) -> dict[str, Any]:
  """Runs of each selector, with a plan an epoch and with one at every step."""
  rows: list[dict[str, Any]] = [
    {"selector": selector, "refresh_steps": refresh, "runs": []}
    for selector in selectors
    for refresh in (0, 1)
  ]
  for seed in range(repeats):  # in turns, so that a slow spell meets all of them
    for row in rows:
      options = [
        f"--config={config}",
        *(f"--config.{override}" for override in overrides),
        f"--config.selector.name={row['selector']}",
        f"--config.selector.refresh_steps={row['refresh_steps']}",
        f"--config.seed={seed}",
      ]
      row["runs"].append(measured(options))
  return {"config": config, "overrides": overrides, "machine": machine(), "rows": rows}


def table(result: dict[str, Any]) -> str:
  """A row a selector and a time between plans, as Markdown."""
  lines = ["| selector | a plan | plan ms | step ms | share of the time (of the runs) |"]
  lines.append(f"|{5 * '---|'}")
  for row in result["rows"]:
    values = lambda what, row=row: np.array([run[f"selection/{what}"] for run in row["runs"]])
    share = 100 * values("share")
    when = "every step" if row["refresh_steps"] else "an epoch"
    lines.append(
      f"| {row['selector']} | {when} | {1e3 * np.median(values('select_seconds')):.2f} |"
      f" {1e3 * np.median(values('step_seconds')):.2f} |"
      f" {np.median(share):.2f} % ({share.min():.2f} to {share.max():.2f}) |"
    )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  result = measure(given.config, given.override, selectors=SELECTORS, repeats=given.repeats)
  path = ROOT / "benchmarks" / "results" / f"{given.name}.json"
  path.write_text(json.dumps(result, indent=2) + "\n")
  print(table(result))


if __name__ == "__main__":
  flags.DEFINE_integer("repeats", 5, "Runs of each; the median and the range are printed.")
  flags.DEFINE_string("config", "configs/fashion_mnist.py", "Of the runs.")
  flags.DEFINE_multi_string("override", [], "KEY=VALUE, for all runs.")
  flags.DEFINE_string("name", "overhead", "Of the file in benchmarks/results.")
  app.run(main)
