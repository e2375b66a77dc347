"""Whether queries of one source bring the rows of that source: Natural Instructions' subtasks.

    python -m benchmarks.subset_transfer --folder=DIR
    python -m benchmarks.subset_transfer --folder=DIR --encoder=SmolLM2-135M-Instruct --rows=33

DIR is natural_instructions/ of the BIG-bench archive (pip download --no-deps --no-clean
bigbench==1.0.0). All inputs of its 61 subtasks, or a slice of at most ``--rows`` of each, are the
pool, cut at 128 tokens and embedded by all-MiniLM-L6-v2: for crds_r all its hidden states, for the
others the last; or by a causal model, for crds_r its last 18 layers. For each subtask 8 rows of its
own are queries and cannot be taken; each method takes 3.5 % of the rest. Counted is the share that
comes from the subtask of the queries, or from all subtasks made of the same corpus, also as a share
of the largest that was possible.

Leaves benchmarks/results/subset_transfer.json: numbers alone, no text.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from scipy import stats

from benchmarks import glosses
from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from jsel.data.embedding_cache import EmbeddingCache, text_keys
from jsel.data.encode import encode
from jsel.models.encoders import open_encoder
from jsel.selection import select

PATH = RESULTS / "subset_transfer.json"
BUDGET = 0.035
QUERIES = 8
CUT = 128  # tokens of an input
# Encoders, and the layers that crds_r takes of them.
ENCODERS = {glosses.ENCODER: glosses.LAYERS, "SmolLM2-135M-Instruct": tuple(range(-18, 0))}
Case = tuple[str, str, int, dict[str, Any]]  # name, method, layers, constants


def cases(layers: int) -> list[Case]:
  """What is compared, for an encoder that gives so many layers."""
  of_all: dict[str, Any] = {"layers": layers}
  equal = of_all | {"normalize_layers": True}
  return [
    ("random", "random", 1, {}),
    ("rds", "rds", 1, {}),
    ("crds_w", "crds_w", 1, {}),
    ("crds_w, shrinkage 1", "crds_w", 1, {"shrinkage": 1.0}),
    ("crds_r", "crds_r", layers, of_all),
    ("crds_r, layers of equal length", "crds_r", layers, equal),
  ]


class Texts(NamedTuple):
  """Inputs, by source."""

  texts: list[str]
  source: np.ndarray  # [n] int32
  group: np.ndarray  # [n] int32, the corpus that the source is made of
  sources: list[str]
  groups: list[str]
  there: int  # rows in all files


def read(folder: Path, rows_a_source: int | None = None) -> Texts:
  """A random ``rows_a_source`` of each subtask in ``folder``, all where there are no more.

  An input that a subtask has twice is there once.

  Raises:
    ValueError: if there is no subtask.
  """
  paths = sorted(folder.expanduser().glob("subtask*/task.json"))
  if not paths:
    raise ValueError(f"there is no subtask*/task.json in {folder}: --folder has those of BIG-bench")
  sources = [path.parent.name for path in paths]
  corpora = [corpus(source) for source in sources]
  groups = sorted(set(corpora))
  texts: list[str] = []
  source, there = [], 0
  for number, path in enumerate(paths):
    inputs = [row["input"] for row in json.loads(path.read_text())["examples"]]
    there += len(inputs)
    inputs = list(dict.fromkeys(inputs))
    order = np.random.default_rng([0, number]).permutation(len(inputs))[:rows_a_source]
    texts += [inputs[row] for row in np.sort(order)]
    source += [number] * len(order)
  of_source = np.array([groups.index(name) for name in corpora], np.int32)
  number = np.array(source, np.int32)
  return Texts(texts, number, of_source[number], sources, groups, there)


def corpus(source: str) -> str:
  """The corpus in the name of a subtask.

  >>> corpus("subtask002_quoref_answer_generation"), corpus("subtask045_miscellaneous_typing")
  ('quoref', 'misc')
  """
  found = re.match(r"subtask\d+_([a-z]+)", source)
  name = found.group(1) if found else source
  return "misc" if name.startswith("misc") else name


def shares(
  layers: np.ndarray,
  source: np.ndarray,
  group: np.ndarray,
  case: Case,
  *,
  asked: int,
  seed: int,
  all_layers: int,
) -> dict[str, Any]:
  """What ``case`` takes for queries of the source ``asked``.

  Args:
    layers: ``[n, all_layers * d]`` pooled hidden states, one after another.
    source: ``[n]``.
    group: ``[n]``.
    case: of `cases`.
    asked: a source.
    seed: of the queries and of the method.
    all_layers: of ``layers``.
  """
  name, method, wanted, constants = case
  own = np.flatnonzero(source == asked)
  queries = np.random.default_rng([1, seed, asked]).permutation(own)[:QUERIES]
  held = np.zeros(len(source), bool)
  held[queries] = True
  x = layers[:, layers.shape[1] // all_layers * (all_layers - wanted) :]
  found = select(
    np.ascontiguousarray(x),
    method,
    BUDGET,
    queries=x[queries],
    exclude=held,
    seed=seed,
    **constants,
  )
  taken = len(found.index)
  corpus_asked = group[own[0]]
  of = lambda rows: float(rows.sum() / taken)
  most = lambda rows: min(int((rows & ~held).sum()), taken) / taken
  return {
    **{"case": name, "source": asked, "seed": seed, "taken": taken},
    "of_source": of(source[found.index] == asked),
    "of_group": of(group[found.index] == corpus_asked),
    "most_of_source": most(source == asked),
    "most_of_group": most(group == corpus_asked),
  }


def by_source(runs: list[dict[str, Any]], case: str, what: str) -> np.ndarray:
  """``[sources]`` of one case, the mean of its seeds, in the order of the sources."""
  mine = [run for run in runs if run["case"] == case]
  return np.array(
    [
      np.mean([run[what] for run in mine if run["source"] == source])
      for source in sorted({run["source"] for run in mine})
    ]
  )


def percent(values: np.ndarray) -> str:
  """Mean and half of the 95 % interval over sources."""
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
  return f"{100 * values.mean():.1f} ± {100 * half:.1f}"


def table(runs: list[dict[str, Any]]) -> str:
  """A row a case, as Markdown; means and intervals are over the sources."""
  lines = [
    "| method | % of the source | of the largest possible | % of its corpus"
    " | of the largest possible | sources where it is ahead of rds, behind"
    " | mean difference to rds |",
    f"|{7 * '---|'}",
  ]
  bar = by_source(runs, "rds", "of_source")
  for case in dict.fromkeys(run["case"] for run in runs):
    of = lambda what, case=case: by_source(runs, case, what)
    gain = of("of_source") - bar
    cells = [
      case,
      percent(of("of_source")),
      percent(of("of_source") / of("most_of_source")),
      percent(of("of_group")),
      percent(of("of_group") / of("most_of_group")),
      "" if case == "rds" else f"{(gain > 0).sum()}, {(gain < 0).sum()}",
      "" if case == "rds" else percent(gain),
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  found = read(Path(given.folder), given.rows)
  taken = ENCODERS[given.encoder]
  encoder = open_encoder(given.encoder, layers=taken, max_length=CUT)
  encode(found.texts, encoder, cache_dir=given.cache)
  cache = EmbeddingCache(given.cache, encoder=encoder.name, width=encoder.width)
  layers, length = cache.read(text_keys(found.texts))
  about = {
    **{"rows": len(layers), "rows_there": found.there, "sources": len(found.sources)},
    **{"groups": len(found.groups), "rows_a_source": given.rows, "cut_at": CUT},
    **{"cut": float((length > CUT).mean()), "budget": BUDGET, "queries": QUERIES},
    **{"layers": len(taken), "machine": machine(), "machine_shared": given.shared},
  }
  kept = json.loads(PATH.read_text()) if PATH.exists() else {}
  runs = []
  for seed in range(given.seeds):
    for case in cases(len(taken)):
      for asked in range(len(found.sources)):
        options = {"asked": asked, "seed": seed, "all_layers": len(taken)}
        runs.append(shares(layers, found.source, found.group, case, **options))
      print(f"seed {seed}, {case[0]}: {percent(by_source(runs, case[0], 'of_source'))}", flush=True)
    kept[given.encoder] = about | {"seeds": seed + 1, "runs": runs}
    PATH.write_text(json.dumps(kept, indent=1) + "\n")
  print(table(runs))


if __name__ == "__main__":
  flags.DEFINE_string("folder", "~/.cache/jsel/natural_instructions", "Of the subtasks.")
  flags.DEFINE_string("cache", glosses.CACHE, "Folder of embeddings, outside of the repository.")
  flags.DEFINE_enum("encoder", glosses.ENCODER, list(ENCODERS), "Of the inputs.")
  flags.DEFINE_integer("rows", None, "Of each subtask, at the most; otherwise all.")
  flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ...: draws of queries.")
  flags.DEFINE_bool("shared", False, "Others use the machine: seconds are no measure.")
  app.run(main)
