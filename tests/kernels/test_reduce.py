"""Sums over rows against exact ones, and against themselves on several devices, bit by bit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel.kernels import reduce
from jsel.kernels.reduce import TwoLimb, fixed_point_sum, fixed_tree_map_sum, fixed_tree_sum
from jsel.kernels.rows import row_ids

tree_sum, integer_sum = jax.jit(fixed_tree_sum), jax.jit(fixed_point_sum)
DEVICES = pytest.mark.parametrize("devices", [1, 2, 4, 8])


def on(devices, function, *arrays):
  mesh = jsel.make_mesh(jax.devices()[:devices])
  mapped = jax.shard_map(function, mesh=mesh, in_specs=(P("data"),) * len(arrays), out_specs=P())
  return jax.jit(mapped)(*arrays)


def as_int(total: TwoLimb) -> int:
  return int(total.high) * 2**32 + int(total.low)


def bits(x):
  return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize("shape", [(1,), (511,), (512,), (513,), (3000,), (700, 2, 3)])
def test_tree_sum_matches_float64(rng, shape):
  x = rng.standard_normal(shape).astype(np.float32)
  valid = rng.random(shape[0]) < 0.7
  # A tree of 2**12 float32 values rounds 12 times: 12 * 6e-8 of the sum of magnitudes at worst.
  limit = 1e-6 * np.abs(x).sum(0, dtype=np.float64).max()
  np.testing.assert_allclose(tree_sum(x), x.sum(0, dtype=np.float64), rtol=0, atol=limit)
  oracle = x[valid].sum(0, dtype=np.float64)
  np.testing.assert_allclose(tree_sum(x, valid=valid), oracle, rtol=0, atol=limit)


@pytest.mark.parametrize("n", [512, 1536, 2048, 5120])
@DEVICES
def test_tree_sum_is_bitwise_the_same_on_any_device_count(rng, n, devices):
  x = (rng.standard_normal((n, 3)) * 10.0 ** rng.integers(-6, 6, (n, 3))).astype(np.float32)
  valid = rng.random(n) < 0.7
  total = lambda x, valid: fixed_tree_sum(x, valid=valid, axis_name="data")
  alone = jax.jit(lambda x, valid: fixed_tree_sum(x, valid=valid))(x, valid)
  assert (bits(on(devices, total, x, valid)) == bits(alone)).all()


@DEVICES
def test_a_product_is_rounded_before_it_is_summed(rng, devices):
  # Without care 2048 rows are contracted to fused multiply-adds on 1 and 4 devices, not on 2 and 8.
  x, y = rng.standard_normal((2, 2048)).astype(np.float32)
  total = on(devices, lambda x, y: fixed_tree_sum(x * y, axis_name="data"), x, y)
  assert bits(total) == bits(tree_sum(x * y))


@DEVICES
def test_large_sums_go_piecewise_with_the_same_bits(rng, monkeypatch, devices):
  x = rng.standard_normal((512, 13)).astype(np.float32)  # 13 does not divide among devices
  monkeypatch.setattr(reduce, "GATHERED", 0)
  got = on(devices, lambda x: fixed_tree_sum(x, axis_name="data"), x)
  assert (bits(got) == bits(tree_sum(x))).all()


def test_rows_may_be_split_over_two_axes(rng):
  x = rng.standard_normal(1024).astype(np.float32)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
  axes = ("data", "model")
  whole = lambda f, out: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P(axes), out_specs=out))
  total = whole(lambda x: fixed_tree_sum(x, axis_name=axes), P())(x)
  assert bits(total) == bits(tree_sum(x))
  ids = whole(lambda x: row_ids(x.shape[0], axes), P(axes))(x)
  assert (np.asarray(ids) == np.arange(1024)).all()
  shifted = whole(lambda x: fixed_point_sum(row_ids(x.shape[0], axes), axis_name=axes), P())(x)
  assert as_int(shifted) == 1024 * 1023 // 2


def test_jsel_shard_supplies_the_specs(rng):
  x = rng.standard_normal(1024).astype(np.float32)
  valid = rng.random(1024) < 0.5
  mesh = jsel.make_mesh(jax.devices()[:4])
  got = jsel.shard(fixed_tree_sum, mesh)(x, valid=valid)
  assert bits(got) == bits(tree_sum(x, valid=valid))
  got = jsel.shard(fixed_tree_map_sum, mesh)(lambda leaf, _: leaf["x"].sum() ** 2, {"x": x})
  # All terms are positive: each level of the tree rounds by 6e-8 of the sum at most.
  np.testing.assert_allclose(got, ((x[::2] + x[1::2]).astype(np.float64) ** 2).sum(), rtol=1e-6)


def test_padding_inside_is_padding_outside(rng):
  x = rng.standard_normal((700, 2)).astype(np.float32)
  padded = np.concatenate([x, np.full((324, 2), np.nan, np.float32)])
  got = tree_sum(padded, valid=np.arange(1024) < 700)
  assert (bits(got) == bits(tree_sum(x))).all()


def test_a_nan_stays_in_its_column():
  x = np.ones((600, 2), np.float32)
  x[5, 1] = np.nan
  total = tree_sum(x)
  assert total[0] == 600
  assert np.isnan(total[1])
  assert (tree_sum(x, valid=np.arange(600) != 5) == 599).all()


def test_every_dtype_is_summed_in_float32():
  assert tree_sum(jnp.ones(3000, jnp.bfloat16)) == 3000  # bfloat16 would stop at 256
  assert tree_sum(jnp.full(3000, 255, jnp.uint8)) == 3000 * 255
  assert tree_sum(jnp.ones(3000, bool)).dtype == jnp.float32


@DEVICES
def test_map_sum_is_bitwise_the_same_on_any_device_count(rng, devices):
  x = rng.standard_normal((2048, 5)).astype(np.float32)
  y = rng.integers(0, 4, 2048)
  ids = np.arange(2048, dtype=np.int32)

  def statistics(leaf, index):
    rows, label, id_ = leaf
    right_leaf = (id_ // 4 == index).all()
    sums = jax.ops.segment_sum(rows, label, 4)
    return {"gram": rows.T @ rows, "sums": sums, "leaves": right_leaf.astype(jnp.int32)}

  alone = jax.jit(lambda *arrays: fixed_tree_map_sum(statistics, arrays))(x, y, ids)
  total = lambda *arrays: fixed_tree_map_sum(statistics, arrays, axis_name="data")
  split = on(devices, total, x, y, ids)
  for name in alone:
    assert (bits(alone[name]) == bits(split[name])).all()
  assert alone["leaves"] == 512
  exact = x.astype(np.float64)
  # 2048 float32 products: 1e-5 of a diagonal near 2048.
  np.testing.assert_allclose(alone["gram"], exact.T @ exact, rtol=0, atol=2e-2)
  np.testing.assert_allclose(alone["sums"], np.eye(4)[y].T @ exact, rtol=0, atol=1e-3)


def test_map_sum_adds_in_the_order_of_the_tree_sum(rng):
  x = rng.standard_normal((512, 2)).astype(np.float32)
  assert (bits(fixed_tree_map_sum(lambda leaf, _: leaf[0], x)) == bits(tree_sum(x))).all()


@pytest.mark.parametrize("n", [1, 511, 512, 5000, 40000])
def test_integer_sum_is_exact(rng, n):
  x = rng.integers(-(2**31), 2**31, n).astype(np.int32)
  valid = rng.random(n) < 0.5
  assert as_int(integer_sum(x)) == int(x.sum(dtype=np.int64))
  assert as_int(integer_sum(x, valid=valid)) == int(x[valid].sum(dtype=np.int64))


@pytest.mark.parametrize("value", [-(2**31), -1, 0, 1, 65535, 65536, 2**31 - 1])
def test_integer_sum_of_extremes_is_exact_over_tiles(monkeypatch, value):
  monkeypatch.setattr(reduce, "TILE", 1024)
  assert as_int(fixed_point_sum(jnp.full(100_000, value, jnp.int32))) == 100_000 * value


def test_integer_sum_holds_in_a_full_tile():
  # 2**24 + 512 rows of ones in every bit: each column's 16-bit limbs come within one row of 2**31.
  n = 2**24 + 512
  assert as_int(jax.jit(lambda: fixed_point_sum(jnp.full(n, 65535, jnp.int32)))()) == n * 65535
  assert as_int(jax.jit(lambda: fixed_point_sum(jnp.full(n, -1, jnp.int32)))()) == -n


@pytest.mark.parametrize("sign", [-1, 1])
@DEVICES
def test_integer_sum_is_exact_on_any_device_count(rng, devices, sign):
  x = (sign * rng.integers(2**30, 2**31, 2048)).astype(np.int32)
  total = on(devices, lambda x: fixed_point_sum(x, axis_name="data"), x)
  assert as_int(total) == int(x.sum(dtype=np.int64))


EDGES = [0, 1, -1, 3, 2**31 - 1, -(2**31), 2**32 - 1, 2**32, -(2**32), 2**40 + 7, -(2**40) - 7]


def test_two_limbs_add_compare_and_convert_like_integers():
  for a in EDGES:
    two_a = reduce.two_limb(a)
    assert as_int(two_a) == a
    assert np.float32(reduce.two_limb_to_float(two_a)) == np.float32(a)
    for b in EDGES:
      two_b = reduce.two_limb(b)
      assert as_int(reduce.two_limb_add(two_a, two_b)) == a + b
      assert bool(reduce.two_limb_less(two_a, two_b)) == (a < b)


def test_two_limbs_of_arrays():
  assert as_int(reduce.two_limb(jnp.int32(-7))) == -7
  assert as_int(reduce.two_limb(jnp.uint32(2**32 - 1))) == 2**32 - 1
  with pytest.raises(ValueError, match="int32 or uint32, got float32"):
    reduce.two_limb(jnp.float32(1))


def test_a_counter_passes_the_limit_of_32_bits():
  step = jax.jit(lambda total: reduce.two_limb_add(total, reduce.two_limb(jnp.int32(2**31 - 1))))
  total = reduce.two_limb(0)
  for _ in range(9):
    total = step(total)
  assert as_int(total) == 9 * (2**31 - 1)
  assert step._cache_size() == 1
  assert math.isclose(reduce.two_limb_to_float(total).item(), 9 * 2**31, rel_tol=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: fixed_tree_sum(jnp.float32(1)), "must have rows, got a scalar"),
    (lambda: fixed_tree_sum(jnp.ones(4), valid=jnp.ones(3, bool)), r"valid has shape \(3,\)"),
    (lambda: fixed_tree_map_sum(lambda x, i: x, jnp.ones(513)), "513 rows do not split into 512"),
    (lambda: fixed_tree_map_sum(len, (jnp.ones(512), jnp.ones(2))), r"same rows, got \[2, 512\]"),
    (lambda: fixed_point_sum(jnp.ones(4)), r"must be int32 \[n\], got float32"),
    (lambda: on(2, lambda x: fixed_tree_sum(x, axis_name="data"), jnp.ones(100)), "pad_rows"),
  ],
)
def test_what_cannot_be_summed_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
