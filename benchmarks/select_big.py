"""Selection from a pool of embeddings larger than memory: the memory that takes, and the time.

    python -m benchmarks.select_big --folder=DIR
    python -m benchmarks.select_big --rows=200000 --methods=rds,kmq

Writes made-up embeddings, 5,000,000 x 384 float32 in parquet files (7.7 GB), with lengths, scores
and sources, and 285 queries. Then `python -m jsel.select` takes 3.5 % of them by each method, as a
person would start it. Memory is that of the process and of all that it starts, as a whole and
without what files back (benchmarks/watch.py); beside both stands what the command's own plan said
before it began. Leaves benchmarks/results/select_big.json, in which a
case that is measured again replaces itself; exits with 1 where a run took more than --limit_gib. A
pool that is in the folder already is used, and kept.
"""

import json
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags

from benchmarks.machine import machine
from benchmarks.watch import ROOT, watched

PATH = ROOT / "benchmarks" / "results" / "select_big.json"
METHODS = ("rds", "crds_w", "kmq", "km_random", "sensitivity", "dac", "longest")
QUERIES = 285
SOURCES = 61
FILE_ROWS = 500_000
GROUP_ROWS = 16_384  # of a row group


def write_pool(folder: pathlib.Path, rows: int, width: int) -> None:
  """Parquet files of unit rows around the middles of sources, and queries.npy."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  middles = rng.standard_normal((SOURCES, width), np.float32)
  for file, start in enumerate(range(0, rows, FILE_ROWS)):
    count = min(FILE_ROWS, rows - start)
    writer = None
    for first in range(0, count, GROUP_ROWS):
      table = _rows(rng, middles, start + first, min(GROUP_ROWS, count - first))
      writer = writer or pq.ParquetWriter(folder / f"pool-{file:03d}.parquet", table.schema)
      writer.write_table(table)
    assert writer is not None
    writer.close()
  queries = middles[:8].repeat(-(-QUERIES // 8), axis=0)[:QUERIES]
  queries = queries + rng.standard_normal(queries.shape, np.float32)
  np.save(folder / "queries.npy", queries / np.linalg.norm(queries, axis=1, keepdims=True))


def _rows(rng: np.random.Generator, middles: np.ndarray, start: int, count: int) -> pa.Table:
  source = rng.integers(0, SOURCES, count)
  x = middles[source] + rng.standard_normal((count, middles.shape[1]), np.float32)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  embedding = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
  return pa.table(
    {
      "embedding": embedding,
      "id": np.arange(start, start + count),
      "source": source,
      "length": rng.integers(10, 500, count),
      "score": rng.exponential(size=count),
    }
  )


def select(folder: pathlib.Path, method: str, budget: float) -> dict[str, Any]:
  """One run of the command: its memory, its time, and how many rows it took."""
  with tempfile.TemporaryDirectory(prefix="jsel-select-") as temporary:
    workdir = pathlib.Path(temporary) / "run"
    options = (
      *(f"pool={folder}/pool-*.parquet", f"queries={folder}/queries.npy"),
      *(f"budget={budget}", f"method.name={method}"),
    )
    command = [sys.executable, "-m", "jsel.select", "--config=configs/select/rds.py"]
    command += [f"--workdir={workdir}", *(f"--config.{option}" for option in options)]
    found = watched(command, pathlib.Path(temporary) / "log")
    summary = json.loads((workdir / "summary.json").read_text())
    taken = pq.read_table(workdir / "subset.parquet", columns=["index"])["index"].to_numpy()
  assert len(np.unique(taken)) == len(taken) == summary["rows"]
  told = {
    **{"planned_seconds": summary["estimate"]["seconds"]},
    **{"planned_bytes": summary["estimate"]["peak_bytes"]},
    **{"stage_seconds": summary["stage_seconds"], "walks": summary["walks"]},
  }
  return {"method": method, "budget": budget, "rows_taken": len(taken), **found, **told}


def facts(folder: pathlib.Path) -> dict[str, Any]:
  """What the pool consists of."""
  files = sorted(folder.glob("pool-*.parquet"))
  heads = [pq.ParquetFile(path) for path in files]
  return {
    "rows": sum(head.metadata.num_rows for head in heads),
    "width": heads[0].schema_arrow.field("embedding").type.list_size,
    "file_bytes": sum(path.stat().st_size for path in files),
    "files": len(files),
  }


def table(results: list[dict[str, Any]]) -> str:
  """A row a case, as Markdown."""
  lines = [
    "| method | pool rows | taken | seconds | planned s | peak GiB | planned GiB | without files |",
    f"|{8 * '---|'}",
  ]
  for result in results:
    cells = [
      result["method"],
      f"{result['pool']['rows']:,}",
      f"{result['rows_taken']:,}",
      f"{result['seconds']:.0f}",
      f"{result['planned_seconds']:.0f}",
      f"{result['peak_bytes'] / 2**30:.2f}",
      f"{result['planned_bytes'] / 2**30:.2f}",
      f"{result['peak_unbacked_bytes'] / 2**30:.2f}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> int:
  del argv
  given = flags.FLAGS
  folder = pathlib.Path(given.folder or pathlib.Path(tempfile.gettempdir()) / "jsel-select-big")
  there = (folder / "queries.npy").exists()
  kept: list[dict[str, Any]] = []
  try:
    if not there:
      write_pool(folder, given.rows, given.width)
    pool = facts(folder)
    print(f"{folder}: {pool['rows']:,} rows, {pool['file_bytes'] / 1e9:.2f} GB of files")
    for method in given.methods:
      result = select(folder, method, given.budget) | {"pool": pool, "machine": machine()}
      case = lambda r: (r["method"], r["budget"], r["pool"]["rows"])
      kept = json.loads(PATH.read_text())["results"] if PATH.exists() else []
      kept = [other for other in kept if case(other) != case(result)] + [result]
      PATH.write_text(json.dumps({"results": kept}, indent=2) + "\n")
      print(table([result]).splitlines()[-1], flush=True)
  finally:
    if not (given.keep or there):
      shutil.rmtree(folder, ignore_errors=True)
  print(table(kept))
  over = [r["method"] for r in kept if r["peak_unbacked_bytes"] > given.limit_gib * 2**30]
  if over:
    print(f"over {given.limit_gib} GiB: {', '.join(over)}", file=sys.stderr)
  return 1 if over else 0


if __name__ == "__main__":
  flags.DEFINE_list("methods", list(METHODS), "Each in a run of its own.")
  flags.DEFINE_string("folder", None, "Of the pool; one in the system's temporary folder if None.")
  flags.DEFINE_bool("keep", False, "Leave the pool where it is.")
  flags.DEFINE_integer("rows", 5_000_000, "Of the pool.")
  flags.DEFINE_integer("width", 384, "Of an embedding.")
  flags.DEFINE_float("budget", 0.035, "Share of the pool to take.")
  flags.DEFINE_float("limit_gib", 6.0, "Memory without what files back that a run may take.")
  app.run(main)
