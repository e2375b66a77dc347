"""Overlaps of subsets of a small pool, and silhouettes against scikit-learn's."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples

from benchmarks import subset_clusters, subset_overlap


@pytest.fixture(scope="module")
def found(rows, parts):
  losses = np.random.default_rng(0).random(len(parts.pool))
  return subset_overlap.subsets(("random", "rds", "crds_w"), rows, parts, losses, seeds=3)


def test_overlaps_of_methods_and_seeds(found):
  overlaps = subset_overlap.between(found)
  assert overlaps["rds"]["crds_w"] == overlaps["crds_w"]["rds"]
  # Subsets of the same queries have more in common than random ones have.
  assert overlaps["rds"]["crds_w"] > overlaps["random"]["random"] + 0.1
  assert overlaps["random"]["random"] < 0.1
  assert overlaps["rds"]["rds"] < 1
  lines = subset_overlap.overlap_table(overlaps).splitlines()
  assert lines[0] == "| % | random | rds | crds_w |"
  assert len(lines) == 5


def test_a_query_fewer_changes_a_part(rows, parts):
  of_all = subset_overlap.dropped("rds", rows, parts, each=0, most=3)
  of_one = subset_overlap.dropped("rds", rows, parts, each=8, most=3)
  assert (of_all["queries"], of_one["queries"]) == (80, 8)
  assert len(of_all["overlaps"]) == len(of_one["overlaps"]) == 3
  assert 1 > np.mean(of_all["overlaps"]) > np.mean(of_one["overlaps"]) > 0.3
  assert "| rds | 80 |" in subset_overlap.dropped_table([of_all])


def test_balance_of_classes_and_lengths(found, rows, parts):
  classes = rows.labels[parts.pool]
  of_one = {"one": [np.flatnonzero(classes == 3)]}
  result = subset_overlap.balance(of_one, rows, parts)[0]
  assert result["class_distance"] == pytest.approx(1 - (classes == 3).mean())
  assert result["mean_length"] == pytest.approx(rows.length[parts.pool][classes == 3].mean())
  assert "| random |" in subset_overlap.balance_table(subset_overlap.balance(found, rows, parts))


def test_silhouettes_are_those_of_scikit_learn(rows):
  x, labels = rows.x[:600], KMeans(7, n_init=1, random_state=0).fit_predict(rows.x[:600])
  labels[0] = 7  # a row alone
  sample = np.arange(0, 600, 3)
  found, _ = subset_clusters.silhouettes(x, labels, sample)
  np.testing.assert_allclose(found, silhouette_samples(x, labels)[sample], atol=2e-3)
  assert found[0] == 0


def test_simplified_silhouettes_by_hand():
  x = np.array([[0.0], [2.0], [7.0], [9.0]], np.float32)
  _, found = subset_clusters.silhouettes(x, np.array([0, 0, 1, 1]), np.array([0, 2]))
  np.testing.assert_allclose(found, [(8 - 1) / 8, (6 - 1) / 6])


def test_the_curve_marks_its_largest():
  run = {"silhouette": [0.1, 0.3], "simplified": [0.5, 0.5], "test_accuracy": [0.5, 0.6]}
  more = {"silhouette": [0.1, 0.1], "simplified": [0.6, 0.6], "test_accuracy": [0.4, 0.4]}
  lines = subset_clusters.table([{"clusters": 8, **run}, {"clusters": 16, **more}]).splitlines()
  assert lines[2].startswith("| 8 | **20.00** | 50.00 | **55.00 ±")
  assert lines[3] == "| 16 | 10.00 | **60.00** | 40.00 ± 0.00 |"
