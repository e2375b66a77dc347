"""What subsets have in common, as a person asks for it, and the proxy against scikit-learn."""

import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from jsel import select as command
from jsel.selection import compare
from jsel.selection.config import base_config

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits():
  x, labels = load_digits(return_X_y=True)
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("block", [compare.BLOCK, 1])
def test_what_nearest_neighbours_are_right_on(digits, block, monkeypatch):
  x, labels = digits
  monkeypatch.setattr(compare, "BLOCK", block)
  peer = KNeighborsClassifier(
    10, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
  )
  peer.fit(x[:200], labels[:200])
  found = compare.neighbours_accuracy(x[:200], labels[:200], x[200:600], labels[200:600])
  assert found == pytest.approx(peer.score(x[200:600], labels[200:600]))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"asked": np.ones((2, 3))}, "rows of one width"),
    ({"subset_labels": np.zeros(3, int)}, "subset has 2 rows and labels"),
    ({"asked": np.ones((0, 2)), "asked_labels": np.zeros(0, int)}, "asked has 0 rows"),
    ({"neighbours": 0}, "neighbours=0"),
    ({"temperature": float("nan")}, "temperature=nan"),
  ],
)
def test_bad_input_of_the_proxy(change, message):
  given = {"subset": np.eye(2), "subset_labels": np.arange(2)}
  given |= {"asked": np.eye(2), "asked_labels": np.arange(2)} | change
  with pytest.raises(ValueError, match=message):
    compare.neighbours_accuracy(**given)


@pytest.fixture(scope="module")
def selections(digits, tmp_path_factory):
  folder = tmp_path_factory.mktemp("compare")
  x, labels = digits
  columns = {"embedding": list(x), "source": labels, "length": 1 + labels}
  for name, ids in (("pool", np.arange(len(x))), ("other", np.arange(len(x)) + 5000)):
    pq.write_table(pa.table({**columns, "id": ids}), folder / f"{name}.parquet")
    pq.write_table(pa.table(columns), folder / f"{name}-without.parquet")
  for run, pool, seed in (
    *(("a", "pool", 0), ("b", "pool", 1), ("other", "other", 0)),
    *(("without", "pool-without", 0), ("other-without", "other-without", 0)),
  ):
    config = base_config()
    config.pool, config.method.name = str(folder / f"{pool}.parquet"), "random"
    config.seed, config.picture, config.budget = seed, False, 0.5
    if run == "other-without":  # the same rows in other files are the same pool
      pq.write_table(pa.table({**columns, "score": labels}), folder / f"{pool}.parquet")
    assert command.select_subset(config, str(folder / run)) == 0
  return folder


def compared(folder, *names):
  arguments = [sys.executable, "-m", "jsel.compare", *(str(folder / name) for name in names)]
  return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def test_overlap_and_balance_of_selections(selections):
  result = compared(selections, "a", "b")
  assert result.returncode == 0, result.stderr
  index = lambda name: pq.read_table(selections / name / "subset.parquet")["index"].to_numpy()
  expected = 100 * compare.jaccard(index("a"), index("b"))
  assert 25 < expected < 42  # of two random halves a third
  lines = result.stdout.splitlines()
  assert lines[2].startswith(f"| {selections / 'a'} | 100.0 | {expected:.1f} |")
  assert f"| {selections / 'a'} | random | 898 | 5 (5) | " in result.stdout
  ids = compared(selections, "a", "other")
  assert "| 100.0 | 0.0 |" in ids.stdout


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (("a",), "give two workdirs or more"),
    (("a", "a"), "each once"),
    (("a", "nowhere"), "holds no finished selection"),
    (("without", "other-without"), "of different pools, and not all have ids"),
  ],
)
def test_a_mistake_is_one_line(names, message, selections):
  result = compared(selections, *names)
  assert result.returncode == 2
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
