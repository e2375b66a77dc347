"""What a classifier learns from the subset that each method takes, against random and all rows.

    python -m benchmarks.subset_accuracy
    python -m benchmarks.subset_accuracy --methods=kmq,random

The pool is WordNet's noun glosses as all-MiniLM-L6-v2 embeds them (kept in --cache). Methods take
1 %, 3.5 % and 10 % of its rows, or of its tokens, for each of 5 seeds; a softmax head is trained on
them. Its hyperparameters are those of the best validation accuracy on random 3.5 %, the same for
all; what is reported is the test accuracy after the last step, which chooses nothing. A seed is one
of the method, of the draw of 8 queries a class from 16 that are held out, and of the head. Quality
is log p(label) of a head trained on a disjoint 5 %, the loss its negative. rs2 and full are no
subsets: rs2 trains on other rows in every epoch, in as many steps as random.

Leaves benchmarks/results/subset_accuracy.json; a case that is measured again replaces itself.
"""

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags
from scipy import stats

from benchmarks import glosses, heads
from benchmarks.glosses import Rows, Split
from benchmarks.heads import Settings
from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from benchmarks.rankings import CONSTANTS, cut, lacks, rankings_of_seeds
from jsel.selection.compare import neighbours_accuracy
from jsel.selectors.methods import METHODS, make

PATH = RESULTS / "subset_accuracy.json"
BUDGETS = (0.01, 0.035, 0.1)
UNITS = ("rows", "tokens")
GRID = [
  Settings(hidden, rate, decay, epochs)
  for hidden, rate, decay, epochs in itertools.product(
    (0, 128), (1e-3, 3e-3, 1e-2), (1e-2, 1e-1), (20, 50)
  )
]


def best_settings(
  rows: Rows, parts: Split, grid: Sequence[Settings], *, share: float, seeds: int
) -> tuple[Settings, list[dict[str, Any]]]:
  """The settings of the best mean validation accuracy on random subsets, and that of all."""
  at = [np.random.default_rng([3, seed]).permutation(parts.pool) for seed in range(seeds)]
  subsets = [order[: round(share * len(order))] for order in at]
  tried = []
  for settings in grid:
    params = heads.train(rows.x, rows.labels, subsets, settings=settings)
    found, _ = heads.accuracies(params, rows.x[parts.validation], rows.labels[parts.validation])
    tried.append({**settings._asdict(), "validation_accuracy": float(found.mean())})
  best = max(range(len(tried)), key=lambda place: tried[place]["validation_accuracy"])
  return grid[best], tried


def trained(
  rows: Rows,
  parts: Split,
  subsets: list[np.ndarray],
  settings: Settings,
  *,
  weights: list[np.ndarray] | None = None,
  steps: int = 0,
) -> dict[str, Any]:
  """What heads that are trained on ``subsets`` get right on the test rows, a value a seed."""
  begun = time.perf_counter()
  steps = steps or heads.steps_of(subsets, settings)
  params = heads.train(
    rows.x, rows.labels, subsets, settings=settings, weights=weights, steps=steps
  )
  accuracy, macro = heads.accuracies(params, rows.x[parts.test], rows.labels[parts.test])
  return {
    "test_accuracy": accuracy.tolist(),
    "macro_accuracy": macro.tolist(),
    "examples_seen": steps * settings.batch,
    "train_seconds": (time.perf_counter() - begun) / len(subsets),
  }


def runs_of(
  method: str,
  rows: Rows,
  parts: Split,
  losses: np.ndarray,
  settings: Settings,
  *,
  units: Sequence[str],
  budgets: Sequence[float],
  seeds: int,
  constants: dict[str, Any],
) -> list[dict[str, Any]]:
  """A result for each unit and budget."""
  options = {"budgets": budgets, "constants": constants}
  of = rankings_of_seeds(method, rows, parts, losses, seeds=seeds, **options)
  labelled = lambda at: (rows.x[at], rows.labels[at])
  results = []
  for unit, (place, budget) in itertools.product(units, enumerate(budgets)):
    found = [cut(one[place].ranking, rows.length[parts.pool], unit, budget) for one in of]
    subsets = [parts.pool[one.index] for one in found]
    weights = None if found[0].weight is None else [np.asarray(one.weight) for one in found]
    results.append(
      {
        **{"method": method, "unit": unit, "budget": budget, "constants": constants},
        "rows": [len(subset) for subset in subsets],
        "tokens": [int(rows.length[subset].sum()) for subset in subsets],
        "classes": [len(np.unique(rows.labels[subset])) for subset in subsets],
        "neighbours_accuracy": [
          neighbours_accuracy(*labelled(subset), *labelled(parts.validation)) for subset in subsets
        ],
        "select_seconds": float(np.median([one[place].seconds for one in of])),
        **trained(rows, parts, subsets, settings, weights=weights),
      }
    )
  return results


