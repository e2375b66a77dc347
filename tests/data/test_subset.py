"""A subset.parquet as what is trained on."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from jsel import data
from jsel.select import select_subset
from jsel.selection.config import base_config
from tests.test_train import ROOT, environment, exposure, metrics, train

DIGITS = {"name": "digits", "split_seed": 0}


def write(path, **columns):
  pq.write_table(pa.table(columns), path)
  return str(path)


def opened(path, **options):
  return data.open_rows(ConfigDict({**DIGITS, "subset": path, **options}))


def test_only_its_rows_are_in_train_in_their_order(tmp_path):
  whole = data.load(ConfigDict(DIGITS))
  path = write(tmp_path / "subset.parquet", index=[7, 3, 1437], weight=np.ones(3, np.float32))
  found = data.load(ConfigDict({**DIGITS, "subset": path}))
  np.testing.assert_array_equal(found.train.inputs, whole.train.inputs[[3, 7, 1437]])
  np.testing.assert_array_equal(found.train.labels, whole.train.labels[[3, 7, 1437]])
  np.testing.assert_array_equal(found.test.inputs, whole.test.inputs)
  assert found.classes == 10
  assert found.source.endswith("3 of 1,438 rows, those of subset.parquet")
  assert found.sha256 != whole.sha256


def test_what_is_held_out_stays_so_and_is_counted(tmp_path):
  options = {"validation_fraction": 0.25}
  kept, _ = data.open_rows(ConfigDict({**DIGITS, **options})).train.origin()
  subset = np.arange(100)
  path = write(tmp_path / "subset.parquet", index=subset)
  found = opened(path, **options)
  ids, size = found.train.origin()
  np.testing.assert_array_equal(ids, np.intersect1d(kept, subset))
  assert size == 1438
  assert 0 < 100 - ids.size < 100
  assert f"but for {100 - ids.size} that are held out" in found.source
  whole = data.open_rows(ConfigDict({**DIGITS, **options}))
  np.testing.assert_array_equal(found.validation.labels(), whole.validation.labels())
  held = np.setdiff1d(np.arange(1438), kept)[:5]
  with pytest.raises(ValueError, match=r"all 5 rows of held\.parquet are held out"):
    opened(write(tmp_path / "held.parquet", index=held), **options)


def test_weights_are_those_of_the_rows_over_their_mean(tmp_path):
  options = {"validation_fraction": 0.25}
  kept, _ = data.open_rows(ConfigDict({**DIGITS, **options})).train.origin()
  index = np.random.default_rng(0).permutation(1438)[:300]
  weight = (1 + index / 7).astype(np.float32)
  path = write(tmp_path / "s.parquet", index=index, weight=weight)
  found = opened(path, **options)
  ids, _ = found.train.origin()
  assert set(ids) == set(index) & set(kept)
  expected = 1 + ids / 7
  np.testing.assert_allclose(found.weights, expected / expected.mean(), rtol=1e-6)  # float32
  low, high = expected.min() / expected.mean(), expected.max() / expected.mean()
  assert f"their weights {low:.3g} to {high:.3g} times the mean" in found.source
  loaded = data.load(ConfigDict({**DIGITS, **options, "subset": path}))
  np.testing.assert_array_equal(loaded.source_rows, ids)
  assert data.open_rows(ConfigDict(DIGITS)).source_rows is None
  np.testing.assert_array_equal(loaded.weights, found.weights)
  without = opened(path, **options, subset_weights=False)
  assert without.weights is None
  assert without.source.endswith("their weights not used")
  assert without.sha256 != found.sha256
  # Weights that are all alike are none.
  path = write(tmp_path / "s.parquet", index=index, weight=np.full(300, 7, np.float32))
  assert opened(path, **options).weights is None
  assert opened(path, **options).sha256 == without.sha256


def test_another_subset_is_other_data(tmp_path):
  one, two = (write(tmp_path / f"{i}.parquet", index=[i, 5]) for i in (1, 2))
  again = write(tmp_path / "again.parquet", index=[5, 1])
  assert opened(one).sha256 == opened(again).sha256 != opened(two).sha256


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    ({"index": [1438]}, "has row 1438, the training set rows 0 to 1437"),
    ({"index": [-1, 4]}, "has row -1"),
    ({"index": [4, 9, 4]}, "has row 4 2 times"),
    ({"index": np.zeros(0, np.int32)}, "has no rows"),
    ({"row": [1]}, "has the columns row, no index"),
    ({"index": ["1"]}, "index is string"),
    ({"index": [1, None]}, "with 1 empty"),
    ({"index": [4, 1], "weight": [1.0, -2.0]}, "the weight of row 1 is -2.0"),
    ({"index": [4, 1], "weight": [np.inf, 1.0]}, "the weight of row 4 is inf"),
    ({"index": [4, 1], "weight": [1.0, None]}, "the weight of row 1 is nan"),
    ({"index": [4, 1], "weight": [0.0, 0.0]}, "have the weight 0"),
    ({"index": [4, 1], "weight": ["a", "b"]}, "weight is string, not numbers"),
  ],
)
def test_a_wrong_subset_is_refused_in_one_line(tmp_path, columns, message):
  with pytest.raises(ValueError, match=message):
    opened(write(tmp_path / "subset.parquet", **columns))


def test_a_missing_and_a_cut_file_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"there is no file .*none\.parquet"):
    opened(str(tmp_path / "none.parquet"))
  path = tmp_path / "subset.parquet"
  write(path, index=np.arange(1000))
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match="cannot be read"):
    opened(str(path))


def test_a_subset_of_another_pool_is_refused(tmp_path):
  rng = np.random.default_rng(0)
  ids = np.array([f"row-{i}" for i in range(90)])

  def pool(path, order=slice(None), **changed):
    x = np.random.default_rng(1).standard_normal((90, 5)).astype(np.float32)[order]
    columns = {"x": list(x), "label": np.resize([0, 1, 2], 90)[order], "name": ids[order]}
    path.parent.mkdir(exist_ok=True)
    return write(path, **columns | changed)

  config = base_config()
  config.update_from_flattened_dict({
    "pool": pool(tmp_path / "one" / "rows.parquet"),
    "method.name": "random",
    "columns.embedding": "x",
    "columns.id": "name",
    "budget": 0.5,
    "picture": False,
  })  # fmt: skip
  assert select_subset(config, str(tmp_path / "picked")) == 0

  def found(rows, **options):
    given = {"name": "parquet", "test_fraction": 0.2, "split_seed": 0, "input_column": "x"}
    given |= {"label_column": "label", "subset": str(tmp_path / "picked" / "subset.parquet")}
    return data.open_rows(ConfigDict({**given, "train": rows, **options}))

  assert "of 90 rows, those of subset.parquet" in found(config.pool).source
  # The same rows in a file of another name, and in two.
  assert found(pool(tmp_path / "same.parquet")).train.size
  halves = [pool(tmp_path / f"{i}.parquet", slice(45 * i, 45 * i + 45)) for i in range(2)]
  assert found(",".join(halves)).train.size
  for rows, message in (
    (halves[0], "is of a pool of 90 rows, the training set has 45"),
    (
      pool(tmp_path / "two" / "rows.parquet", label=np.resize([2, 1, 0], 90)),
      "rows.parquet is not",
    ),
    (pool(tmp_path / "shuffled.parquet", rng.permutation(90)), "the ids in column name of .*order"),
  ):
    with pytest.raises(ValueError, match=f"{message}.*--config.data.allow_other_pool=True"):
      found(rows)
  assert found(pool(tmp_path / "shuffled.parquet", rng.permutation(90)), allow_other_pool=True)


def test_what_the_command_picks_is_trained_on(tmp_path):
  digits = data.load(ConfigDict(DIGITS))
  np.save(tmp_path / "pool.npy", digits.train.inputs.reshape(1438, -1).astype(np.float32))
  picking = [
    *(sys.executable, "-m", "jsel.select", "--config=configs/select/random.py"),
    *(f"--config.pool={tmp_path / 'pool.npy'}", "--config.budget=256", "--config.budget_unit=rows"),
    f"--workdir={tmp_path / 'picked'}",
  ]
  subprocess.run(picking, cwd=ROOT, env=environment(), check=True, timeout=300)
  path = tmp_path / "picked" / "subset.parquet"
  options = [f"--config.data.subset={path}", "--config.data.validation_fraction=0"]
  options += ["--config.selector.name=full", "--config.steps=8", "--config.batch_size=128"]
  run = train(tmp_path / "run", *options)
  assert run.returncode == 0, run.stderr
  assert "trained on: " in run.stdout
  assert "256 of 1,438 rows, those of subset.parquet" in run.stdout
  seen = exposure(tmp_path / "run")
  assert seen["times_selected"] == [4] * 256
  assert seen["index"] == list(range(256))
  assert seen["source_row"] == sorted(pq.read_table(path)["index"].to_pylist())
  assert metrics(tmp_path / "run")[-1]["step"] == 8
  weight = np.resize([1.0, 3.0], 256)
  write(path, index=pq.read_table(path)["index"], weight=weight)
  run = train(tmp_path / "run", *options)
  assert run.returncode == 2
  assert "its hash was" in run.stderr  # with other weights it is other data
  run = train(tmp_path / "weighted", *options, devices=8)
  assert run.returncode == 0, run.stderr
  assert "their weights 0.5 to 1.5 times the mean 2" in run.stdout
  assert metrics(tmp_path / "weighted")[-1]["step"] == 8
  write(path, index=np.arange(256))
  run = train(tmp_path / "run", *options)
  assert run.returncode == 2
  assert "its hash was" in run.stderr
  assert run.stderr.count("\n") == 1
