"""python -m jsel.select as several hosts run it: the subset of one process, to the byte."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from jsel.training import outputs
from tests.test_hosts import Hosts, told

SELECT = ("-m", "jsel.select", "--config=configs/select/rds.py")


def write_digits(folder):
  """A pool of digits with ids, sources and scores, and queries; options that name them."""
  x, y = load_digits(return_X_y=True)
  x = x.astype(np.float32)
  columns = {"embedding": list(x), "id": [f"d{i}" for i in range(len(x))], "source": y}
  columns["score"] = np.random.default_rng(0).random(len(x))
  pq.write_table(pa.table(columns), folder / "pool.parquet", row_group_size=200)
  np.save(folder / "queries.npy", x[y == 3][:5])
  given = (f"pool={folder}/pool.parquet", f"queries={folder}/queries.npy", "budget=0.05")
  return tuple(f"--config.{option}" for option in given)


def select(count, workdir, *options):
  with Hosts(count, workdir, *options, command=SELECT) as hosts:
    codes, texts = hosts.finish()
  assert codes == [0] * count, "\n".join(texts)
  return texts


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  return write_digits(tmp_path_factory.mktemp("digits"))


def test_two_processes_select_as_one(digits, tmp_path):
  select(1, tmp_path / "one", *digits, "--config.picture=False")
  texts = select(2, tmp_path / "two", *digits)
  one, two = ((tmp_path / name / "subset.parquet").read_bytes() for name in ("one", "two"))
  assert two == one
  assert "90 rows in" in texts[0]
  assert texts[0].count("jsel: matching, 1,797 of 1,797 rows") == 1
  assert not told(texts[1])
  files = ("config.json", "manifest.json", "subset.parquet", "subset.png", "summary.json")
  assert {path.name for path in (tmp_path / "two").iterdir()} == {*files}
  manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
  assert manifest["devices"]["processes"] == 2


def test_what_one_process_alone_finds_wrong_is_told_by_all(digits, tmp_path):
  outputs.hold(tmp_path)  # which only process 0 asks for
  with Hosts(2, tmp_path, *digits, command=SELECT) as hosts:
    codes, texts = hosts.finish()
  assert codes == [2, 2], "\n".join(texts)
  for text in texts:
    assert len(told(text)) == 1, text
    assert "another run is at work" in text
