"""Kernels that compute numbers of rows, and what float64 says of the numbers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import (
  gather,
  leverage,
  moments,
  nth,
  project_tree,
  projection,
  reduce,
  sae,
  scatter,
  scores,
  similarity,
  srht,
  whitening,
)
from tests.inputs import clusters
from tests.inputs.hostile import IDS, close, is_tame, normal, wide, within

KEY = jax.random.key(0)
QUERIES = np.array([[1, 0, 0], [0.5, -1, 2]], np.float32)
PASSED_ON = ("gather", "scatter", "scatter_add")  # have the dtype of what they are given


def autoencoder(d):
  w = np.random.default_rng(0).standard_normal((6, d)).astype(np.float32)
  decoder = w / np.linalg.norm(w, axis=1, keepdims=True) if d else w
  zeros = np.zeros(d, np.float32)
  return sae.SAE(*map(jnp.asarray, (w, np.zeros(6, np.float32), decoder, zeros, np.array(True))))


class Sgd(NamedTuple):
  init: Callable = lambda weights: ()
  update: Callable = lambda g, state, weights=None: (jax.tree.map(lambda g: -0.1 * g, g), state)


def codes(i):
  index = np.stack([i.labels % 6, (i.labels + 1) % 6], 1)
  return sae.Codes(index, np.stack([i.scores, i.weights], 1))


def with_none(x):
  """``x`` and a row of zeros, the last, for ids of no row."""
  return np.concatenate([x, np.zeros_like(x, shape=(1, *x.shape[1:]))])


def check_gather(i, got):
  rows = with_none(i.x)[np.where(within(len(i.x)), IDS, -1)]
  np.testing.assert_array_equal(got.astype(np.float32), rows)


def check_select(i, got):
  ids = np.flatnonzero(i.valid)
  there = within(len(ids))
  want = np.append(ids, -1)[np.where(there, IDS, -1)]
  np.testing.assert_array_equal(got.indices, want)
  np.testing.assert_array_equal(got.values, with_none(i.scores)[want])


def check_scatter(i, got):
  want = i.scores.copy()
  want[IDS[within(len(want))]] = np.resize(i.scores, 1)
  np.testing.assert_array_equal(got.astype(np.float32), want)


def check_scatter_add(i, got):
  want = i.usage.copy()
  for row in IDS[within(len(want))]:
    want[row] += 2
  np.testing.assert_array_equal(got, want)


def check_tree_sum(i, got):
  x = np.where(i.valid[:, None], wide(i.x), 0)
  with np.errstate(invalid="ignore"):
    close(got, x.sum(0), np.abs(np.where(np.isfinite(x), x, 0)).sum(0))


def check_point_sum(i, got):
  assert int(got.high) * 2**32 + int(got.low) == int(i.usage[i.valid].astype(object).sum())


def check_moments(i, got):
  x = wide(i.x)[i.valid]
  if not len(x):
    assert (got[0] == 0).all()
    assert np.isnan(got[1]).all()
    return
  for column in range(x.shape[1]):
    of = x[:, column]
    if not np.isfinite(of).all():
      assert not np.isfinite(got[0][column])
      assert not np.isfinite(got[1][column])
      continue
    largest = np.abs(of).max()
    close(got[0][column], of.mean(), largest)
    if largest < 1e15:  # whose squares add up in float32
      close(got[1][column], of.var(), largest**2)
    else:
      assert of.std() < 1e-6 * largest or not np.isfinite(got[1][column])


def whiten(i):
  fitted = whitening.fit(i.x, rank=min(2, i.k), valid=i.valid)
  return fitted, whitening.apply(fitted, i.x, valid=i.valid)


def check_whitening(i, got):
  fitted, y = got
  x = wide(i.x)[i.valid]
  if not np.isfinite(x).all():
    assert np.isnan(fitted.scale).all()
    return
  if not is_tame(i):
    return
  assert np.isfinite(fitted.scale).all()
  y, kept = y[i.valid], np.asarray(fitted.scale) > 0
  rank = np.linalg.matrix_rank(x - x.mean(0), tol=1e-3)
  assert kept.sum() == min(len(kept), rank)
  want = np.diag(kept.astype(float))
  np.testing.assert_allclose(np.atleast_2d(np.cov(y.T)), want, atol=1e-3)
  assert (got[1][~i.valid] == 0).all()


def check_rademacher(i, got):
  signs = wide(np.asarray(projection.signs(KEY, jnp.arange(i.x.shape[1], dtype=jnp.int32), i.k)))
  with np.errstate(invalid="ignore"):
    scale = np.abs(np.where(np.isfinite(i.x), wide(i.x), 0)).sum(1, keepdims=True)
    close(got, wide(i.x) @ signs / np.sqrt(i.k), scale)


def check_length_kept(i, got):
  finite = np.isfinite(i.x).all(1)
  want = np.sqrt((wide(i.x)[finite] ** 2).sum(1))
  np.testing.assert_allclose(np.linalg.norm(wide(got[finite]), axis=1), want, rtol=1e-5, atol=1e-36)
  assert (~np.isfinite(got[~finite])).any(1).all()


def check_project_tree(i, got):
  finite = np.isfinite(i.x).all(1) & np.isfinite(i.scores)
  assert np.isfinite(got[finite]).all()
  assert not np.isfinite(got[~finite]).any()


def check_matches(i, got):
  with np.errstate(invalid="ignore"):
    product = wide(QUERIES) @ wide(i.x).T
    scale = np.abs(np.where(np.isfinite(i.x), wide(i.x), 0)).sum(1) * 2 + 1e-30
  for q, of_query in enumerate(product):
    there = np.flatnonzero(i.valid & ~np.isnan(of_query))
    ids = got.indices[q][got.indices[q] >= 0]
    assert len(ids) == len(np.unique(ids)) == min(i.k, len(there))
    assert set(ids) <= set(there)
    close(got.values[q][: len(ids)], of_query[ids], scale[ids])
    close(
      got.values[q][: len(ids)],
      np.sort(of_query[there])[::-1][: len(ids)],
      scale[there].max(initial=0),
    )


def check_leverage(i, got):
  x = wide(i.x)[i.valid]
  assert (got[~i.valid] == 0).all()
  if not np.isfinite(x).all():
    assert np.isnan(got[i.valid]).all()
  elif is_tame(i):
    design = np.concatenate([np.ones((len(x), 1)), x], 1)
    want = np.diag(design @ np.linalg.pinv(design, rcond=1e-5))
    np.testing.assert_allclose(got[i.valid], want, atol=1e-3)


def check_sae_fit(i, got):
  for leaf in jax.tree.leaves(got):
    assert np.isfinite(leaf).all()


def check_encode(i, got):
  with np.errstate(over="ignore"):
    finite = np.isfinite((i.x.astype(np.float32) ** 2).sum(1)) & i.valid
  assert (got.value[~finite] == 0).all()
  x = wide(i.x)[finite]
  centred = x - x.mean(1, keepdims=True)
  d = x.shape[1]
  target = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / max(d - 1, 1)) + 1e-5)
  every = np.maximum(np.sort(target @ wide(np.asarray(autoencoder(d).encoder)).T)[:, ::-1], 0)
  np.testing.assert_allclose(got.value[finite], every[:, : min(i.k, 6)], atol=1e-4)


def check_decode(i, got):
  with np.errstate(invalid="ignore", over="ignore"):
    rows = wide(np.asarray(autoencoder(3).decoder))[codes(i).index]
    value = wide(np.asarray(codes(i).value))
    close(got, (value[:, :, None] * rows).sum(1), np.abs(np.nan_to_num(value)).sum(1)[:, None])


def check_factor_counts(i, got):
  active = (normal(codes(i).value) > 0) & i.valid[:, None]
  # Two names of one latent do not occur in a row.
  want = np.bincount(codes(i).index[active], minlength=6)
  np.testing.assert_array_equal(got, want)


def check_unexplained(i, got):
  if np.isfinite(codes(i).value[i.valid]).all():
    assert got >= 0
  else:
    assert not np.isfinite(got)


def check_rank01(i, got):
  keys = np.where(np.isnan(i.scores), -np.inf, wide(i.scores))[i.valid]
  nan = np.isnan(i.scores)[i.valid]
  below = lambda j: (keys < keys[j]) | ((keys == keys[j]) & nan & ~nan[j])
  same = lambda j: (keys == keys[j]) & (nan == nan[j])
  rank = [below(j).sum() + (same(j).sum() - 1) / 2 for j in range(len(keys))]
  np.testing.assert_allclose(got[i.valid], np.array(rank) / max(len(keys) - 1, 1), rtol=1e-6)
  assert (got[~i.valid] == 0).all()


def check_zscore(i, got):
  s = wide(normal(i.scores))
  finite = np.isfinite(s) & i.valid
  np.testing.assert_array_equal(got[i.valid & ~finite], i.scores[i.valid & ~finite])
  assert (got[~i.valid] == 0).all()
  if finite.any():
    std = s[finite].std()
    want = (s[finite] - s[finite].mean()) / std if len(np.unique(s[finite])) > 1 else 0 * s[finite]
    np.testing.assert_allclose(got[finite], want, atol=1e-4)


def check_combine(i, got):
  with np.errstate(all="ignore"):
    parts = 0.5 * wide(i.scores), 2.0 * wide(i.weights)
    parts = [wide(part.astype(np.float32)) for part in parts]
    scale = sum(np.abs(np.nan_to_num(part)) for part in parts)
    close(got, parts[0] + parts[1], scale)


def softmax(x):
  with np.errstate(all="ignore"):
    shifted = wide(x) - wide(x).max(1, keepdims=True)
    p = np.exp(shifted)
    return p / p.sum(1, keepdims=True)


def check_el2n(i, got):
  p = softmax(i.x)
  is_label = np.arange(p.shape[1]) == i.labels[:, None]
  want = np.sqrt(((p - is_label) ** 2).sum(1))
  np.testing.assert_allclose(got, np.where(is_label.any(1), want, np.nan), atol=1e-5)


def check_margin(i, got):
  top = np.sort(softmax(i.x), axis=1)
  np.testing.assert_allclose(got, top[:, -1] - top[:, -2], atol=1e-5)


def check_entropy(i, got):
  p = softmax(i.x)
  logs = np.log(np.where(p > 0, p, 1))
  np.testing.assert_allclose(got, -(p * logs).sum(1), atol=1e-5)


CASES = clusters.CASES | {
  "gather": (lambda i: gather.gather(i.x, IDS), check_gather),
  "select": (
    lambda i: nth.select(nth.count_tiles(i.valid), IDS, values=i.scores),
    check_select,
  ),
  "scatter": (lambda i: scatter.scatter(i.scores, IDS, np.resize(i.scores[:1], 6)), check_scatter),
  "scatter_add": (lambda i: scatter.scatter_add(i.usage, IDS, 2), check_scatter_add),
  "count": (
    lambda i: reduce.count(i.valid),
    lambda i, got: np.testing.assert_equal(int(got), i.valid.sum()),
  ),
  "fixed_tree_sum": (lambda i: reduce.fixed_tree_sum(i.x, valid=i.valid), check_tree_sum),
  "fixed_point_sum": (lambda i: reduce.fixed_point_sum(i.usage, valid=i.valid), check_point_sum),
  "moments": (
    lambda i: moments.finish(moments.update(moments.init(i.x.shape[1]), i.x, valid=i.valid)),
    check_moments,
  ),
  "whitening": (whiten, check_whitening),
  "rademacher": (lambda i: projection.rademacher(KEY, i.x, i.k), check_rademacher),
  "srht": (lambda i: srht.srht(KEY, i.x, 4), check_length_kept),
  "project_tree": (
    lambda i: project_tree.project_tree(KEY, {"a": i.x, "b": i.scores}, i.k),
    check_project_tree,
  ),
  "best_matches": (
    lambda i: similarity.best_matches(i.x, QUERIES, i.k, valid=i.valid),
    check_matches,
  ),
  "leverage": (
    lambda i: leverage.apply(leverage.fit(i.x, valid=i.valid), i.x, valid=i.valid),
    check_leverage,
  ),
  "sae.fit": (
    lambda i: sae.fit(
      KEY, i.x, Sgd(), latents=6, k=min(i.k, 2), steps=3, batch_size=8, valid=i.valid
    ),
    check_sae_fit,
  ),
  "sae.encode": (
    lambda i: sae.encode(autoencoder(i.x.shape[1]), i.x, k=i.k, valid=i.valid),
    check_encode,
  ),
  "sae.decode": (lambda i: sae.decode(autoencoder(3), codes(i)), check_decode),
  "factor_counts": (
    lambda i: sae.factor_counts(codes(i), 6, valid=i.valid),
    check_factor_counts,
  ),
  "unexplained": (
    lambda i: sae.unexplained(autoencoder(i.x.shape[1]), i.x, codes(i), valid=i.valid),
    check_unexplained,
  ),
  "rank01": (lambda i: scores.rank01(i.scores, valid=i.valid), check_rank01),
  "zscore": (lambda i: scores.zscore(i.scores, valid=i.valid), check_zscore),
  "combine": (lambda i: scores.combine((i.scores, i.weights), (0.5, 2.0)), check_combine),
  "el2n": (lambda i: scores.el2n(i.x, i.labels), check_el2n),
  "margin": (lambda i: scores.margin(i.x), check_margin),
  "entropy": (lambda i: scores.entropy(i.x), check_entropy),
}
# Kernels that take no padding, or (compact and select) a mask by another name.
WITHOUT_VALID = (
  "compact", "count", "select", "gather", "scatter", "scatter_add", "rademacher", "srht",
  "project_tree", "segment_sum", "silhouette.sampled", "silhouette.simplified", "sae.decode",
  "combine", "el2n", "margin", "entropy", "largest_remainder", "waterfill", "bounds_mask",
)  # fmt: skip
