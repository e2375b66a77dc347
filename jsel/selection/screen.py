"""What a selection may not take: empty, leaked and doubled rows, searched for before it."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from jsel.selection import hosts
from jsel.selection.decontaminate import overlapping, similar
from jsel.selection.duplicates import near_duplicates
from jsel.selection.found import Found, Searched, as_table, by_source
from jsel.selection.pool import Pool
from jsel.selection.reader import Reader
from jsel.selection.text_duplicates import near_duplicate_texts
from jsel.selection.texts import TextPart, text_parts
from jsel.selection.walk import Stopped
from jsel.training import outputs


def search(
  pool: Pool,
  reader: Reader,
  config: ConfigDict,
  *,
  report: Callable[[str, int, int], Any] = lambda *_: None,
  stop: Callable[[], bool] = lambda: False,
) -> Searched:
  """Searches ``pool`` as ``config`` says, each search in what those before have left.

  In this order: texts without anything to embed; what is of the evaluation sets ``exclude``, by
  runs of words and by embedding; near-duplicates by words and by embedding.

  Args:
    pool: to search in.
    reader: that opened it.
    config: of the selection.
    report: told what is done, rows so far and in all.
    stop: asked as often whether to raise `Stopped`.

  Raises:
    ValueError: if what a search needs is missing, or an option is out of range.
  """

  def told(name: str, done: int, size: int) -> None:
    if stop():
      raise Stopped
    report(name, done, size)

  eligible = np.ones(pool.size, bool)
  found: list[Found] = []

  def add(one: Found) -> None:
    eligible[one.index] = False
    found.append(one)

  parts = text_parts(pool)
  score = pool.numbers("score") if config.dedup_text or config.dedup else None
  options = {"eligible": eligible, "report": told}
  if parts:
    empty = np.flatnonzero(np.concatenate([part.empty for part in parts]))
    if empty.size:
      add(Found.of("empty", [(int(row), -1, np.nan) for row in empty]))
  if config.exclude:
    evaluation = reader.text_parts(config.exclude, key="exclude")
    _check_exclude(config, parts, evaluation)
    if config.exclude_ngram and parts and evaluation:
      runs = overlapping(_texts(parts), _texts(evaluation), config.exclude_ngram, **options)
      add(runs)
    if config.exclude_similarity:
      asked = reader.open(config.exclude, {"embedding": config.columns.embedding}, key="exclude")
      against = np.concatenate(list(asked.blocks(4096)))
      add(similar(pool, against, config.exclude_similarity, **options))
  if config.dedup_text:
    if not parts:
      raise ValueError("dedup_text compares texts, the pool has embeddings: set --config.dedup")
    add(near_duplicate_texts(_texts(parts), config.dedup_text, score=score, **options))
  if config.dedup:
    cells = {"cells": config.dedup_cells, "seed": config.seed}
    add(near_duplicates(pool, config.dedup, score=score, **cells, **options))
  searched = as_table(pool, found)
  if found and hosts.is_first():
    print(f"jsel: {searched.mask.sum():,} of {pool.size:,} rows are not chosen from", flush=True)
    for line in by_source(searched.table):
      print(f"jsel:   {line}", flush=True)
  return searched


def check_options(config: ConfigDict) -> None:
  """Raises a ValueError for an option of a search that is out of range, before anything is read."""
  for name in ("exclude_ngram", "dedup_cells"):
    if config[name] < 0:
      raise ValueError(f"--config.{name}={config[name]}: give a number of at least 0")
  for name in ("exclude_similarity", "dedup_text", "dedup"):
    if not 0 <= config[name] <= 1:
      raise ValueError(
        f"--config.{name}={config[name]}: give a similarity in (0, 1], or 0 for none"
      )


def write(workdir: Any, searched: Searched) -> dict[str, Any]:
  """Writes excluded.parquet, if anything was searched for; returns what a summary says."""
  if not searched.counts:
    return {}
  buffer = io.BytesIO()
  pq.write_table(searched.table, buffer)
  outputs.put(workdir / "excluded.parquet", buffer.getvalue())
  return {"excluded": searched.counts}


def _check_exclude(
  config: ConfigDict, parts: list[TextPart] | None, evaluation: list[TextPart]
) -> None:
  if config.exclude_similarity or (config.exclude_ngram and parts and evaluation):
    return
  if not config.exclude_ngram:
    raise ValueError("--config.exclude is compared by nothing: set exclude_ngram or _similarity")
  what = "the pool" if not parts else config.exclude
  raise ValueError(f"{what} has no texts to compare: set --config.exclude_similarity, as 0.9")


def _texts(parts: list[TextPart]) -> Iterator[str]:
  for part in parts:
    yield from part.texts()
