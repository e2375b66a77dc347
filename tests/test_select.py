"""python -m jsel.select as a person runs it, on digits."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "JAX_NUM_CPU_DEVICES": "1",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
ROOT = pathlib.Path(__file__).parent.parent


def start(workdir, *options):
  command = [sys.executable, "-m", "jsel.select", "--config=configs/select/rds.py"]
  return subprocess.Popen(
    [*command, f"--workdir={workdir}", *(f"--config.{option}" for option in options)],
    cwd=ROOT,
    env={**os.environ, **ENVIRONMENT},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  out, err = process.communicate(timeout=300)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(workdir, *options):
  return finish(start(workdir, *options))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pool")
  x, y = load_digits(return_X_y=True)
  x = x.astype(np.float32)
  columns = {"embedding": pa.array(list(x)), "id": [f"d{i}" for i in range(len(x))], "source": y}
  pq.write_table(pa.table(columns), folder / "pool.parquet", row_group_size=500)
  np.save(folder / "queries.npy", x[y == 3][:5])
  (folder / "cut.parquet").write_bytes((folder / "pool.parquet").read_bytes()[:5000])
  np.save(folder / "pickled.npy", np.array([{}]), allow_pickle=True)
  return folder


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
  """The workdir of a selection, and what it was asked for."""
  given = (f"pool={files}/pool.parquet", "method.name=random", "picture=False")
  workdir = tmp_path_factory.mktemp("done") / "run"
  result = run(workdir, *given)
  assert result.returncode == 0, result.stderr
  return workdir, given


def test_queries_of_one_digit_pick_that_digit_and_a_second_run_is_done(files, tmp_path):
  given = (f"pool={files}/pool.parquet", f"queries={files}/queries.npy", "budget=0.05")
  first = run(tmp_path, *given)
  assert first.returncode == 0, first.stderr
  table = pq.read_table(tmp_path / "subset.parquet")
  assert table.num_rows == json.loads((tmp_path / "summary.json").read_text())["rows"] == 90
  assert np.mean(table["source"].to_numpy() == 3) > 0.9
  assert table["id"].to_pylist() == [f"d{i}" for i in table["index"].to_pylist()]
  assert not (tmp_path / "progress").exists()
  assert (tmp_path / "subset.png").stat().st_size > 10_000
  again = run(tmp_path, *given, "slow_minutes=7")
  assert again.returncode == 0
  assert "all is done" in again.stdout
  changed = run(tmp_path, given[0], given[1], "budget=0.1", "seed=3")
  assert changed.returncode == 2
  assert "a run with budget=0.05, seed=0, this one has budget=0.1, seed=3" in changed.stderr
  assert pq.read_table(tmp_path / "subset.parquet").equals(table)
  over = run(
    tmp_path, given[0], given[1], "budget=0.1", "seed=3", "overwrite=True", "picture=False"
  )
  assert over.returncode == 0, over.stderr
  assert pq.read_table(tmp_path / "subset.parquet").num_rows == 180


def test_other_data_under_the_same_name_is_refused(tmp_path, rng):
  np.save(tmp_path / "pool.npy", rng.standard_normal((100, 4)).astype(np.float32))
  given = (f"pool={tmp_path}/pool.npy", "method.name=random", "picture=False")
  assert run(tmp_path / "run", *given).returncode == 0
  np.save(tmp_path / "pool.npy", rng.standard_normal((100, 4)).astype(np.float32))
  result = run(tmp_path / "run", *given)
  assert result.returncode == 2
  assert "files of pool are not what the run" in result.stderr


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
  """A pool of several blocks, and what k-means takes of it in a run that is left alone."""
  folder = tmp_path_factory.mktemp("clustered")
  x = np.random.default_rng(0).standard_normal((260_000, 48)).astype(np.float32)
  np.save(folder / "pool.npy", x)
  given = (f"pool={folder}/pool.npy", "method.name=km_random", "method.km_random.clusters=64")
  given += ("method.km_random.iterations=5", "save_seconds=0", "budget=0.01")
  given += ("picture=False",)
  assert run(folder / "whole", *given).returncode == 0
  return given, (folder / "whole" / "subset.parquet").read_bytes()


@pytest.mark.parametrize(
  ("stop", "walk"), [(signal.SIGTERM, 2), (signal.SIGINT, 0), (signal.SIGKILL, 2)]
)
def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(stop, walk, clustered, tmp_path):
  given, whole = clustered
  process = start(tmp_path, *given)
  progress = tmp_path / "progress"
  while not (progress / f"walk-{walk:03d}.npz").exists() and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(stop)
  stopped = finish(process)
  assert stopped.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[stop]
  assert not (tmp_path / "subset.parquet").exists()
  kept = sorted(path.name for path in progress.glob("walk-*.npz"))
  assert kept[walk:]
  if stop == signal.SIGTERM:
    other = run(tmp_path, *given, "seed=1")
    assert other.returncode == 2
    assert "seed=0" in other.stderr
  again = run(tmp_path, *given)
  assert again.returncode == 0, again.stderr
  assert (tmp_path / "subset.parquet").read_bytes() == whole
  assert not progress.exists()


def test_a_selection_that_is_done_over_leaves_nothing_of_the_one_before(files, tmp_path):
  given = (f"pool={files}/pool.parquet", "method.name=random", "budget=0.05")
  first = run(tmp_path, *given, "dedup=0.99", "write_rows=jsonl")
  assert first.returncode == 0, first.stderr
  # The plan first, then what takes long.
  assert first.stdout.index("random: about") < first.stdout.index("rows are not chosen from")
  assert {"rows.jsonl", "excluded.parquet", "subset.png"} <= {p.name for p in tmp_path.iterdir()}
  again = run(tmp_path, *given, "seed=1", "picture=False", "overwrite=True")
  assert again.returncode == 0, again.stderr
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == ["config.json", "manifest.json", "subset.parquet", "summary.json"]


@pytest.mark.parametrize(
  ("name", "damage"),
  [
    ("config.json", b'{"pool": '),
    ("config.json", b"[]"),
    ("manifest.json", b"{}"),
    ("manifest.json", None),
    ("subset.parquet", None),
  ],
)
def test_a_finished_selection_that_is_damaged_is_told_in_one_line(name, damage, done, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(done[0], workdir)
  (workdir / name).unlink() if damage is None else (workdir / name).write_bytes(damage)
  result = run(workdir, *done[1])
  assert result.returncode == 2, result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
  assert "is damaged" in result.stderr
  assert "--config.overwrite=True" in result.stderr


def test_the_two_commands_keep_out_of_each_other_s_workdirs(done, files, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(done[0], workdir)
  before = {path.name: path.read_bytes() for path in workdir.iterdir()}
  command = [sys.executable, "train.py", f"--workdir={workdir}", "--config.steps=1"]
  trained = subprocess.run(
    command,
    cwd=ROOT,
    env={**os.environ, **ENVIRONMENT},
    capture_output=True,
    text=True,
    check=False,
  )
  assert trained.returncode == 2, trained.stderr
  assert "holds a subset of python -m jsel.select (subset.parquet)" in trained.stderr
  assert {path.name: path.read_bytes() for path in workdir.iterdir()} == before
  (tmp_path / "trained").mkdir()
  (tmp_path / "trained" / "metrics.jsonl").write_text("")
  result = run(tmp_path / "trained", f"pool={files}/pool.parquet", "method.name=random")
  assert result.returncode == 2
  assert "holds a training run (metrics.jsonl): choose another --workdir" in result.stderr


@pytest.mark.parametrize("picture", [True, False])
def test_the_plan_says_what_a_picture_reads(picture, files, tmp_path):
  given = (f"pool={files}/pool.parquet", "method.name=random", f"picture={picture}")
  result = run(tmp_path, *given)
  assert result.returncode == 0, result.stderr
  assert ("subset.png: one walk more, about 0:0" in result.stdout) == picture
  assert (tmp_path / "subset.png").exists() == picture


def test_what_would_take_too_long_is_asked_about_first(files, tmp_path):
  given = (f"pool={files}/pool.parquet", "method.name=km_closest", "slow_minutes=1e-9")
  refused = run(tmp_path, *given)
  assert refused.returncode == 2
  assert "km_closest would take about" in refused.stderr
  assert "--config.allow_slow=True" in refused.stderr
  assert not (tmp_path / "subset.parquet").exists()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("pool={}/cut.parquet", "queries={}/queries.npy"), "no whole parquet"),
    (("pool={}/pickled.npy", "queries={}/queries.npy"), "never unpickled"),
    (
      ("pool={}/pool.parquet", "method.name=random", "columns.embedding=embeddings"),
      "did you mean 'embedding'",
    ),
    (("pool={}/pool.parquet",), "needs queries"),
  ],
)
def test_a_mistake_is_exit_code_2_and_one_line(options, message, files, tmp_path):
  result = run(tmp_path, *(option.format(files) for option in options))
  assert result.returncode == 2, result.stderr
  assert message in result.stderr
  assert "Traceback" not in result.stderr
