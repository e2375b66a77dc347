"""Chooses a subset of a pool of embeddings.

    python -m jsel.select --config=configs/select/rds.py --config.pool=pool.parquet \
        --config.queries=queries.parquet --config.budget=0.035 --workdir=runs/subset

Running it again goes on where it was stopped, or says that all is done. On several hosts start it
in every process, with one workdir (`jsel.sharding.join_hosts`). Exit codes: 0 done; 2 a
mistake in what was asked for, in one line; 143 and 130 stopped by SIGTERM and SIGINT after saving;
1 anything else.
"""

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
from absl import flags
from ml_collections import ConfigDict, config_flags

import jsel
from jsel import sharding
from jsel.data.subset_pool import metadata
from jsel.selection import asked, hosts, picture, plan, rows, screen
from jsel.selection.answers import Answers
from jsel.selection.balance import balance
from jsel.selection.config import HARMLESS
from jsel.selection.display import Display
from jsel.selection.finished import check_finished, remove_finished
from jsel.selection.reader import Reader
from jsel.selection.run import select
from jsel.selection.subset import pool_facts, subset_table
from jsel.selection.walk import Stopped, Walks, take
from jsel.selectors.parts import Note
from jsel.training import outputs
from jsel.training.stopping import StopSignals

CONFIG = config_flags.DEFINE_config_file("config", None, "What to select.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the subset is put.")


def select_subset(config: ConfigDict, workdir: str) -> int:
  """The whole job, or the rest of it; returns the exit code."""
  seconds, lap = stopwatch()
  sharding.join_hosts(timeout=config.host_timeout)
  is_first = hosts.is_first()
  path = hosts.agree(lambda: outputs.check_workdir(workdir))
  hosts.of_first(lambda: outputs.hold(path))
  hosts.agree(lambda: outputs.check_holds_no("a training run", path))
  about = hosts.agree(lambda: identity(config))

  # ---- What the workdir holds already -----------------------------------------------------------

  if hosts.of_first(lambda: is_done(config, path, about)):
    note(f"all is done, see {path / 'summary.json'}; --config.overwrite=True does it again")
    return 0
  if config.shard:
    return encode_shard(config, path)
  hosts.agree(lambda: asked.check(config))
  answers = Answers(path / "progress", about, save_seconds=config.save_seconds, warn=warn)
  hosts.of_first(lambda: answers.open(harmless=HARMLESS, overwrite=config.overwrite))
  rows.check_kind(config.write_rows)

  # ---- Selection --------------------------------------------------------------------------------

  method = config.method.name
  estimates: list[plan.Plan] = []
  searched: list[screen.Searched] = []

  def approve(made: plan.Plan) -> None:
    estimates.append(made)
    for line in plan.lines(made, method, picture=config.picture):
      note(line)
    limits = {"slow_minutes": config.slow_minutes, "allow_slow": config.allow_slow}
    plan.check_time(made, method, **limits)

  found: dict[str, Any] = {}

  def tell(said: Note) -> None:
    note(f"{said.name}: {said.text}")
    found[said.name] = said.facts

  display = Display()
  report = display if is_first else lambda *_: None
  with StopSignals() as stop:
    reader = Reader(config, path, stop=stop.asked)
    try:
      columns = config.columns.to_dict()
      pool = hosts.agree(lambda: reader.open(config.pool, columns, key="pool"))
      arguments = hosts.agree(lambda: asked.arguments(config, reader))
      lap("opening")

      def exclude() -> np.ndarray | None:
        lap("planning")
        searched.append(screen.search(pool, reader, config, report=report, stop=stop.asked))
        lap("searching")
        return searched[0].mask

      subset = select(
        pool,
        method,
        config.budget,
        exclude=exclude,
        report=report,
        warn=warn,
        stop=stop.asked,
        answers=answers,
        approve=approve,
        tell=tell,
        **arguments,
      )
    except Stopped:
      note(f"stopped and saved in {path / 'progress'}: the same command goes on from there")
      return stop.exit_code
    finally:
      display.close()

  lap("selecting")

  # ---- What is left behind ----------------------------------------------------------------------

  def write_subset() -> None:
    remove_finished(path)
    outputs.write_json(path / "config.json", about["config"])
    inputs = about["inputs"]
    facts = {"name": "pool", "source": config.pool, "sha256": pool.sha256, "inputs": inputs}
    outputs.write_json(path / "manifest.json", outputs.manifest(data=facts, seed=config.seed))
    buffer = io.BytesIO()
    of_pool = pool_facts(pool, config.columns.id or "id", inputs["pool"])
    pq.write_table(subset_table(pool, subset).replace_schema_metadata(metadata(of_pool)), buffer)
    outputs.put(path / "subset.parquet", buffer.getvalue())
    if config.write_rows:
      note(f"the rows are in {rows.write_rows(path, pool, subset.index, config.write_rows)}")

  hosts.of_first(write_subset)
  lap("writing")
  counts = balance(pool, subset.index)
  if config.picture:
    sample, picks = picture.rows_to_draw(pool, subset, config.seed)
    walks = Walks(pool, sharding.make_mesh(), report=report)
    x = take(walks, np.concatenate([sample, subset.index[picks]]))
    drawing = picture.Drawing(sample, picks, x)
    options = {"title": method, "balance": counts}
    hosts.of_first(lambda: picture.draw(path / "subset.png", pool, subset, drawing, **options))
    lap("drawing")

  def write_summary() -> None:
    summary: dict[str, Any] = {
      "method": method,
      "rows": len(subset.index),
      "pool_rows": pool.size,
      "budget": config.budget,
      "budget_unit": config.budget_unit,
      "seed": config.seed,
      **reader.facts,
      **screen.write(path, searched[0]),
      "found": found,
      "balance": counts,
      "walks": display.walks,
      "walk_seconds": display.seconds,
      "stage_seconds": seconds,
      "wall_seconds": sum(seconds.values()),
      "peak_resident_bytes": plan.peak_resident_bytes(),
      "estimate": estimates[0]._asdict(),
    }
    outputs.write_json(path / "summary.json", summary)  # the last: where it is, all is
    answers.remove()

  hosts.of_first(write_summary)
  note(f"{len(subset.index):,} rows in {path / 'subset.parquet'}")
  return 0


