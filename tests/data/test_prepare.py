"""The command that writes prepared sets: whole or not there, and never over something else."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data import prepare
from jsel.data.rows import RowsDataset


def command(*arguments):
  run = [sys.executable, "-m", "jsel.data.prepare", *arguments]
  return subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)


def test_a_source_becomes_a_set_that_is_the_same(tmp_path):
  out = tmp_path / "set"
  keys = ["--config.data.name=digits", "--config.data.validation_fraction=0.1"]
  ran = command(*keys, f"--out={out}", "--shards=2")
  assert ran.returncode == 0, ran.stderr
  assert ran.stdout.endswith(f"--config.data.name=array_record --config.data.dir={out}\n")
  found = jsel.data.load(ConfigDict({"name": "array_record", "dir": str(out)}))
  digits = jsel.data.load(
    ConfigDict({"name": "digits", "validation_fraction": 0.1, "split_seed": 0})
  )
  # A set that was prepared has the rows that are trained on and no others; those held out are gone.
  apart = {"train": 0, "validation": 0, "test": 0, "source_rows": None}
  assert found._replace(**apart) == digits._replace(**apart)  # the hash of all bytes among them


def test_a_synthetic_set_says_so(tmp_path):
  ran = command("--synthetic=smoke", "--rows=40", "--test_rows=20", f"--out={tmp_path}/set")
  assert ran.returncode == 0, ran.stderr
  info = json.loads((tmp_path / "set" / "train" / "info.json").read_text())
  assert (info["name"], info["synthetic"], info["rows"]) == ("synthetic-smoke", True, 40)
  assert "made up" in info["source"]
  found = jsel.data.load(ConfigDict({"name": "array_record", "dir": f"{tmp_path}/set"}))
  assert found.train.inputs.shape == (40, 32, 32, 3)
  assert not {*map(bytes, found.train.inputs)} & {*map(bytes, found.test.inputs)}


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"rows": 3}, "--rows=3 is for --synthetic"),
    ({"synthetic": "smoke"}, "--rows=0 and --test_rows=10 must be at least 1"),
    ({"synthetic": "smoke", "rows": 5, "test_rows": 0}, "--test_rows=0 must be at least 1"),
    ({"name": "digitz"}, r"no data set 'digitz', did you mean 'digits'\?"),
  ],
)
def test_flags_that_do_not_fit_are_refused(given, message):
  section = {"data": {"name": given.pop("name", "digits"), "split_seed": 0}}
  defaults = {"config": ConfigDict(section), "synthetic": None, "rows": 0, "test_rows": 10}
  with pytest.raises(ValueError, match=message):
    prepare.asked_for(types.SimpleNamespace(**{**defaults, **given}))


def test_a_mistake_is_one_line():
  ran = command("--config.data.nam=digits", "--out=x")
  assert ran.returncode == 2
  assert ran.stderr.startswith("prepare.py: error: no such key: --config.data.nam: did you mean")
  assert ran.stderr.count("\n") == 1


def run(rows, out, **options):
  defaults = {"shards": 2, "encoding": "raw", "overwrite": False, "synthetic": False}
  dataset = RowsDataset(rows, None, rows, 4, "mine", "a test", 1.0, "")
  prepare.prepare(dataset, str(out), **{**defaults, **options})


@pytest.fixture
def rows(vectors):
  return jsel.data.ArrayRows(*vectors, what="vectors")


def broken(vectors):
  """Rows whose last is broken."""
  inputs = vectors[0].copy()
  inputs[49, 2] = np.nan
  return jsel.data.ArrayRows(inputs, vectors[1], what="vectors")


def test_a_broken_row_leaves_nothing_behind(tmp_path, vectors):
  with pytest.raises(ValueError, match="vectors: column 2 of row 49 is nan"):
    run(broken(vectors), tmp_path / "set")
  assert not list((tmp_path / "set").iterdir())


def test_what_is_replaced_stays_until_the_new_is_complete(tmp_path, rows, vectors, tree):
  run(rows, tmp_path / "set", shards=4)
  before = tree(tmp_path / "set")
  with pytest.raises(
    ValueError, match="train is there already: choose another --out, or set --ove"
  ):
    run(rows, tmp_path / "set")
  with pytest.raises(ValueError, match="row 49 is nan"):
    run(broken(vectors), tmp_path / "set", overwrite=True)
  assert tree(tmp_path / "set") == before
  run(rows, tmp_path / "set", overwrite=True)
  assert sorted(tree(tmp_path / "set")) == sorted(
    f"{part}/{name}"
    for part in ("train", "test")
    for name in (
      "info.json",
      "labels.npy",
      f"{part}-00000-of-00002.array_record",
      f"{part}-00001-of-00002.array_record",
    )
  )


def test_a_part_of_the_old_set_does_not_outlive_it(tmp_path, rows):
  dataset = RowsDataset(rows, rows, rows, 4, "mine", "a test", 1.0, "")
  options = {"shards": 2, "encoding": "raw", "synthetic": False}
  prepare.prepare(dataset, str(tmp_path), overwrite=False, **options)
  without = dataset._replace(validation=None)
  (tmp_path / "train").rename(tmp_path / "moved")
  with pytest.raises(ValueError, match="validation is there already"):
    prepare.prepare(without, str(tmp_path), overwrite=False, **options)
  prepare.prepare(without, str(tmp_path), overwrite=True, **options)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "test", "train"]


def test_what_a_killed_writer_left_is_told(tmp_path, rows, capsys):
  (tmp_path / ".train.1.partial").mkdir()
  run(rows, tmp_path)
  assert f"{tmp_path}/.train.1.partial is unfinished: delete it" in capsys.readouterr().out


def test_a_folder_that_is_no_set_is_never_replaced(tmp_path, rows):
  (tmp_path / "set" / "train").mkdir(parents=True)
  (tmp_path / "set" / "train" / "thesis.txt").write_text("years of work")
  with pytest.raises(ValueError, match="train is there and is no prepared set: move it away"):
    run(rows, tmp_path / "set", overwrite=True)
  assert (tmp_path / "set" / "train" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"shards": 51}, "--shards=51 files for the 50 rows of train: choose 1 to 50"),
    ({"shards": 0}, "--shards=0 files"),
    ({"encoding": "image"}, "holds arrays, no encoded images: use --encoding=raw"),
    ({"encoding": "pickle"}, "--encoding=pickle is none of raw, image"),
  ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, rows, options, message):
  with pytest.raises(ValueError, match=message):
    run(rows, tmp_path / "set", **options)
  assert not list((tmp_path / "set").iterdir())
