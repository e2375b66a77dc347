"""What a person may get wrong: one line that names it, and the command's exit code 2."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsel import select as command
from jsel.selection import select
from jsel.selection.config import base_config
from jsel.training.command import _raised_by_jsel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bad")
  rng = np.random.default_rng(0)
  x = rng.standard_normal((60, 6)).astype(np.float32)
  put = lambda name, **columns: pq.write_table(pa.table(columns), folder / f"{name}.parquet")
  rows = lambda x: pa.array(list(x), pa.list_(pa.float32()))
  source = ["web"] * 57 + ["code"] * 3
  put("pool", embedding=rows(x), id=np.arange(60), source=source)
  put("empty", embedding=rows(x[:0]))
  put("twice", embedding=rows(x), id=[*range(59), 7])
  put("wide", embedding=rows(np.ones((5, 7), np.float32)))
  put("text", embedding=[f"row {i}" for i in range(60)])
  put("ragged", embedding=pa.array([[1.0, 2], [3.0]], pa.list_(pa.float32())))
  put("gap", embedding=pa.array([[1.0, 2], None], pa.list_(pa.float32())))
  put("scores", embedding=rows(x), score=np.full(60, np.nan))
  put("negative", embedding=rows(x), score=np.linspace(-1, 1, 60))
  put("infinite", embedding=rows(x), score=np.where(np.arange(60) == 5, np.inf, 1.0))
  words = [f"good {i}" for i in range(60)]
  put("words", embedding=rows(x), score=words, length=words, id=np.arange(60))
  put("below", embedding=rows(x), length=np.arange(60) - 30, score=np.full(60, np.inf))
  put("nameless", embedding=rows(x), id=[None if i in (9, 31) else f"r{i}" for i in range(60)])
  put("lengths", embedding=rows(x), length=[*range(59), None])
  bad = x.copy()
  bad[[9, 31], 2] = np.nan, np.inf
  np.save(folder / "nan.npy", bad)
  model = pa.table({"embedding": rows(x)}).replace_schema_metadata({"model": "A"})
  pq.write_table(model, folder / "model.parquet")
  np.savez(folder / "pool.npz", embeddings=x)
  np.save(folder / "whole.npy", np.ones((60, 6), np.int32))
  np.save(folder / "flat.npy", np.ones(60, np.float32))
  np.save(folder / "pickled.npy", np.array([{}]), allow_pickle=True)
  np.save(folder / "zeros.npy", np.zeros((3, 6), np.float32))
  zero = x.copy()
  zero[:58] = 0
  np.save(folder / "zero.npy", zero)
  np.save(folder / "equal.npy", np.ones((60, 6), np.float32))
  for name in ("nothing.npy", "nothing.jsonl"):
    (folder / name).write_bytes(b"")
  for name in ("pool.parquet", "nan.npy", "pool.npz"):
    (folder / f"cut.{name}").write_bytes((folder / name).read_bytes()[:-60])
  (folder / "pool.csv").write_text("a,b\n1,2\n")
  (folder / "ids.txt").write_text("3\n99\n")
  (folder / "few.txt").write_text("3\n4\n5\n")
  (folder / "all.txt").write_text("\n".join(map(str, range(60))))
  pq.write_table(pa.table({"id": [3, None]}), folder / "ids.parquet")
  return folder


def config_of(folder, **options):
  config = base_config()
  given = {"pool": "pool.parquet", "method.name": "random", "picture": False} | options
  for key in ("pool", "queries", "must_include", "must_exclude"):
    if given.get(key):
      given[key] = f"{folder}/{given[key]}"
  config.update_from_flattened_dict(given)
  return config


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"pool": ""}, "--config.pool is missing"),
    ({"pool": "nowhere.parquet"}, "there is no .*nowhere.parquet: correct --config.pool"),
    ({"pool": "pool.csv"}, "unknown kind: give .parquet"),
    ({"pool": "empty.parquet"}, "empty.parquet has no rows"),
    ({"columns.embedding": "embeding"}, "did you mean 'embedding'"),
    ({"columns.source": "sorce"}, "did you mean 'source'"),
    ({"seed": 2**64}, "at most 64 bits with its sign, got 18446744073709551616"),
    ({"budget": 0.0}, "the budget is 0.0 fraction"),
    ({"budget": 1.5}, "the budget is 1.5 fraction"),
    ({"budget": float("nan")}, "the budget is nan: give a number of fraction"),
    ({"budget": float("inf"), "budget_unit": "rows"}, "the budget is inf: give a number of rows"),
    ({"budget": 61.0, "budget_unit": "rows"}, "61.0 rows of a pool of 60 rows"),
    ({"budget": 2.5, "budget_unit": "rows"}, "a whole number, got 2.5"),
    ({"budget_unit": "row"}, "must be fraction, rows or tokens, got 'row'"),
    ({"budget_unit": "tokens"}, "needs the column length"),
    ({"method.name": "rds"}, "method rds needs queries"),
    ({"method.name": "rds", "queries": "wide.parquet"}, r"shape \(5, 7\), the pool has 6 columns"),
    ({"method.name": "rds", "queries": "nan.npy"}, "row 9 of queries holds a NaN"),
    ({"method.name": "rds", "queries": "zeros.npy"}, "row 0 of queries is all zeros"),
    ({"method.name": "rsd"}, "no method 'rsd': did you mean 'rds'"),
    ({"method.name": "kmq"}, "method kmq needs score"),
    ({"method.name": "kmq", "pool": "scores.parquet"}, "no row of the pool has a finite one"),
    ({"method.name": "sensitivity", "pool": "negative.parquet"}, "the loss of row 0 is -1.0"),
    ({"method.name": "sensitivity", "pool": "infinite.parquet"}, "score of row 5 is inf: give a f"),
    ({"method.name": "longest", "pool": "lengths.parquet"}, "that of row 59 is nan"),
    ({"method.name": "kmq", "method.kmq.clusters": 0}, "clusters must be at least 1"),
    ({"method.name": "sensitivity", "method.sensitivity.refinements": -1}, "refinements=-1"),
    ({"method.name": "sensitivity_regression", "method.sensitivity_regression.iterations": -2},
     "iterations=-2"),
    ({"pool": "nan.npy"}, "2 rows of the pool hold a NaN or an infinity, the first is row 9"),
    ({"on_nonfinite": "skip"}, "must be \"raise\" or \"drop\", got 'skip'"),
    ({"pool": "twice.parquet"}, "1 ids are there more than once, the first is 7"),
    ({"pool": "text.parquet"}, "column 'embedding' is string: expected lists of floats"),
    ({"pool": "ragged.parquet"}, "row 1 has 1 features, row 0 has 2"),
    ({"pool": "gap.parquet"}, "row 1 has no value"),
    ({"pool": "whole.npy"}, "embeddings must be floats"),
    ({"pool": "flat.npy"}, "embeddings must be floats"),
    ({"pool": "pickled.npy"}, "never unpickled"),
    ({"pool": "cut.pool.parquet"}, "no whole parquet file"),
    ({"pool": "cut.nan.npy"}, "broken or cut short"),
    ({"pool": "cut.pool.npz"}, "broken or cut short"),
    ({"pool": "pool.npz"}, "no column 'embedding': did you mean 'embeddings'"),
    ({"pool": "nothing.npy"}, "is no npy or npz file"),
    ({"pool": "nothing.jsonl"}, "nothing.jsonl has no rows"),
    ({"pool": "model.parquet", "queries_model": "B", "queries": "zeros.npy", "method.name": "rds"},
     "the pool has embeddings of 'A', queries of 'B'"),
    ({"pool": "equal.npy", "budget": 0.5, "method.name": "sensitivity"}, "needs score"),
    ({"pool": "zero.npy", "queries": "equal.npy", "method.name": "rds"}, "ranks 2 rows.*58 rows"),
    ({"pool": "equal.npy", "queries": "equal.npy", "method.name": "crds_w"}, "equal to the mean"),
    ({"must_include": "ids.txt"}, "1 of 2 are no id of the pool, the first is '99'"),
    ({"floors": "code:5"}, "source code has 3 rows that may be taken, its floor is 5"),
    ({"caps": "code"}, "give NAME:ROWS"),
    ({"task_quotas": "a:1"}, "task_quotas needs tasks"),
    ({"write_rows": "csv"}, "must be one of jsonl, parquet"),
    ({"must_exclude": "all.txt"}, "no row of 60 is left to choose from: 60 are in must_exclude"),
    ({"pool": "words.parquet", "method.name": "kmq"},
     "words.parquet: column 'score' for score holds string: .* set --config.columns.score to"),
    ({"pool": "words.parquet", "columns.length": "score", "method.name": "longest"},
     "column 'score' for length holds string: .* set --config.columns.length to"),
    ({"method.name": "crds_r", "queries": "pool.parquet", "method.crds_r.layers": 4},
     "crds_r.layers=4 does not divide .* 6 columns: set --config.method.crds_r.layers"),
    ({"pool": "twice.parquet"},
     r"is 7, in row 7 of .*twice.parquet and row 59 .*: make them distinct, or set --config.col"),
    ({"pool": "nameless.parquet"},
     r"2 rows have no id, the first is row 9 of .*nameless.parquet: give it one, or set --config"),
    ({"must_include": "ids.parquet"}, "1 of 2 ids are missing .null., the first is number 1, from"),
    ({"must_include": "few.txt", "budget": 2.0, "budget_unit": "rows"},
     "has 3 rows, the budget is 2: raise the budget, or remove ids from id 5 of row 5 on"),
    ({"must_include": "few.txt", "must_exclude": "all.txt"},
     "id 3 of row 3 is in must_include and in must_exclude: remove it from one"),
    ({"must_include": "few.txt", "caps": "web:2"}, "its cap is 2: raise the cap, or remove id 5"),
    ({"caps": "digit 1:1,digit 1:5"}, "caps has 'digit 1' twice, the second as 'digit 1:5': give"),
    ({"exclude_ngram": -1}, "--config.exclude_ngram=-1: give a number of at least 0"),
    ({"dedup": float("nan")}, "--config.dedup=nan: give a similarity in"),
    ({"slow_minutes": float("nan")}, "--config.slow_minutes=nan: give a number of minutes"),
    ({"pool": "equal.npy", "queries": "equal.npy", "method.name": "crds_w"},
     "method crds_w ranks no row: none of 60 has a direction, 0 being zeros .* Take rds"),
  ],
)  # fmt: skip
def test_a_mistake_is_one_line(options, message, folder, tmp_path):
  with pytest.raises(ValueError, match=message) as raised:
    command.select_subset(config_of(folder, **options), str(tmp_path))
  assert "\n" not in str(raised.value)
  assert _raised_by_jsel(raised.value)  # which makes it exit code 2
  assert not (tmp_path / "subset.parquet").exists()


@pytest.mark.parametrize("name", ["words.parquet", "below.parquet"])
def test_columns_that_a_method_does_not_need_do_not_stop_it(name, folder, tmp_path):
  config = config_of(folder, pool=name, picture=True, write_rows="jsonl")
  assert command.select_subset(config, str(tmp_path)) == 0
  assert pq.read_table(tmp_path / "subset.parquet").num_rows == 6
  assert json.loads((tmp_path / "summary.json").read_text())["balance"] == {}


def test_files_whose_columns_are_of_other_types_are_named(folder, tmp_path):
  pools = f"words.parquet,{folder}/below.parquet"
  with pytest.raises(
    ValueError, match=r"string in .*words.parquet and .* in .*below.parquet: store"
  ):
    command.select_subset(config_of(folder, pool=pools, **{"columns.id": ""}), str(tmp_path))


def test_an_excluded_row_that_must_be_there_is_told_by_its_id():
  x, gone = np.eye(6, dtype=np.float32), np.arange(6) == 4
  options = {"unit": "rows", "columns": {"id": list("abcdef")}, "exclude": gone}
  with pytest.raises(
    ValueError, match="id 'e' of row 4 is in must_include, but is excluded: change"
  ):
    select(x, "random", 2, must_include=["b", "e"], **options)
  x[1] = np.inf
  with pytest.raises(
    ValueError, match=r"id 'b' of row 1 .* holds a NaN or an infinity, .*: repair"
  ):
    select(x, "random", 2, must_include=["b"], on_nonfinite="drop", **options)
  with pytest.raises(
    ValueError, match=r"1 hold a NaN .*, 1 are excluded .*, 4 are in must_exclude"
  ):
    select(x, "random", 2, must_exclude=list("acdf"), on_nonfinite="drop", **options)


def test_rows_that_are_not_finite_are_dropped_and_told(folder, tmp_path, capsys):
  config = config_of(folder, pool="nan.npy", on_nonfinite="drop", budget=1.0)
  assert command.select_subset(config, str(tmp_path)) == 0
  assert "2 rows hold a NaN or an infinity: they are dropped" in capsys.readouterr().err
  taken = pq.read_table(tmp_path / "subset.parquet")["index"].to_numpy()
  assert sorted({*range(60)} - {*taken.tolist()}) == [9, 31]


def test_rows_of_zeros_are_told_and_never_found(folder, tmp_path, capsys):
  options = {"pool": "zero.npy", "queries": "equal.npy", "method.name": "rds"}
  config = config_of(folder, **options, budget=2.0, budget_unit="rows")
  assert command.select_subset(config, str(tmp_path)) == 0
  assert "58 rows are all zeros, the first is row 0" in capsys.readouterr().err
  assert sorted(pq.read_table(tmp_path / "subset.parquet")["index"].to_pylist()) == [58, 59]


@pytest.mark.parametrize("method", ["kmq", "km_closest", "sensitivity"])
@pytest.mark.parametrize("x", [np.ones((20, 3), np.float32), np.eye(20, dtype=np.float32)])
def test_equal_points_and_more_clusters_than_rows_still_fill_the_budget(method, x):
  found = select(x, method, 15, unit="rows", columns={"score": np.ones(20)}, clusters=1024)
  assert len(set(found.index.tolist())) == 15


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"method.name": "rsd"}, "did you mean 'rds'"),
    ({"method.name": "rds", "queries": ""}, "method rds needs queries: set --config.queries"),
    ({"method.name": "kmq", "method.kmq.clusters": 0}, "clusters must be at least 1"),
    ({"budget_unit": "row"}, "got 'row'"),
    ({"budget": 1.5}, "give a share in (0, 1]"),
    ({"budget": -1.0, "budget_unit": "rows"}, "give a number of rows above 0"),
    ({"caps": "web"}, "caps"),
  ],
)
def test_what_needs_no_file_is_told_before_any_is_read(
  options, message, folder, tmp_path, monkeypatch
):
  def read(*_, **__):
    raise AssertionError("a file was read")

  monkeypatch.setattr(command.Reader, "open", read)
  with pytest.raises(ValueError, match=re.escape(message)):
    command.select_subset(config_of(folder, **options), str(tmp_path / "run"))
