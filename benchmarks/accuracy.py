"""Test accuracy of several selectors over several seeds, at the same hyperparameters.

    python -m benchmarks.accuracy --name=digits --config=configs/digits.py --seeds=5
    python -m benchmarks.accuracy --name=fashion_mnist --config=configs/fashion_mnist.py --seeds=3
    python -m benchmarks.accuracy --name=wordnet --config=configs/wordnet_dac.py --seeds=3 \
        --selectors=full,random,rs2,dac_rounds --cache=CACHE

Every run is `python train.py` in a process of its own, one after the other. Final-epoch test
accuracy; nothing is chosen by it. Leaves benchmarks/results/NAME.json, written after every run, and
prints its table. The interval is Student's, 95 %, over the seeds. --resume goes on with what a call
that was cut short has left there.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import app, flags
from scipy import stats

from benchmarks.machine import machine

ROOT = pathlib.Path(__file__).parent.parent


def one_run(
  selector: str, seed: int, workdir: str, *, config: str, options: list[str]
) -> dict[str, Any]:
  """The summary.json of a run."""
  arguments = [f"--config={config}", f"--workdir={workdir}", f"--config.seed={seed}"]
  arguments += [f"--config.selector.name={selector}", *options]
  if selector == "full":  # whatever part of the rows the others take
    arguments.append("--config.selector.ratio=1.0")
  subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, check=True)
  return json.loads((pathlib.Path(workdir) / "summary.json").read_text())


def table(result: dict[str, Any]) -> str:
  """A row a selector, as Markdown."""
  runs = result["runs"]
  lines = [
    "| selector | ratio | test accuracy, mean of seeds | 95 % interval | seeds | examples seen"
    " | wall s | fit s | selection |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for selector in dict.fromkeys(run["selector"] for run in runs):
    mine = [run for run in runs if run["selector"] == selector]
    accuracy = 100 * np.array([run["test_accuracy"] for run in mine])
    half = stats.t.ppf(0.975, len(mine) - 1) * accuracy.std(ddof=1) / np.sqrt(len(mine))
    median = lambda key, mine=mine: np.median([run[key] for run in mine])
    lines.append(
      f"| {selector} | {mine[0]['ratio']:.2g} | {accuracy.mean():.2f} | ± {half:.2f} |"
      f" {', '.join(f'{a:.2f}' for a in accuracy)} | {mine[0]['examples_seen']:,} |"
      f" {median('wall_seconds'):.0f} | {median('fit_seconds'):.1f} |"
      f" {median('selection_overhead_pct'):.2f} % |"
    )
  return "\n".join(lines)


def begun(path: pathlib.Path, *, config: str, options: list[str], resume: bool) -> dict[str, Any]:
  """The result with no run in it yet, or with those of a call before.

  Raises:
    ValueError: if those were of another configuration, machine or version.
  """
  asked = {"config": config, "options": options, "machine": machine()}
  if not (resume and path.exists()):
    return {**asked, "runs": []}
  found = json.loads(path.read_text())
  for what, value in asked.items():
    if found[what] != value:
      raise ValueError(f"{path} has {what} {found[what]}, not {value}: leave out --resume")
  return found


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  path = ROOT / "benchmarks" / "results" / f"{given.name}.json"
  # A folder of this machine is no part of the result.
  cache = [f"--config.data.cache_dir={given.cache}"] if given.cache else []
  how = {"config": given.config, "options": [*given.option, *cache]}
  result = begun(path, config=given.config, options=given.option, resume=given.resume)
  done = {(run["selector"], run["seed"]) for run in result["runs"]}
  with tempfile.TemporaryDirectory() as folder:
    # Seeds outermost: a drift of the machine falls on all selectors alike.
    for seed in range(given.seeds):
      for selector in given.selectors:
        if (selector, seed) not in done:
          result["runs"].append(one_run(selector, seed, f"{folder}/{selector}-{seed}", **how))
          path.write_text(json.dumps(result, indent=2) + "\n")
  print(table(result))


if __name__ == "__main__":
  flags.DEFINE_string("name", "digits", "Names the result.")
  flags.DEFINE_string("config", "configs/digits.py", "Of the runs.")
  flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ...")
  flags.DEFINE_list("selectors", ["full", "random", "rs2", "rep_div"], "To compare.")
  flags.DEFINE_multi_string("option", [], "Further options of every run.")
  flags.DEFINE_string("cache", "", "Folder of embeddings, outside of the repository; of wordnet.")
  flags.DEFINE_bool("resume", False, "Keep the runs that the result has already.")
  app.run(main)
