"""A pool larger than memory, trained on from the disk: the memory that takes, and the speed.

    python -m benchmarks.big_pool --folder=DIR
    python -m benchmarks.big_pool --feeds=planned --selectors=loss --folder=DIR --keep

Writes 133,000 made-up images of 224 x 224 x 3 bytes with `python -m jsel.data.prepare`, 20 GB, and
then starts `python train.py` on them, 500 steps of 64 rows, with each feed and selector. The model
is one small layer over the pixels: what is looked at is the feed and the memory. Every 0.2 s the
memory of the run and all processes that it started is added up from /proc: their proportional set
sizes (Pss), what is theirs alone and their part of what they share, as a whole (with the code of
libraries), and without what is backed by files. Pages of the pool's files that the system keeps for
itself are of no process.

Leaves benchmarks/results/big_pool.json, in which a case that is measured again replaces itself, and
prints its table; exits with 1 if a run took more than --limit_gib. The pool is deleted at the end
unless --keep says so; one that is there already is used, and kept.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.machine import machine
from benchmarks.watch import watched

ROOT = pathlib.Path(__file__).parent.parent
PATH = ROOT / "benchmarks" / "results" / "big_pool.json"
MODEL = ("model.name=mlp", "model.mlp.hidden=(16,)")


# ---- The pool -----------------------------------------------------------------------------------


def prepare(folder: pathlib.Path, *, shape: str, rows: int, test_rows: int, shards: int) -> None:
  subprocess.run(
    [
      *(sys.executable, "-m", "jsel.data.prepare", f"--synthetic={shape}", f"--rows={rows}"),
      *(f"--test_rows={test_rows}", f"--shards={shards}", f"--out={folder}"),
    ],
    cwd=ROOT,
    check=True,
  )


def facts(folder: pathlib.Path) -> dict[str, Any]:
  """What the pool consists of."""
  info = json.loads((folder / "train" / "info.json").read_text())
  files = [path.stat().st_size for path in (folder / "train").glob("*.array_record")]
  row_bytes = int(np.prod(info["shape"])) * np.dtype(info["dtype"]).itemsize
  return {
    "rows": info["rows"],
    "shape": info["shape"],
    "bytes": info["rows"] * row_bytes,
    "file_bytes": sum(files),
    "files": len(files),
  }


# ---- Runs ---------------------------------------------------------------------------------------


def train(
  folder: pathlib.Path,
  *,
  feed: str,
  selector: str,
  steps: int,
  batch_size: int,
  overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
  """One run of train.py on the pool: its memory, and the speed that its metrics tell."""
  options = (
    *("data.name=array_record", f"data.dir={folder}", f"feed={feed}", f"selector.name={selector}"),
    *(f"steps={steps}", f"batch_size={batch_size}", f"eval_every={steps}"),
    *(f"checkpoint_every={steps}", f"log_every={max(steps // 10, 1)}"),
    *(*MODEL, *overrides),
  )
  with tempfile.TemporaryDirectory(prefix="jsel-run-") as temporary:
    workdir = pathlib.Path(temporary) / "run"
    command = [sys.executable, "train.py", "--config=configs/own_data.py", f"--workdir={workdir}"]
    command += [f"--config.{option}" for option in options]
    result = watched(command, pathlib.Path(temporary) / "log")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((workdir / "summary.json").read_text())
  # The first has the compiling in it.
  speeds = [line["examples_per_second"] for line in lines if "examples_per_second" in line][1:]
  assert summary["steps"] == steps
  assert summary["feed"] == feed
  return {
    "feed": feed,
    "selector": selector,
    "steps": steps,
    "batch_size": batch_size,
    "examples_per_second": speeds,
    "test_accuracy": summary["test_accuracy"],
    **result,
  }


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_list("feeds", "planned,super_batch", "Of train.py.")
  flags.DEFINE_list("selectors", "rs2,loss", "Each with each feed.")
  flags.DEFINE_string("folder", None, "Of the pool; one in the system's temporary folder if None.")
  flags.DEFINE_bool("keep", False, "Leave the pool where it is.")
  flags.DEFINE_enum("shape", "imagenet", ["imagenet", "smoke"], "Of jsel.data.synthetic.")
  flags.DEFINE_integer("rows", 133_000, "Of the pool.")
  flags.DEFINE_integer("steps", 500, "Of each run.")
  flags.DEFINE_integer("batch_size", 64, "Rows in a step.")
  flags.DEFINE_float("limit_gib", 4.0, "Resident memory that a run may take.")
  flags.DEFINE_multi_string("override", [], "KEY=VALUE of the config, for all runs.")


def main(argv: list[str]) -> int:
  del argv
  given = flags.FLAGS
  folder = pathlib.Path(given.folder or pathlib.Path(tempfile.gettempdir()) / "jsel-big-pool")
  there = (folder / "train" / "info.json").exists()
  keep = given.keep or there
  kept: list[dict[str, Any]] = []
  try:
    if not there:
      prepare(folder, shape=given.shape, rows=given.rows, test_rows=1000, shards=16)
    pool = facts(folder)
    print(f"{folder}: {pool['rows']:,} rows, {pool['file_bytes'] / 1e9:.2f} GB of files")
    for feed in given.feeds:
      for selector in given.selectors:
        result = train(
          folder,
          feed=feed,
          selector=selector,
          steps=given.steps,
          batch_size=given.batch_size,
          overrides=tuple(given.override),
        )
        result |= {"overrides": given.override, "pool": pool, "machine": machine()}
        case = lambda r: (r["feed"], r["selector"], r["overrides"])
        kept = json.loads(PATH.read_text())["results"] if PATH.exists() else []
        kept = [other for other in kept if case(other) != case(result)] + [result]
        PATH.write_text(json.dumps({"model": MODEL, "results": kept}, indent=2) + "\n")
        print(f"{feed} {selector}: {result['peak_bytes'] / 2**30:.2f} GiB", flush=True)
  finally:
    if not keep:
      shutil.rmtree(folder, ignore_errors=True)
  print(table(kept))
  for result in over(kept, given.limit_gib):
    print(f"over {given.limit_gib} GiB: {result['feed']} {result['selector']}", file=sys.stderr)
  return 1 if over(kept, given.limit_gib) else 0


def over(results: list[dict[str, Any]], gib: float) -> list[dict[str, Any]]:
  return [result for result in results if result["peak_bytes"] > gib * 2**30]


def table(results: list[dict[str, Any]]) -> str:
  lines = [
    "| feed | selector | options | peak GiB | without files | median | examples/s | seconds |",
    f"|{8 * '---|'}",
  ]
  for result in results:
    speeds = result["examples_per_second"]
    cells = [
      result["feed"],
      result["selector"],
      ", ".join(result["overrides"]),
      f"{result['peak_bytes'] / 2**30:.2f}",
      f"{result['peak_unbacked_bytes'] / 2**30:.2f}",
      f"{result['median_bytes'] / 2**30:.2f}",
      f"{np.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
      f"{result['seconds']:.0f}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  app.run(main)
