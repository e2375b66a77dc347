"""Chooses a subset of a pool of embeddings.

    python -m jsel.select --config=configs/select/rds.py --config.pool=pool.parquet \
        --config.queries=queries.parquet --config.budget=0.035 --workdir=runs/subset

Running it again says that all is done. Exit codes: 0 done; 2 a mistake in what was asked for, in
one line; 143 and 130 stopped by SIGTERM and SIGINT; 1 anything else.
"""

import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from ml_collections import ConfigDict, config_flags

from jsel.selection import screen
from jsel.selection.pool import Pool
from jsel.selection.reader import Reader
from jsel.selection.run import select
from jsel.selection.walk import Stopped
from jsel.selectors.parts import Ranking
from jsel.training import outputs
from jsel.training.stopping import StopSignals

CONFIG = config_flags.DEFINE_config_file("config", None, "What to select.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the subset is put.")


def select_subset(config: ConfigDict, workdir: str) -> int:
  """The whole job; returns the exit code."""
  began = time.perf_counter()
  path = outputs.check_workdir(workdir)
  resolved = outputs.config_dict(config)
  if (path / "summary.json").exists() and not config.overwrite:
    print(f"jsel: all is done, see {path / 'summary.json'}; --config.overwrite does it again")
    return 0
  if not config.pool:
    raise ValueError("--config.pool is missing: files of embeddings to choose from")
  names = config.columns.to_dict()
  with StopSignals() as stop:
    reader = Reader(config, path, stop=stop.asked)
    try:
      if config.shard:
        exclude = config.exclude if config.exclude_similarity else ""
        reader.encode_shard({"pool": config.pool, "queries": config.queries, "exclude": exclude})
        print(f"jsel: shard {config.shard} is encoded; the run without a shard selects")
        return 0
      pool = reader.open(config.pool, names, key="pool")
      print(f"jsel: {pool.size:,} rows of {pool.width} columns", flush=True)
      queries = None
      if config.queries:
        asked = reader.open(config.queries, {"embedding": names["embedding"]}, key="queries")
        queries = np.concatenate(list(asked.blocks(4096)))
      searched = screen.search(pool, reader, config, stop=stop.asked)
      ranking = select(
        pool,
        config.method.name,
        config.budget,
        unit=config.budget_unit,
        queries=queries,
        exclude=searched.mask,
        on_nonfinite=config.on_nonfinite,
        seed=config.seed,
        stop=stop.asked,
        **config.method[config.method.name].to_dict()
        if config.method.name in config.method
        else {},
      )
    except Stopped:
      print("jsel: stopped, nothing was written")
      return stop.exit_code
  outputs.write_json(path / "config.json", resolved)
  facts = {"name": "pool", "source": config.pool, "sha256": pool.sha256}
  outputs.write_json(path / "manifest.json", outputs.manifest(data=facts, seed=config.seed))
  buffer = io.BytesIO()
  pq.write_table(subset_table(pool, ranking), buffer)
  outputs.put(path / "subset.parquet", buffer.getvalue())
  summary = {
    "method": config.method.name,
    "rows": len(ranking.index),
    "pool_rows": pool.size,
    "budget": config.budget,
    "budget_unit": config.budget_unit,
    "seed": config.seed,
    **reader.facts,
    **screen.write(path, searched),
    "wall_seconds": time.perf_counter() - began,
  }
  outputs.write_json(path / "summary.json", summary)  # the last: where it is, all is
  print(f"jsel: {len(ranking.index):,} rows in {path / 'subset.parquet'}")
  return 0


def subset_table(pool: Pool, ranking: Ranking) -> pa.Table:
  """A row for each that is taken, by rank."""
  m = len(ranking.index)
  columns = {"index": ranking.index}
  for name in ("id", "group", "source"):
    if name in pool.columns:
      columns[name] = pool.columns[name].take(pa.array(ranking.index))
  columns.setdefault("id", ranking.index)
  weight = np.ones(m, np.float32) if ranking.weight is None else ranking.weight
  columns |= {"score": ranking.score, "weight": weight, "rank": np.arange(m, dtype=np.int32)}
  for name in ("query", "similarity", "cluster"):
    if getattr(ranking, name) is not None:
      columns[name] = getattr(ranking, name)
  return pa.table(columns)


def main(argv: list[str]) -> int:
  del argv
  if not WORKDIR.value:
    raise ValueError("--workdir is missing: where the subset is to be put")
  return select_subset(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  from jsel.training.command import run_main

  run_main(main, default_config="configs/select/rds.py")
