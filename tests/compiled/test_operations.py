"""Counted operations against XLA's own count of the lowered program, and against formulas."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import jsel
from jsel.compiled.operations import operations
from jsel.models import make

X = jax.ShapeDtypeStruct((8, 9, 10, 6), jnp.float32)


def count(function, *shapes, scopes=()):
  return operations(jax.jit(function).trace(*shapes).jaxpr, scopes)


def convolve(x, kernel, **options):
  names = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=names, **options)


CONVOLUTIONS = {
  "valid": ((3, 3, 6, 4), {"window_strides": (1, 1), "padding": "VALID"}),
  "padded": ((3, 3, 6, 4), {"window_strides": (1, 1), "padding": "SAME"}),
  "strided": ((7, 5, 6, 4), {"window_strides": (2, 3), "padding": ((3, 3), (1, 2))}),
  "dilated": ((3, 3, 6, 4), {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)}),
  "grouped": (
    (3, 3, 2, 9),
    {"window_strides": (2, 2), "padding": "SAME", "feature_group_count": 3},
  ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_count_as_for_xla_and_their_gradients_twice_that(name):
  shape, options = CONVOLUTIONS[name]
  kernel = jax.ShapeDtypeStruct(shape, jnp.float32)
  function = lambda x, kernel: convolve(x, kernel, **options)
  expected = jax.jit(function).lower(X, kernel).cost_analysis()["flops"]
  assert count(function, X, kernel)[""].products == expected
  # Linear in both: each product of the forward pass has one in the pull-back of each.
  pull_back = lambda x, kernel, y: jax.vjp(function, x, kernel)[1](y)
  outputs = jax.eval_shape(function, X, kernel)
  assert count(pull_back, X, kernel, outputs)[""].products == 2 * expected


def test_products_of_matrices_count_as_for_xla():
  x = jax.ShapeDtypeStruct((5, 7, 11), jnp.float32)
  y = jax.ShapeDtypeStruct((5, 11, 3), jnp.bfloat16)
  function = lambda x, y: jnp.einsum("bij,bjk->bik", x, y, preferred_element_type=jnp.float32)
  found = count(function, x, y.update(dtype=jnp.float32))[""]
  assert found.products == 2 * 5 * 7 * 11 * 3


def test_a_network_and_its_gradient_count_as_for_xla():
  build = lambda: make("resnet18", rngs=nnx.Rngs(0), input_shape=(32, 32, 3), classes=10, width=8)
  graph, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)

  def loss(params, rest, x):
    model = nnx.merge(graph, params, rest, copy=True)
    return model(x, train=True).logits.sum()

  shapes = (params, rest, jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32))
  with jax.numpy_rank_promotion("allow"):
    found = count(jax.grad(loss), *shapes)[""]
    expected = jax.jit(jax.grad(loss)).lower(*shapes).cost_analysis()["flops"]
  # Products are exact; what is none differs in how, say, a square root counts.
  assert found.total == pytest.approx(expected, rel=0.02)
  assert found.products < expected


def test_resnet50_takes_the_published_number_of_products():
  build = lambda: make("resnet50", rngs=nnx.Rngs(0), input_shape=(224, 224, 3), classes=1000)
  graph, state = nnx.split(nnx.eval_shape(build))
  forward = lambda state, x: nnx.merge(graph, state)(x, train=False).logits
  found = count(forward, state, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))[""]
  # 4.09e9 multiply-adds are published, with padding; 3.5 % of them are with padding.
  assert 0.96 < found.products / 2 / 4.09e9 < 1


def test_a_scan_counts_its_length_and_a_branch_its_costlier_side():
  x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
  once = 2 * 16**3
  scan = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=7)[0]
  assert count(scan, x)[""].products == 7 * once
  branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
  assert count(branch, x)[""].products == 2 * once


def test_a_loop_of_unknown_length_counts_once_and_says_so():
  x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
  loop = lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)
  found = count(loop, x)[""]
  assert found.products == 2 * 16**3
  assert found.in_open_loops


def test_what_is_inside_shard_map_counts_for_every_device():
  mesh = jsel.make_mesh(jax.devices()[:8])
  body = lambda x: x @ x.T
  mapped = jax.shard_map(body, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
  x = jax.ShapeDtypeStruct((64, 16), jnp.float32)
  assert count(mapped, x)[""].products == 8 * 2 * 8 * 16 * 8


def test_scopes_are_found_inside_of_loops_gradients_and_calls():
  x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
  once = 2 * 16**3

  def function(x):
    with jax.named_scope("choose"):
      chosen = jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, c), None), x, length=3)[0]

    def loss(x):
      with jax.named_scope("model"):
        return jax.checkpoint(lambda x: jnp.sin(x @ x))(x).sum()

    return chosen, jax.grad(loss)(x), x @ x

  found = count(function, x, scopes=("choose", "model"))
  assert found["choose"].products == 3 * once
  # Forward once, as the loss itself is not wanted, and two products of the gradient.
  assert found["model"].products == 3 * once
  assert found[""].products == once


def test_what_cannot_be_counted_is_named():
  x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
  found = count(lambda x: jnp.linalg.eigh(x)[1] + jnp.linalg.cholesky(x), x)[""]
  assert set(found.uncounted) == {"cholesky", "eigh"}


def test_moving_data_counts_nothing_and_sorting_counts_comparisons():
  x = jax.ShapeDtypeStruct((4, 1024), jnp.float32)
  assert count(lambda x: jnp.roll(x.T, 3, axis=0)[::2], x)[""].total == 0
  assert count(jax.lax.sort, x)[""].others == 4 * 1024 * 10
