"""What selection costs in a real run: a plan an epoch, and a plan at every step.

    python -m benchmarks.overhead

Runs train.py on Fashion-MNIST with the cnn for a few hundred steps and reads what the run itself
measured: after warm-up, the step that plans and the step that does not, alternating, on a copy of
the state. Leaves benchmarks/results/overhead.json and prints its table.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.machine import machine

REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of each; the median and the range are printed.")
STEPS = flags.DEFINE_integer("steps", 60, "Steps of a run.")
CONFIG = flags.DEFINE_string("config", "configs/fashion_mnist.py", "Of the runs.")
ROOT = pathlib.Path(__file__).parent.parent


def main(argv: list[str]) -> None:
  del argv
  rows: list[dict[str, Any]] = []
  for selector in ("rs2", "rep_div_plain", "rep_div"):
    for refresh in (0, 1):
      summaries = []
      for seed in range(REPEATS.value):
        with tempfile.TemporaryDirectory() as workdir:
          options = [
            f"--config={CONFIG.value}", f"--workdir={workdir}", f"--config.steps={STEPS.value}",
            f"--config.selector.name={selector}", f"--config.selector.refresh_steps={refresh}",
            f"--config.seed={seed}",
          ]  # fmt: skip
          subprocess.run([sys.executable, "train.py", *options], cwd=ROOT, check=True)
          summaries.append(json.loads((pathlib.Path(workdir) / "summary.json").read_text()))
      rows.append({"selector": selector, "refresh_steps": refresh, "runs": summaries})
  result = {"config": CONFIG.value, "machine": machine(), "rows": rows}
  path = ROOT / "benchmarks" / "results" / "overhead.json"
  path.write_text(json.dumps(result, indent=2) + "\n")
  print("| selector | plan | select ms | step ms | share of the time |\n|---|---|---|---|---|")
  for row in rows:
    values = lambda key, row=row: np.array([run[key] for run in row["runs"]])
    share = values("selection_overhead_pct")
    when = "every step" if row["refresh_steps"] else "an epoch"
    print(
      f"| {row['selector']} | {when} | {1e3 * np.median(values('select_seconds')):.2f} |"
      f" {1e3 * np.median(values('step_seconds')):.2f} |"
      f" {np.median(share):.2f} % ({share.min():.2f} to {share.max():.2f}) |"
    )


if __name__ == "__main__":
  app.run(main)