def bars(
  rows: Rows, parts: Split, settings: Settings, budgets: Sequence[float], seeds: int
) -> list[dict[str, Any]]:
  """rs2, as many steps as a subset of each budget would take, and all rows."""
  everything = [parts.pool] * seeds
  full = {"method": "full", "unit": "rows", "budget": 1.0, "rows": [len(parts.pool)] * seeds}
  results = [full | trained(rows, parts, everything, settings)]
  for budget in budgets:
    count = round(budget * len(parts.pool))
    steps = heads.steps_of([parts.pool[:count]], settings)
    rs2 = {"method": "rs2", "unit": "rows", "budget": budget, "rows": [count] * seeds}
    results.append(rs2 | trained(rows, parts, everything, settings, steps=steps))
  return results


def interval(values: Sequence[float]) -> str:
  """Mean and half of the 95 % interval (Student's), in percent."""
  percent = 100 * np.asarray(values)
  if len(percent) < 2:
    return f"{percent.mean():.2f}"
  half = stats.t.ppf(0.975, len(percent) - 1) * percent.std(ddof=1) / np.sqrt(len(percent))
  return f"{percent.mean():.2f} ± {half:.2f}"


def table(runs: list[dict[str, Any]]) -> str:
  """A row a case, as Markdown; the best of a budget first."""
  lines = [
    "| budget | method | test accuracy | mean over classes | rows | tokens | classes | nearest"
    " neighbours | examples seen | choosing s | training s |",
    f"|{11 * '---|'}",
  ]
  mean = lambda run: np.mean(run["test_accuracy"])
  for run in sorted(runs, key=lambda run: (run["unit"], run["budget"], -mean(run))):
    number = lambda key, run=run: f"{np.mean(run[key]):,.0f}" if key in run else ""
    near = run.get("neighbours_accuracy")
    cells = [
      f"{100 * run['budget']:g} % of {run['unit']}",
      run["method"],
      interval(run["test_accuracy"]),
      interval(run["macro_accuracy"]),
      *(number("rows"), number("tokens"), number("classes")),
      f"{100 * np.mean(near):.1f}" if near else "",
      f"{run['examples_seen']:,}",
      f"{run['select_seconds']:.1f}" if "select_seconds" in run else "",
      f"{run['train_seconds']:.1f}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def agreement(runs: list[dict[str, Any]]) -> str:
  """How the ranks of nearest neighbours' accuracies go with those of trained ones, as Markdown."""
  lines = ["| budget | methods | Spearman's rank correlation |", "|---|---|---|"]
  case = lambda run: (run["unit"], run["budget"])
  known = [run for run in runs if "neighbours_accuracy" in run]
  for unit, budget in sorted({case(run) for run in known}):
    mine = [run for run in known if case(run) == (unit, budget)]
    if len(mine) > 2:
      means = lambda key, mine=mine: [np.mean(run[key]) for run in mine]
      rho = stats.spearmanr(means("neighbours_accuracy"), means("test_accuracy")).statistic
      lines.append(f"| {100 * budget:g} % of {unit} | {len(mine)} | {rho:.2f} |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  rows = glosses.read_wordnet(given.cache)
  parts = glosses.split(rows.labels)
  result = json.loads(PATH.read_text()) if PATH.exists() else {"runs": [], "not_run": {}}
  if "settings" not in result:
    settings, tried = best_settings(rows, parts, GRID, share=0.035, seeds=3)
    result |= {"settings": settings._asdict(), "grid": tried}
  settings = Settings(**result["settings"])
  losses, right = glosses.probe(rows, parts, settings)
  result |= {
    "split": {name: int(getattr(parts, name).size) for name in Split._fields},
    "classes": int(rows.labels.max()) + 1,
    "probe_accuracy": right,
  }

  def keep(found: list[dict[str, Any]]) -> None:
    case = lambda run: (run["method"], run["unit"], run["budget"])
    about = {"machine": machine(), "machine_shared": given.shared}
    new = {case(run) for run in found}
    result["runs"] = [run for run in result["runs"] if case(run) not in new]
    result["runs"] += [run | about for run in found]
    PATH.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(table(found).splitlines()[2:]), flush=True)

  for method in given.methods:
    if method == "bars":
      keep(bars(rows, parts, settings, BUDGETS, given.seeds))
      continue
    missing, units = lacks(method, rows), list(UNITS)
    if missing:
      result["not_run"][method] = missing
      continue
    if make(method).weighted:
      units.remove("tokens")
      result["not_run"][f"{method} of tokens"] = "weights hold for a number of rows"
    arguments = {"units": units, "budgets": BUDGETS, "seeds": given.seeds}
    constants = CONSTANTS.get(method, {})
    keep(runs_of(method, rows, parts, losses, settings, **arguments, constants=constants))
  print(table(result["runs"]), agreement(result["runs"]), sep="\n\n")


if __name__ == "__main__":
  flags.DEFINE_string("cache", glosses.CACHE, "Folder of embeddings, outside of the repository.")
  flags.DEFINE_list("methods", ["bars", *METHODS], "To compare; bars are rs2 and all rows.")
  flags.DEFINE_integer("seeds", 5, "Seeds 0, 1, ...")
  flags.DEFINE_bool("shared", False, "Others use the machine: seconds are no measure.")
  app.run(main)