def identity(config: ConfigDict) -> dict[str, Any]:
  """What tells this selection from others in its workdir."""
  if not config.pool:
    raise ValueError("--config.pool is missing: files of embeddings to choose from")
  if config.shard and jax.process_count() > 1:
    raise ValueError(
      f"--config.shard={config.shard} is for a process of its own: start it without"
      f" JAX_COORDINATOR_ADDRESS, or all {jax.process_count()} processes would encode that part"
    )
  return {
    "config": outputs.config_dict(config),
    "inputs": asked.input_hashes(config),
    "versions": {"jsel": jsel.__version__, "jax": jax.__version__},
  }


def is_done(config: ConfigDict, path: Any, about: dict[str, Any]) -> bool:
  """Whether the workdir holds the whole of this selection, and it is not to be overwritten.

  Raises:
    ValueError: if it holds another one, or a damaged one.
  """
  if not (path / "summary.json").exists() or config.overwrite:
    return False
  check_finished(path, about, harmless=HARMLESS)
  return True


def encode_shard(config: ConfigDict, path: Any) -> int:
  """Encodes a part of the texts of a selection; returns the exit code."""
  given = {key: config[key] for key in ("pool", "exclude")}
  given |= {"queries": ",".join(asked.query_files(config.queries).values())}
  if not config.exclude_similarity:
    del given["exclude"]
  with StopSignals() as stop:
    try:
      Reader(config, path, stop=stop.asked).encode_shard(given)
    except Stopped:
      note("stopped and saved: the same command goes on from there")
      return stop.exit_code
  note(f"shard {config.shard} is encoded; the run without a shard selects")
  return 0


def stopwatch() -> tuple[dict[str, float], Callable[[str], None]]:
  """Seconds of stages by name, and what is called at the end of each."""
  seconds: dict[str, float] = {}
  at = time.perf_counter()

  def lap(name: str) -> None:
    nonlocal at
    before, at = at, time.perf_counter()
    seconds[name] = at - before

  return seconds, lap


def note(text: str) -> None:
  """Tells what is done, in process 0."""
  if hosts.is_first():
    print(f"jsel: {text}", flush=True)


def warn(text: str) -> None:
  """Tells what is not as it should be, in process 0, and goes on."""
  if hosts.is_first():
    print(f"jsel: warning: {text}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
  del argv
  if not WORKDIR.value:
    raise ValueError("--workdir is missing: where the subset is to be put")
  return select_subset(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  from jsel.training.command import run_main

  run_main(main, default_config="configs/select/rds.py")
