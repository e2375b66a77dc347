"""What every kernel that takes rows must keep to."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
import jsel.kernels
from jsel.kernels import (
  gather,
  greedy,
  kmeans,
  kmeans_minibatch,
  leverage,
  moments,
  nth,
  project_tree,
  projection,
  quotas,
  reduce,
  rotation,
  sae,
  sampling,
  scatter,
  scores,
  segments,
  silhouette,
  similarity,
  srht,
  topk,
  whitening,
)
from jsel.kernels.facility_location import facility_location

N = 1024
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 6)).astype(np.float32)
VALID = np.arange(N) < 1000
SCORES = RNG.integers(0, 50, N).astype(np.float32)  # with ties
LABELS = RNG.integers(0, 5, N).astype(np.int32)
USAGE = RNG.integers(0, 9, N).astype(np.int32)
IDS = np.array([3, 900, 3, 17], np.int32)
KEY = jax.random.key(0)
WHITE = whitening.Whitening(
  jnp.zeros(6), jnp.eye(6, dtype=jnp.float32)[:3], jnp.ones(3, jnp.float32)
)


def codes():
  return sae.Codes(np.stack([LABELS, USAGE], 1), np.abs(X[:, :2]))


def model():
  w = jnp.asarray(RNG.standard_normal((10, 6)), jnp.float32)
  state = jax.eval_shape(lambda: sae.fit(KEY, X, sgd(), latents=10, k=2, steps=1, batch_size=8)).sae
  fields = {"encoder": w, "decoder": w / jnp.linalg.norm(w, axis=1, keepdims=True)}
  return state._replace(
    **{
      name: fields.get(name, jnp.zeros(leaf.shape, leaf.dtype))
      for name, leaf in state._asdict().items()
    }
  )


def sgd():
  step = lambda g, state, params=None: (jax.tree.map(lambda x: -0.1 * x, g), state)
  return _Optimizer(lambda params: (), step)


class _Optimizer(tuple):
  __slots__ = ()

  def __new__(cls, init, update):
    return super().__new__(cls, (init, update))

  init = property(lambda self: self[0])
  update = property(lambda self: self[1])


# name: (kernel, arguments, options, whether the result is promised to the bit on any device count)
CASES = {
  "compact": (topk.compact, (SCORES > 25, 600), {}, True),
  "top_k": (topk.top_k, (SCORES, 40), {"valid": VALID}, True),
  "top_k/large": (topk.top_k, (SCORES, 900), {"valid": VALID, "sorted": True}, True),
  "top_k_mask": (topk.top_k_mask, (SCORES, 300), {"valid": VALID}, True),
  "gumbel_top_k": (topk.gumbel_top_k, (KEY, SCORES, 40), {"valid": VALID}, True),
  "penalized_top_k": (
    topk.penalized_top_k,
    (SCORES, USAGE, 40),
    {"penalty": 0.1, "valid": VALID},
    True,
  ),
  "gather": (gather.gather, (X, IDS), {}, True),
  "count_tiles": (nth.count_tiles, (VALID,), {}, True),
  "total": (nth.total, (nth.count_tiles(jnp.asarray(VALID)),), {}, True),
  "select": (nth.select, (nth.count_tiles(jnp.asarray(VALID)), IDS), {"values": SCORES}, True),
  "turn": (
    rotation.turn,
    (KEY, LABELS << 24, USAGE << 20, USAGE, 300),
    {"valid": VALID},
    True,
  ),
  "scatter": (scatter.scatter, (SCORES, IDS, np.float32([1, 2, 1, 3])), {}, True),
  "scatter_add": (scatter.scatter_add, (USAGE, IDS, np.int32([1, 2, 3, 4])), {}, True),
  "fixed_tree_sum": (reduce.fixed_tree_sum, (X,), {"valid": VALID}, True),
  "fixed_tree_map_sum": (
    reduce.fixed_tree_map_sum,
    (lambda leaf, i: (leaf * leaf).sum(0), X),
    {},
    True,
  ),
  "fixed_point_sum": (reduce.fixed_point_sum, (USAGE,), {"valid": VALID}, True),
  "count": (reduce.count, (VALID,), {}, True),
  "moments.update": (moments.update, (moments.init(6), X), {"valid": VALID}, True),
  "whitening.fit": (whitening.fit, (X,), {"rank": 3, "valid": VALID}, True),
  "whitening.apply": (whitening.apply, (WHITE, X), {"valid": VALID}, True),
  "rademacher": (projection.rademacher, (KEY, X, 16), {}, True),
  "srht": (srht.srht, (KEY, X, 5), {}, True),
  "project_tree": (project_tree.project_tree, (KEY, {"b": SCORES, "w": X}, 16), {}, True),
  "best_matches": (similarity.best_matches, (X, X[:5], 40), {"valid": VALID}, True),
  "plus_plus": (kmeans.plus_plus, (KEY, X, 4), {"valid": VALID}, True),
  "parallel": (
    kmeans.parallel,
    (KEY, X, 4),
    {"rounds": 2, "capacity": 9, "valid": VALID},
    True,
  ),
  "kmeans.fit": (kmeans.fit, (X, X[:4]), {"max_iters": 3, "valid": VALID}, True),
  "kmeans.assign": (kmeans.assign, (X, X[:4]), {"valid": VALID}, True),
  "kmeans.update": (kmeans.update, (kmeans.init(5, 6), X, LABELS), {}, True),
  "kmeans_minibatch.update": (
    kmeans_minibatch.update,
    (kmeans_minibatch.init(jnp.asarray(X[:4])), X),
    {"valid": VALID},
    True,
  ),
  "leverage.fit": (leverage.fit, (X,), {"valid": VALID}, True),
  "leverage.apply": (leverage.apply, (leverage.fit(jnp.asarray(X)), X), {"valid": VALID}, True),
  "silhouette.sampled": (silhouette.sampled, (X, LABELS, IDS, 5), {}, True),
  "silhouette.simplified": (silhouette.simplified, (X, LABELS, X[:5]), {}, True),
  "segment_sum": (segments.segment_sum, (X, LABELS, 5), {}, True),
  "sae.fit": (
    sae.fit,
    (KEY, X, sgd()),
    {"latents": 10, "k": 2, "steps": 3, "batch_size": 32, "valid": VALID},
    True,
  ),
  "sae.encode": (sae.encode, (model(), X), {"k": 2, "valid": VALID}, True),
  "sae.decode": (sae.decode, (model(), codes()), {}, True),
  "factor_counts": (sae.factor_counts, (codes(), 10), {"valid": VALID}, True),
  "unexplained": (sae.unexplained, (model(), X, codes()), {"valid": VALID}, False),
  "k_center": (greedy.k_center, (X, 20), {"valid": VALID}, True),
  "facility_location": (
    facility_location,
    (np.clip(X / 4, -0.4, 0.4), 20),
    {"quality": SCORES, "quality_weight": 0.3, "valid": VALID},
    True,
  ),
  "diversity_filter": (
    greedy.diversity_filter,
    (X, SCORES, 50),
    {"threshold": 3.0, "valid": VALID},
    True,
  ),
  "cap_mask": (quotas.cap_mask, (SCORES, LABELS, (9, 0, 200)), {"valid": VALID}, True),
  "budget_mask": (
    quotas.budget_mask,
    (SCORES, USAGE, (90, 5, 900)),
    {"groups": LABELS, "valid": VALID},
    True,
  ),
  "bounds_mask": (
    quotas.bounds_mask,
    (SCORES, LABELS, 90),
    {"lower": (9, 0, 50), "upper": (9, 5, 200), "valid": VALID},
    True,
  ),
  "inclusion_probabilities": (
    sampling.inclusion_probabilities,
    (SCORES, 300),
    {"valid": VALID},
    True,
  ),
  "systematic": (sampling.systematic, (KEY, SCORES, 300), {"valid": VALID}, True),
  "with_replacement": (sampling.with_replacement, (KEY, SCORES, 300), {"valid": VALID}, True),
  "rank01": (scores.rank01, (SCORES,), {"valid": VALID}, True),
  "zscore": (scores.zscore, (SCORES,), {"valid": VALID}, True),
  "combine": (scores.combine, ((SCORES, X[:, 0]), (0.5, 2.0)), {}, True),
  "el2n": (scores.el2n, (X, LABELS), {}, False),
  "margin": (scores.margin, (X,), {}, False),
  "entropy": (scores.entropy, (X,), {}, False),
}


def on(devices, name):
  kernel, arguments, options, _ = CASES[name]
  return jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))(*arguments, **options)


def check_same(name, got, want):
  if CASES[name][3]:
    jax.tree.map(np.testing.assert_array_equal, got, want)
  else:
    # The exponential and the reductions over classes are compiled for each shape.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_every_kernel_that_takes_rows_is_here():
  found = set()
  for module in pkgutil.iter_modules(jsel.kernels.__path__):
    for value in vars(importlib.import_module(f"jsel.kernels.{module.name}")).values():
      if hasattr(value, "row_arguments"):
        found.add(value)
  assert found == {case[0] for case in CASES.values()}


@pytest.mark.parametrize("name", CASES)
def test_eight_devices_give_what_one_does(name):
  check_same(name, on(8, name), on(1, name))


# Fits take long to compile and are made of the sums that are tried here.
@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith(".fit")])
def test_pmap_gives_what_one_device_does(name):
  kernel, arguments, options, _ = CASES[name]
  bound = inspect.signature(kernel).bind(*arguments, **options).arguments
  is_array = lambda value: all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(value))
  arrays = {what: value for what, value in bound.items() if is_array(value)}
  static = {what: value for what, value in bound.items() if what not in arrays}
  split = lambda leaf: jnp.reshape(leaf, (2, -1, *leaf.shape[1:]))
  axes = {what: 0 if what in kernel.row_arguments else None for what in arrays}
  mapped = jax.pmap(
    lambda arrays: kernel(**arrays, **static, axis_name="data"),
    axis_name="data",
    in_axes=(axes,),
    devices=jax.devices()[:2],
  )
  got = mapped(
    {what: value if axes[what] is None else jax.tree.map(split, value)
     for what, value in arrays.items()}
  )  # fmt: skip
  joined = lambda rows: lambda leaf: np.reshape(leaf, (-1, *leaf.shape[2:])) if rows else leaf[1]
  got = jax.tree.map(lambda rows, part: jax.tree.map(joined(rows), part), kernel.row_results, got)
  check_same(name, got, on(1, name))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("eager", [False, True])
def test_the_same_call_again_compiles_nothing(name, eager):
  if eager and name == "fixed_tree_map_sum":
    pytest.skip("maps a function of the caller's, who compiles it")
  kernel, arguments, options, _ = CASES[name]
  call = kernel if eager else jsel.shard(kernel, jsel.make_mesh(jax.devices()[:1]))
  first = jax.block_until_ready(call(*arguments, **options))
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
  )
  second = call(*arguments, **options)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  assert not compiled
