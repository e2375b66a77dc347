"""The number of clusters of kmq, by silhouette."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import silhouette_score

from jsel import select as command
from jsel.selection import select
from jsel.selection.config import base_config


def test_the_curve_of_digits_is_told_and_recorded_and_its_best_taken(tmp_path, capsys):
  x = load_digits().data.astype(np.float32)
  np.savez(tmp_path / "pool.npz", embedding=x, score=np.linspace(0, 1, len(x)))
  config = base_config()
  config.pool, config.budget, config.picture = str(tmp_path / "pool.npz"), 1.0, False
  config.method.name = "kmq"
  config.method.kmq.silhouette = (40, 3, 10)
  assert command.select_subset(config, str(tmp_path / "run")) == 0
  found = json.loads((tmp_path / "run" / "summary.json").read_text())["found"]["silhouette"]
  assert found["clusters"] == [3, 10, 40]
  assert found["taken"] == found["clusters"][np.argmax(found["mean"])]
  told = capsys.readouterr().out
  assert f"of 10 clusters, {found['mean'][2]:.3f} of 40 clusters; {found['taken']} are" in told
  constants = {"columns": {"score": np.linspace(0, 1, len(x))}, "clusters": found["taken"]}
  same = select(x, "kmq", 1.0, **constants)
  labels = np.empty(len(x), int)
  labels[same.index] = same.cluster
  # That of 1,024 of the 1,797 rows: a standard error of 0.15 / 32 at the most, four times.
  mean = found["mean"][found["clusters"].index(found["taken"])]
  assert mean == pytest.approx(silhouette_score(x, labels), abs=0.02)


def test_clusters_that_are_apart_are_counted(rng):
  centers = 30 * np.eye(5, 8)
  x = (centers[rng.integers(0, 5, 600)] + rng.standard_normal((600, 8))).astype(np.float32)
  notes, score = [], {"columns": {"score": rng.random(600)}}
  found = select(x, "kmq", 0.2, silhouette=(2, 5, 9), tell=notes.append, **score)
  assert notes[0].facts["taken"] == 5
  expected = select(x, "kmq", 0.2, clusters=5, **score)
  np.testing.assert_array_equal(found.index, expected.index)


@pytest.mark.parametrize(
  ("candidates", "message"),
  [((1, 4), "at least 2 clusters, got"), ((2, 700), "700 clusters of 600")],
)
def test_numbers_of_clusters_that_cannot_be_are_refused(candidates, message, rng):
  x = rng.standard_normal((600, 8)).astype(np.float32)
  with pytest.raises(ValueError, match=message):
    select(x, "kmq", 0.2, silhouette=candidates, columns={"score": np.ones(600)})
