"""The files of a run: whole or not there, and readable by anybody."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pyarrow.parquet
import pytest
from ml_collections import ConfigDict, FieldReference

import jsel
from jsel.training import outputs


def exposure(n=6, **more):
  times = np.arange(n) % 3
  return {
    "index": np.arange(n),
    "times_selected": times,
    "first_step": 10 * times,
    "last_step": 20 * times,
    "last_loss": 0.5 * times,
    **more,
  }


def test_json_comes_back(tmp_path):
  values = {"name": "größe", "loss": np.float32(0.5), "n": jnp.int32(3), "list": (1, [None, True])}
  outputs.write_json(tmp_path / "a b.json", values)
  got = json.loads((tmp_path / "a b.json").read_text())
  assert got == {"name": "größe", "loss": 0.5, "n": 3, "list": [1, [None, True]]}


def test_json_has_no_nan(tmp_path):
  values = {"a": float("nan"), "b": [np.inf, np.array([1, np.nan])], "c": jnp.bfloat16(-jnp.inf)}
  outputs.write_json(tmp_path / "x.json", values)
  refuse = lambda name: pytest.fail(f"{name} is no JSON")
  got = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
  assert got == {"a": None, "b": [None, [1, None]], "c": None}


def test_what_json_cannot_hold_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"value\.a\[1\] is a set, which JSON cannot hold"):
    outputs.write_json(tmp_path / "x.json", {"a": [1, {2}]})
  assert not (tmp_path / "x.json").exists()


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "x.json"
  outputs.write_json(path, {"old": True})

  def full(*_):
    raise OSError("no space left")

  for name in ("fsync", "replace"):  # before the rename and in it
    with monkeypatch.context() as patch:
      patch.setattr(os, name, full)
      with pytest.raises(OSError, match="no space left"):
        outputs.write_json(path, {"new": True})
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert json.loads(path.read_text()) == {"old": True}


KILLED = """
import os, sys
from jsel.training import outputs
os.replace = lambda *_: os._exit(9)
outputs.write_json(sys.argv[1], {"new": True})
"""


def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path):
  path = tmp_path / "x.json"
  outputs.write_json(path, {"old": True})
  environment = {**os.environ, "PYTHONPATH": str(Path(jsel.__file__).parents[1])}
  child = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False)
  assert child.returncode == 9
  assert json.loads(path.read_text()) == {"old": True}


def test_an_object_store_gets_a_single_put(monkeypatch):
  puts = []

  class Store:
    def __init__(self, path):
      self.path = path

    def __str__(self):
      return self.path

    def write_bytes(self, content):
      puts.append((self.path, content))

  monkeypatch.setattr(outputs.epath, "Path", Store)
  outputs.write_json("gs://bucket/x.json", {"a": 1})
  assert puts == [("gs://bucket/x.json", b'{\n  "a": 1\n}\n')]


def test_exposure_has_the_dtypes_that_it_says(tmp_path):
  scores = {
    "utility": np.linspace(0, 1, 6),
    "half": np.arange(6).astype(ml_dtypes.bfloat16),
    "cluster": np.arange(6, dtype=np.int16),
  }
  outputs.write_exposure(tmp_path / "exposure.parquet", exposure(**scores))
  table = pyarrow.parquet.read_table(tmp_path / "exposure.parquet")
  assert {field.name: str(field.type) for field in table.schema} == {
    "index": "int32",
    "times_selected": "int32",
    "first_step": "int32",
    "last_step": "int32",
    "last_loss": "float",
    "utility": "float",
    "half": "float",
    "cluster": "int16",
  }
  np.testing.assert_array_equal(table["half"].to_numpy(), np.arange(6))
  np.testing.assert_array_equal(table["utility"].to_numpy(), scores["utility"].astype(np.float32))


def test_a_row_that_was_never_trained_on_has_no_step_and_no_loss(tmp_path):
  outputs.write_exposure(tmp_path / "x.parquet", exposure())
  table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
  assert table["first_step"].to_pylist() == [-1, 10, 20, -1, 10, 20]
  assert table["last_step"].to_pylist() == [-1, 20, 40, -1, 20, 40]
  np.testing.assert_array_equal(table["last_loss"].to_numpy(), [np.nan, 0.5, 1, np.nan, 0.5, 1])


def test_exposure_takes_arrays_of_jax(tmp_path):
  columns = {name: jnp.asarray(column) for name, column in exposure().items()}
  outputs.write_exposure(tmp_path / "x.parquet", columns)
  assert pyarrow.parquet.read_table(tmp_path / "x.parquet").num_rows == 6


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    ({"index": np.arange(3)}, r"lacks the columns \['times_selected', .*it has \['index'\]"),
    (exposure(score=np.ones((6, 2))), r"column score of exposure has shape \(6, 2\), need \(6,\)"),
    (exposure(last_step=np.ones(5)), r"column last_step of exposure has shape \(5,\), need \(6,\)"),
  ],
)
def test_a_wrong_column_is_refused(tmp_path, columns, message):
  with pytest.raises(ValueError, match=message):
    outputs.write_exposure(tmp_path / "x.parquet", columns)
  assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_where_a_run_comes_from(monkeypatch):
  monkeypatch.setenv("NPROC", "8")
  data = {"name": "digits", "source": "sklearn", "sha256": "ab", "rows": np.int64(1797)}
  started = datetime.datetime(2030, 1, 2, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
  got = outputs.manifest(data=data, seed=3, started=started)
  assert got["started"] == "2030-01-02T03:00:00+00:00"
  assert got["versions"].keys() == {
    "python", "jsel", "jax", "jaxlib", "flax", "optax", "orbax", "numpy"
  }  # fmt: skip
  assert got["versions"]["jax"] == jax.__version__
  assert got["versions"]["numpy"] == np.__version__
  assert got["versions"]["jsel"] == jsel.__version__
  assert got["devices"] == {
    "platform": "cpu", "kind": jax.devices()[0].device_kind, "count": 8, "processes": 1
  }  # fmt: skip
  assert got["host"]["NPROC"] == "8"
  assert got["host"]["cpus"] == os.cpu_count()
  assert got["data"] == {**data, "rows": 1797}
  assert got["seed"] == 3
  json.dumps(got, allow_nan=False)


def test_the_manifest_starts_now():
  started = datetime.datetime.fromisoformat(outputs.manifest(data={}, seed=0)["started"])
  assert abs(datetime.datetime.now(datetime.UTC) - started) < datetime.timedelta(minutes=1)


def git(directory, *command):
  identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
  subprocess.run(["git", "-C", directory, *identity, *command], check=True, capture_output=True)


def manifest_git(checkout, monkeypatch):
  monkeypatch.setattr(jsel, "__file__", str(checkout / "jsel" / "__init__.py"))
  return outputs.manifest(data={}, seed=0)["git"]


def test_the_manifest_knows_the_commit_and_whether_it_is_clean(tmp_path, monkeypatch):
  (tmp_path / "jsel").mkdir()
  (tmp_path / "jsel" / "__init__.py").write_text("")
  git(tmp_path, "init")
  assert manifest_git(tmp_path, monkeypatch) is None  # no commit yet
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-m", "first")
  found = manifest_git(tmp_path, monkeypatch)
  assert found["clean"]
  assert len(found["commit"]) == 40
  (tmp_path / "jsel" / "__init__.py").write_text("changed = True")
  assert manifest_git(tmp_path, monkeypatch) == {"commit": found["commit"], "clean": False}


def test_the_commit_of_somebody_elses_checkout_is_not_ours(tmp_path, monkeypatch):
  (tmp_path / "site-packages" / "jsel").mkdir(parents=True)
  git(tmp_path, "init")
  git(tmp_path, "commit", "--allow-empty", "-m", "first")
  assert manifest_git(tmp_path / "site-packages", monkeypatch) is None


def test_no_git_is_no_error(monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert outputs.manifest(data={}, seed=0)["git"] is None


def test_a_config_is_resolved(tmp_path):
  steps = FieldReference(10)
  config = ConfigDict({"steps": steps, "warmup": steps * 2, "model": {"widths": (8, 4)}, "x": None})
  config.steps = 20
  outputs.write_json(tmp_path / "config.json", outputs.config_dict(config))
  assert json.loads((tmp_path / "config.json").read_text()) == {
    "steps": 20, "warmup": 40, "model": {"widths": [8, 4]}, "x": None
  }  # fmt: skip


def test_a_workdir_is_made_and_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  workdir = outputs.check_workdir("runs/a b ü")
  assert str(workdir) == str(tmp_path / "runs" / "a b ü")
  assert list(workdir.iterdir()) == []
  assert outputs.check_workdir(workdir) == workdir


@pytest.mark.parametrize("path", ["file", "file/run", "/proc/run"])
def test_a_workdir_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=rf"cannot write to workdir .*{path}: [A-Z].*--workdir") as e:
    outputs.check_workdir(path)
  assert "\n" not in str(e.value)
  assert (tmp_path / "file").read_text() == ""
