"""Projection leaf by leaf against the concatenation and its signs in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import project_tree as module
from jsel.kernels.project_tree import project_tree
from jsel.kernels.projection import signs

N = 512
# Of a sum of 400 terms of size 1, rounded at 2**-24, 2**-17 or 2**-9 each: seven deviations.
TOLERANCE = {"float32": 6e-5, "bfloat16_3x": 1.2e-3, "bfloat16": 0.25}


draw = jax.jit(signs, static_argnums=2)


def project_tree_oracle(key, gradients, dim):
  leaves = jax.tree.leaves(gradients)
  columns = [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in leaves]
  matrix = [
    np.asarray(draw(jax.random.fold_in(key, i), jnp.arange(part.shape[1]), dim), np.float64)
    for i, part in enumerate(columns)
    if part.size
  ]
  return np.concatenate(columns, 1) @ np.concatenate(matrix) / np.sqrt(dim)


@pytest.fixture
def gradients(rng):
  normal = lambda *shape: rng.standard_normal((N, *shape)).astype("f4")
  return {"dense": [normal(13, 5), normal(5)], "conv": normal(3, 3, 1, 36), "scale": normal()}


@pytest.mark.parametrize("precision", TOLERANCE)
def test_is_the_projection_of_the_concatenation(key, gradients, precision):
  got = project_tree(key, gradients, 70, precision=precision)
  assert got.dtype == jnp.float32
  want = project_tree_oracle(key, gradients, 70)
  np.testing.assert_allclose(got, want, atol=TOLERANCE[precision] / np.sqrt(70))


def test_leaves_of_any_dtype_and_none(key, gradients):
  mixed = {
    "a": jnp.asarray(gradients["scale"], jnp.bfloat16),
    "b": None,
    "c": np.arange(N * 3, dtype=np.int32).reshape(N, 3),
    "d": np.zeros((N, 0, 4), np.float32),
  }
  want = project_tree_oracle(key, mixed, 33)
  np.testing.assert_allclose(project_tree(key, mixed, 33), want, rtol=1e-5, atol=1e-5)


def test_equal_leaves_meet_other_signs(key):
  ones = jnp.ones((1, 64))
  apart = project_tree(key, (ones, ones), 32)
  same = 2 * project_tree(key, (ones,), 32)
  assert np.abs(apart - same).max() > 0.5


def test_distances_are_kept(key, gradients):
  flat = np.concatenate([leaf.reshape(N, -1) for leaf in jax.tree.leaves(gradients)], 1)
  low = np.asarray(project_tree(key, gradients, 512))
  ratio = ((low[1:] - low[:-1]) ** 2).sum(1) / ((flat[1:] - flat[:-1]) ** 2).sum(1)
  # The ratio has a variance of at most 2 / dim.
  assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / 512)
  assert abs(ratio.mean() - 1) < 0.02


def test_bitwise_the_same_on_any_device_count(key, gradients):
  on = lambda count: jsel.shard(project_tree, jsel.make_mesh(jax.devices()[:count]))
  want = on(1)(key, gradients, 65)
  for devices in (2, 4, 8):
    np.testing.assert_array_equal(on(devices)(key, gradients, 65), want)
  # Tiles of another height: a product may be summed in another order.
  np.testing.assert_allclose(project_tree(key, gradients, 65), want, atol=1e-5)


def test_padding_and_nan_stay_in_their_rows(key, gradients):
  broken = jax.tree.map(lambda leaf: jsel.pad_rows(leaf[:300]), gradients)
  broken["dense"][1][5, 2] = np.nan
  got = np.asarray(project_tree(key, broken, 70))
  assert np.isnan(got[5]).all()
  assert not got[300:].any()
  want = project_tree_oracle(key, gradients, 70)[:300]
  np.testing.assert_allclose(np.delete(got[:300], 5, 0), np.delete(want, 5, 0), atol=1e-5)


def test_gradients_of_a_model_by_example(key, rng):
  x = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)
  loss = lambda w, x: jnp.sum(jnp.tanh(x @ w["w"] + w["b"]))
  w = {"b": jnp.zeros(3), "w": jnp.ones((4, 3))}
  projected = jax.jit(
    lambda w, x: project_tree(key, jax.vmap(jax.grad(loss), in_axes=(None, 0))(w, x), 16)
  )(w, x)
  alone = jax.tree.map(lambda leaf: leaf[None], jax.grad(loss)(w, x[5]))
  np.testing.assert_allclose(projected[5:6], project_tree(key, alone, 16), atol=1e-5)


def test_leaves_are_never_concatenated(key):
  leaf = jax.ShapeDtypeStruct((64, 2**16), jnp.float32)  # 16 MB
  project = jax.jit(lambda leaves: project_tree(key, leaves, 1024))
  memory = project.lower([leaf] * 8).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 32 * 2**20


def test_eager_is_what_jit_is_and_other_values_compile_nothing(key, gradients):
  want = project_tree(key, gradients, 40)
  jitted = jax.jit(lambda key, gradients: project_tree(key, gradients, 40))
  np.testing.assert_array_equal(jitted(key, gradients), want)
  before = module._project._cache_size()
  project_tree(jax.random.key(7), jax.tree.map(lambda leaf: leaf + 1, gradients), 40)
  assert module._project._cache_size() == before


@pytest.mark.parametrize(
  ("gradients", "options", "message"),
  [
    ({"a": None}, {}, r"no leaf: give a pytree of \[n, ...\] arrays"),
    ({"a": np.ones(3), "b": np.ones((4, 2))}, {}, r"\['b'\] has 4 rows, the first leaf 3"),
    ({"a": np.ones(3), "b": np.float32(1)}, {}, r"\['b'\] has no rows, it is a scalar"),
    (np.float32(1), {}, "gradients has no rows"),
    (np.ones(3), {"dim": 2.0}, "dim must be a static int of at least 1, got 2.0"),
    (np.ones(3), {"precision": "int8"}, "precision must be one of"),
  ],
)
def test_mistakes_are_named(key, gradients, options, message):
  with pytest.raises(ValueError, match=message):
    project_tree(key, gradients, **{"dim": 2, **options})
