"""Subsets of a small pool are chosen, trained on and compared."""

import jax
import numpy as np
import pytest

from benchmarks import glosses, heads, subset_accuracy
from benchmarks.heads import Settings
from benchmarks.rankings import UNSEEDED, cut, lacks, rankings, rankings_of_seeds
from jsel.selection import select

SETTINGS = Settings(rate=1e-2, epochs=20, batch=32)


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
  # Optax does not keep to strict promotion itself.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture(scope="module")
def losses(rows, parts):
  return glosses.probe(rows, parts, SETTINGS)[0]


def test_parts_are_disjoint_and_whole(rows, parts):
  every = np.concatenate([part.ravel() for part in parts])
  assert np.sort(every).tolist() == list(range(1797))
  assert (rows.labels[parts.reserved] == np.arange(10)[:, None]).all()
  drawn = glosses.queries(rows, parts, seed=0)
  assert len(set(drawn.tolist())) == len(drawn) == 80
  assert set(drawn.tolist()) <= set(parts.reserved.ravel().tolist())
  assert set(drawn.tolist()) != set(glosses.queries(rows, parts, seed=1).tolist())


def test_heads_trained_together_are_those_trained_alone(rows, parts):
  subsets = [parts.pool[:90], parts.pool[100:190]]
  settings = SETTINGS._replace(hidden=16, epochs=4)
  both = heads.train(rows.x, rows.labels, subsets, settings=settings)
  alone = heads.train(rows.x, rows.labels, subsets[:1], settings=settings)
  for (kernel, bias), (expected, expected_bias) in zip(both, alone, strict=True):
    np.testing.assert_allclose(kernel[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bias[0], expected_bias[0], rtol=1e-4, atol=1e-4)
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-2


def test_a_weight_is_as_many_copies_of_a_row(rows, parts):
  few = parts.pool[:8]
  one = SETTINGS._replace(batch=8, epochs=20)
  weighted = heads.train(
    rows.x, rows.labels, [few], settings=one, weights=[np.array([3.0] + 7 * [1.0])]
  )
  copies = np.concatenate([few, few[:1], few[:1]])
  ten = one._replace(batch=10)
  copied = heads.train(rows.x, rows.labels, [copies], settings=ten)
  for (kernel, _), (expected, _) in zip(weighted, copied, strict=True):
    np.testing.assert_allclose(kernel, expected, atol=1e-2)


def test_accuracy_and_the_mean_over_classes(rows):
  params = [(np.zeros((1, 64, 10), np.float32), np.eye(10, dtype=np.float32)[None, 3])]
  x, labels = rows.x[:500], rows.labels[:500]
  accuracy, macro = heads.accuracies(params, x, labels)
  assert accuracy[0] == pytest.approx((labels == 3).mean())
  assert macro[0] == pytest.approx(0.1)


def test_settings_are_chosen_on_the_validation_rows(rows, parts):
  grid = [SETTINGS, SETTINGS._replace(rate=1e-7, epochs=1)]
  best, tried = subset_accuracy.best_settings(rows, parts, grid[::-1], share=0.1, seeds=2)
  assert best == SETTINGS
  assert tried[1]["validation_accuracy"] > 0.8 > tried[0]["validation_accuracy"]


@pytest.mark.parametrize("unit", subset_accuracy.UNITS)
@pytest.mark.parametrize("method", ["rds", "longest", "kmq", "km_closest"])
def test_what_is_cut_is_a_call_of_its_own(rows, parts, losses, method, unit):
  constants = {"clusters": 16} if method == "kmq" else {}
  found = rankings(method, rows, parts, losses, seed=1, budgets=(0.02, 0.1), constants=constants)
  length = rows.length[parts.pool]
  small = cut(found[0].ranking, length, unit, 0.02)
  wanted = round(0.02 * (length.sum() if unit == "tokens" else len(length)))
  if method == "km_closest":
    constants = {"clusters": round(0.02 * len(length))}
  alone = select(
    rows.x[parts.pool],
    method,
    wanted,
    unit=unit,
    queries=rows.x[glosses.queries(rows, parts, 1)],
    columns={"length": length, "score": -losses},
    seed=1,
    **constants,
  )
  assert small.index.tolist() == alone.index.tolist()
  if unit == "tokens":
    assert wanted - length.max() < length[alone.index].sum() <= wanted


@pytest.mark.parametrize("method", [*UNSEEDED, "k_center", "rds"])
def test_methods_that_read_no_seed_are_ranked_once(rows, parts, losses, method):
  arguments = (method, rows, parts, losses)
  options = {"budgets": (0.02,), "constants": {}}
  once = rankings_of_seeds(*arguments, seeds=2, **options)
  ranked = [rankings(*arguments, seed=seed, **options) for seed in range(2)]
  indices = [[one[0].ranking.index.tolist() for one in of] for of in (once, ranked)]
  assert indices[0] == indices[1]
  assert (indices[1][0] == indices[1][1]) == (method in UNSEEDED)
  assert (once[0] is once[1]) == (method in UNSEEDED)


def test_weights_are_those_of_the_number_of_rows(rows, parts, losses):
  constants = {"clusters": 16}
  found = rankings(
    "sensitivity", rows, parts, losses, seed=0, budgets=(0.02, 0.1), constants=constants
  )
  for ranked, budget in zip(found, (0.02, 0.1), strict=True):
    assert len(ranked.ranking.index) == round(budget * len(parts.pool))
    assert ranked.ranking.weight.sum() == pytest.approx(len(parts.pool), rel=0.5)
  with pytest.raises(ValueError, match="not of tokens"):
    cut(found[0].ranking, rows.length[parts.pool], "tokens", 0.02)


def test_methods_and_bars_are_compared(rows, parts, losses):
  assert lacks("crds_r", rows) == "hidden states of several layers"
  assert lacks("rds", rows) == ""
  runs = subset_accuracy.bars(rows, parts, SETTINGS, (0.1,), seeds=2)
  for method in ("random", "rds", "sensitivity"):
    constants = {"clusters": 16} if method == "sensitivity" else {}
    arguments = {"units": ("rows",), "budgets": (0.02, 0.1), "seeds": 2, "constants": constants}
    runs += subset_accuracy.runs_of(method, rows, parts, losses, SETTINGS, **arguments)
  of = {(run["method"], run["budget"]): np.mean(run["test_accuracy"]) for run in runs}
  assert of["full", 1.0] > of["random", 0.1] > of["random", 0.02] > 0.3
  assert of["full", 1.0] > 0.9
  assert of["rs2", 0.1] > 0.8
  assert {run["rows"][0] for run in runs if run["budget"] == 0.1} == {round(0.1 * len(parts.pool))}
  lines = subset_accuracy.table(runs).splitlines()
  assert len(lines) == 2 + len(runs)
  assert [line for line in lines if line.startswith("| 100 % of rows | full |")] == [lines[-1]]
  assert "| 2 % of rows | 3 |" in subset_accuracy.agreement(runs)
