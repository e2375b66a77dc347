"""What must not change when rows are permuted, removed, repeated, scaled or padded otherwise."""

import jax
import numpy as np
import pytest

from tests.inputs import choices, values
from tests.inputs.clusters import CENTERS
from tests.inputs.hostile import plain

CASES = choices.CASES | values.CASES
# Kernels whose results have an entry a row, whatever the rows' ids are.
BY_ROW = (
  "top_k_mask", "cap_mask", "budget_mask", "budget_mask/under", "bounds_mask",
  "inclusion_probabilities", "rademacher", "srht", "project_tree", "kmeans.assign", "leverage",
  "silhouette.simplified", "sae.encode", "sae.decode", "rank01", "zscore", "combine", "el2n",
  "margin", "entropy",
)  # fmt: skip
CHOSEN = ("top_k", "top_k/sorted", "penalized_top_k", "best_matches", "diversity_filter")
SUMS = ("count", "fixed_tree_sum", "fixed_point_sum", "moments", "segment_sum", "factor_counts",
        "kmeans_minibatch", "unexplained")  # fmt: skip
WEIGHTED = ("plus_plus", "parallel", "kmeans.fit", "kmeans_minibatch", "inclusion_probabilities",
            "systematic", "with_replacement")  # fmt: skip
REPEATED = ("kmeans.fit", "kmeans_minibatch", "segment_sum")
SCALED = ("top_k", "top_k/sorted", "top_k_mask", "cap_mask", "budget_mask", "bounds_mask",
          "rank01", "zscore", "inclusion_probabilities", "systematic", "with_replacement",
          "diversity_filter", "plus_plus", "parallel", "kmeans_minibatch")  # fmt: skip
# Sums of floats whose rows lie otherwise are rounded otherwise.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def answer(name, inputs):
  return jax.tree.map(np.asarray, CASES[name][0](inputs))


def same(got, want, **tolerance):
  compare = lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 0}))
  jax.tree.map(compare, got, want)


def permuted(inputs, order):
  return type(inputs)(*(field[order] for field in inputs[:-1]), inputs.k)


@pytest.fixture
def inputs():
  return plain()._replace(valid=np.arange(24) < 19)


@pytest.fixture
def order(rng):
  return rng.permutation(24)


@pytest.mark.parametrize("name", BY_ROW)
def test_permuted_rows_have_permuted_results(name, inputs, order):
  got, want = answer(name, permuted(inputs, order)), answer(name, inputs)
  of_rows = lambda leaf: leaf[order] if leaf.ndim else leaf  # the mean of the silhouettes is one
  same(got, jax.tree.map(of_rows, want), **ROUNDING)


@pytest.mark.parametrize("name", CHOSEN)
def test_permuted_rows_give_the_same_selection(name, inputs, order):
  got, want = answer(name, permuted(inputs, order)), answer(name, inputs)
  back = np.where(got.indices >= 0, order[got.indices], -1)
  same(np.sort(back, axis=-1), np.sort(want.indices, axis=-1))


@pytest.mark.parametrize("name", SUMS)
def test_permuted_rows_have_the_same_sums(name, inputs, order):
  same(answer(name, permuted(inputs, order)), answer(name, inputs), **ROUNDING)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weight_0_is_removal(name, inputs):
  out = np.arange(24) % 3 == 0
  removed = inputs._replace(valid=inputs.valid & ~out)
  weightless = inputs._replace(weights=np.where(out, 0, inputs.weights).astype(np.float32))
  got, want = answer(name, weightless), answer(name, removed)
  if name == "kmeans.fit":  # a row without weight has a label all the same
    want = want._replace(labels=np.where(removed.valid, want.labels, got.labels))
  same(got, want)


@pytest.mark.parametrize("name", REPEATED)
def test_weight_2_is_repetition(name, inputs):
  half = np.arange(24) % 12
  # Rows by all centers: one without rows would move to a row, and here there are two alike.
  x = CENTERS[half % len(CENTERS)] + 0.3 * inputs.x[half]
  everything = np.ones(24, bool)
  weights = np.where(np.arange(24) < 12, 2, 0).astype(np.float32)
  once = inputs._replace(weights=weights, valid=everything)
  rows = {field: getattr(inputs, field)[half] for field in ("scores", "labels", "usage")}
  rows["x"] = x.astype(np.float32)
  twice = inputs._replace(**rows, weights=np.ones(24, np.float32), valid=everything)
  once = once._replace(**rows)
  same(answer(name, once), answer(name, twice), **ROUNDING)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("factor", [8, 2.0**-60, 2.0**100])
def test_scaled_scores_and_weights_choose_the_same(name, factor, inputs):
  scale = lambda array: (array * factor).astype(np.float32)
  scaled = inputs._replace(scores=scale(inputs.scores), weights=scale(inputs.weights))
  got, want = answer(name, scaled), answer(name, inputs)
  if name in ("top_k", "top_k/sorted", "diversity_filter"):
    got, want = got.indices, want.indices
  if name == "kmeans_minibatch":
    got, want = got.centers, want.centers
  same(got, want)


PADDED = [name for name in CASES if name not in values.WITHOUT_VALID]


@pytest.mark.parametrize("name", PADDED)
def test_what_is_in_padded_rows_changes_nothing(name, inputs):
  def padded_with(value):
    fill = lambda array, value: np.where(
      inputs.valid.reshape(-1, *[1] * (array.ndim - 1)), array, value
    ).astype(array.dtype)
    changed = {field: fill(getattr(inputs, field), value) for field in ("x", "scores", "weights")}
    whole = {field: fill(getattr(inputs, field), 3) for field in ("labels", "usage")}
    return inputs._replace(**changed, **whole)

  want = answer(name, padded_with(0))
  for value in (np.nan, np.inf, 1e30):
    same(answer(name, padded_with(value)), want)
