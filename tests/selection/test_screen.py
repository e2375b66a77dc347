"""What is searched for before a selection: order, reasons, tables, and what is missing told."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsel.selection import found, screen
from jsel.selection.config import base_config
from jsel.selection.decontaminate import overlapping, similar
from jsel.selection.duplicates import near_duplicates
from jsel.selection.found import Found
from jsel.selection.pool import ArrayPart, Pool
from jsel.selection.reader import Reader
from jsel.selection.text_duplicates import near_duplicate_texts
from jsel.selection.walk import Stopped

NAMES = dict.fromkeys(("embedding", "id", "group", "source", "length", "score"))


@pytest.fixture
def search(tmp_path):
  """Opens the pool of a config with the changes given, and searches it."""

  def run(stop=lambda: False, **changes):
    config = base_config()
    config.update_from_flattened_dict(changes)
    reader = Reader(config, tmp_path)
    return screen.search(reader.open(config.pool, NAMES, key="pool"), reader, config, stop=stop)

  return run


@pytest.fixture
def pool(tmp_path, rng):
  """Twelve rows: 8 is like 2 and has the higher score, 9 like 3, and 10 is 11."""
  x = rng.standard_normal((12, 8)).astype(np.float32)
  x[8], x[9], x[11] = x[2] + 1e-3, x[3] + 1e-3, 5 * x[10]
  score = np.zeros(12)
  score[8] = 1
  table = {"embedding": list(x), "score": score, "id": [f"r{n}" for n in range(12)]}
  table["source"] = ["a", "b"] * 6
  pq.write_table(pa.table(table), tmp_path / "pool.parquet")
  np.save(tmp_path / "eval.npy", np.stack([x[0] + 1, 2 * x[9]]))
  return x


def test_each_search_is_in_what_those_before_have_left(search, pool, tmp_path, capsys):
  given = {"pool": f"{tmp_path}/pool.parquet", "dedup": 0.99, "dedup_cells": 1}
  searched = search(**given, exclude=f"{tmp_path}/eval.npy", exclude_similarity=0.99)
  rows = searched.table.to_pylist()
  brief = [(r["id"], r["reason"], r["matched_id"], r["eval_row"]) for r in rows]
  assert brief == [
    ("r2", "duplicate", "r8", None),
    ("r3", "similarity", None, 1),
    ("r9", "similarity", None, 1),
    ("r11", "duplicate", "r10", None),
  ]
  assert searched.counts == {"similarity": 2, "duplicate": 2}
  assert np.flatnonzero(searched.mask).tolist() == [2, 3, 9, 11]
  assert "jsel:   similarity: 2 (b 2)" in capsys.readouterr().out
  assert screen.write(tmp_path, searched) == {"excluded": searched.counts}
  written = pq.read_table(tmp_path / "excluded.parquet")
  assert written.column_names[:4] == ["index", "id", "reason", "matched_index"]
  assert written["matched_index"].to_pylist() == [8, None, None, 10]


def test_nothing_asked_for_is_nothing_written(search, pool, tmp_path):
  searched = search(pool=f"{tmp_path}/pool.parquet")
  assert not searched.mask.any()
  assert screen.write(tmp_path, searched) == {}
  assert not (tmp_path / "excluded.parquet").exists()


def test_a_search_that_finds_nothing_leaves_an_empty_table(search, pool, tmp_path):
  searched = search(pool=f"{tmp_path}/pool.parquet", dedup=1.0, dedup_cells=4)
  assert searched.counts == {"duplicate": 1}
  np.save(tmp_path / "far.npy", -np.abs(pool[:1]) * 100)
  changes = {"exclude": f"{tmp_path}/far.npy", "exclude_similarity": 1.0}
  searched = search(pool=f"{tmp_path}/pool.parquet", **changes)
  screen.write(tmp_path, searched)
  assert pq.read_table(tmp_path / "excluded.parquet").num_rows == 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"dedup_text": 0.8}, r"dedup_text compares texts, the pool has embeddings: set --config.ded"),
    ({"exclude": "{}/eval.npy"}, r"the pool has no texts to compare: set --config.exclude_sim"),
    ({"exclude": "{}/eval.npy", "exclude_ngram": 0}, r"exclude is compared by nothing"),
    ({"exclude": "{}/none.npy"}, r"there is no .*none.npy: correct --config.exclude"),
    (
      {"exclude": "{}/eval.npy", "exclude_similarity": 0.9, "model": "A", "exclude_model": "B"},
      r"the pool has embeddings of 'A', exclude of 'B'",
    ),
    (
      {"exclude": "{}/q.jsonl", "exclude_similarity": 0.9},
      r"q.jsonl holds texts: set --config",
    ),
  ],
)
def test_what_a_search_lacks_is_told(search, pool, tmp_path, changes, message):
  (tmp_path / "q.jsonl").write_text(json.dumps({"text": "a"}))
  changes = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in changes.items()}
  with pytest.raises(ValueError, match=message):
    search(pool=f"{tmp_path}/pool.parquet", **changes)


def test_a_search_stops_when_it_is_asked_to(search, pool, tmp_path):
  with pytest.raises(Stopped):
    search(stop=lambda: True, pool=f"{tmp_path}/pool.parquet", dedup=0.9)


def test_every_search_tells_that_it_is_done(tmp_path):
  pytest.importorskip("datasketch", reason="pip install 'jsel[dedup]'")
  texts, told = ["a b", "c d", "a b"], {}
  x = np.array([[1, 0], [0, 1], [1, np.nan]], np.float32)
  options = {
    "eligible": np.ones(3, bool),
    "report": lambda name, done, size: told.update({name: (done, size)}),
  }
  near_duplicate_texts(texts, 0.8, **options)
  overlapping(texts, texts, **options)
  near_duplicates(Pool([ArrayPart(x)]), 0.9, cells=1, **options)
  similar(Pool([ArrayPart(x)]), x[:1], 0.9, **options)
  assert told.pop("comparing") == (2, 2)
  assert set(told.values()) == {(3, 3)}
  assert len(told) == 4


def test_tables_have_row_numbers_where_there_are_no_ids():
  pool = Pool([ArrayPart(np.ones((5, 2), np.float32))])
  searched = found.as_table(
    pool,
    [Found.of("empty", [(4, -1, np.nan)]), Found.of("duplicate", [(3, 0, 1.0), (1, 0, 0.9)])],
  )
  assert searched.table.to_pydict() == {
    "index": [1, 3, 4],
    "id": [1, 3, 4],
    "reason": ["duplicate", "duplicate", "empty"],
    "matched_index": [0, 0, None],
    "matched_id": [0, 0, None],
    "eval_row": [None, None, None],
    "similarity": [pytest.approx(0.9), 1, None],
  }
