"""python -m jsel.select as a person runs it, on digits."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

ROOT = pathlib.Path(__file__).parent.parent


def run(workdir, *options):
  command = [sys.executable, "-m", "jsel.select", "--config=configs/select/rds.py"]
  return subprocess.run(
    [*command, f"--workdir={workdir}", *(f"--config.{option}" for option in options)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


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


def test_queries_of_one_digit_pick_that_digit_and_a_second_run_is_done(files, tmp_path):
  given = (f"pool={files}/pool.parquet", f"queries={files}/queries.npy", "budget=0.05")
  first = run(tmp_path, *given)
  assert first.returncode == 0, first.stderr
  table = pq.read_table(tmp_path / "subset.parquet")
  assert table.num_rows == json.loads((tmp_path / "summary.json").read_text())["rows"] == 90
  assert np.mean(table["source"].to_numpy() == 3) > 0.9
  assert table["id"].to_pylist() == [f"d{i}" for i in table["index"].to_pylist()]
  again = run(tmp_path, *given)
  assert again.returncode == 0
  assert "all is done" in again.stdout


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("pool={}/cut.parquet",), "no whole parquet"),
    (("pool={}/pickled.npy",), "never unpickled"),
    (("pool={}/pool.parquet", "columns.embedding=embeddings"), "did you mean 'embedding'"),
    (("pool={}/pool.parquet",), "needs queries"),
  ],
)
def test_a_mistake_is_exit_code_2_and_one_line(options, message, files, tmp_path):
  result = run(tmp_path, *(option.format(files) for option in options))
  assert result.returncode == 2, result.stderr
  assert message in result.stderr
  assert "Traceback" not in result.stderr
