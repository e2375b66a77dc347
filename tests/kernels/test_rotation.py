"""Turns of a rotation against integers of NumPy, and what they promise over many of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsel
from jsel.kernels import random, rotation

KEY = jax.random.key(7)
UNIT = 1 << rotation.BITS


def oracle(key, debt, share, taken, k, valid):
  lots = np.asarray(random.row_lot(key, jnp.arange(len(debt)))) >> (32 - rotation.BITS)
  debt = debt.astype(np.int64) + share
  order = np.lexsort((np.arange(len(debt)), -(debt + lots), ~valid))[: min(k, valid.sum())]
  mask = np.zeros(len(debt), bool)
  mask[order] = True
  return mask, debt - UNIT * mask, taken + mask


def drawn(rng, n, spread):
  debt = rng.integers(-spread, spread + 1, n).astype(np.int32)
  share = rng.integers(0, UNIT, n).astype(np.int32)
  return debt, share, rng.integers(0, 9, n).astype(np.int32)


@functools.cache
def sharded(devices):
  return jsel.shard(rotation.turn, jsel.make_mesh(jax.devices()[:devices]))


# Debts that are all the same, near each other, and so far apart that few rows come into question.
@pytest.mark.parametrize("spread", [0, UNIT // 3, 20 * UNIT])
@pytest.mark.parametrize("n", [512, 512 * 130])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_takes_whom_most_is_owed(rng, n, spread, devices):
  arrays = drawn(rng, n, spread)
  valid = rng.random(n) < 0.9
  for k in (0, 1, 128, n // 2, int(valid.sum()), n):
    got = sharded(devices)(KEY, *arrays, k, valid=valid)
    for field, want in zip(got, oracle(KEY, *arrays, k, valid), strict=True):
      np.testing.assert_array_equal(field, want)
  everyone = sharded(devices)(KEY, *arrays, n)
  assert np.asarray(everyone.mask).all()


@pytest.mark.parametrize("n", [1, 15, 257, 5000])
def test_any_size_on_one_device(rng, n):
  arrays = drawn(rng, n, UNIT)
  for k in {0, 1, n // 3, n}:
    got = rotation.turn(KEY, *map(jnp.asarray, arrays), k)
    for field, want in zip(got, oracle(KEY, *arrays, k, np.ones(n, bool)), strict=True):
      np.testing.assert_array_equal(field, want)
  none = rotation.turn(KEY, *3 * [jnp.zeros(0, jnp.int32)], 0)
  assert none.mask.shape == (0,)


def turns(share, k, count):
  """The state after ``count`` turns from no debts, and the furthest that a debt was from 0."""

  def one(carry, key):
    debt, taken, far = carry
    now = rotation.turn(key, debt, share, taken, k)
    return (now.debt, now.taken, jnp.maximum(far, jnp.abs(now.debt).max())), None

  zeros = jnp.zeros_like(share)
  keys = jax.random.split(KEY, count)
  return jax.jit(lambda: jax.lax.scan(one, (zeros, zeros, jnp.int32(0)), keys)[0])()


def test_everyone_is_taken_as_often_as_entitled_to(rng):
  """Within two of it, whatever the shares are; sums of them are exact."""
  n, k, count = 1000, 50, 400
  weight = rng.integers(1, 8, n)
  share = np.round(weight / weight.sum() * k * UNIT).astype(np.int32)
  share[0] += k * UNIT - share.sum()
  debt, taken, far = turns(jnp.asarray(share), k, count)
  assert far < 2 * UNIT
  owed = count * share.astype(np.int64)
  np.testing.assert_array_equal(debt, owed - UNIT * np.asarray(taken).astype(np.int64))
  assert int(taken.sum()) == k * count


def test_who_is_owed_the_same_has_the_same_chance():
  """The first turns of many rotations: the 100 taken of 1,000 rows are any of them."""
  n, k, count = 1000, 100, 2000
  zeros = jnp.zeros(n, jnp.int32)
  share = jnp.full(n, UNIT // 10)
  keys = jax.random.split(KEY, count)
  first = jax.jit(
    lambda: jax.lax.map(lambda key: rotation.turn(key, zeros, share, zeros, k).mask, keys)
  )
  taken = np.asarray(first()).sum(0)
  mean, deviation = count * k / n, np.sqrt(count * k / n * (1 - k / n))
  assert abs(taken - mean).max() < 5 * deviation  # one row in two million is further off
  np.testing.assert_allclose(taken.std(), deviation, rtol=0.1)  # 4.5 times its own deviation


def test_another_key_or_other_debts_compile_nothing(rng):
  traced = []

  @jax.jit
  def turn(key, *arrays):
    traced.append(1)
    return rotation.turn(key, *arrays, 40)

  for seed in range(3):
    turn(jax.random.key(seed), *drawn(rng, 1024, UNIT))
  assert len(traced) == 1


def test_what_was_given_stays_as_it_was(rng):
  """The kernel in C++ works in the memory of the debts where it may: here it may not."""
  arrays = tuple(map(jnp.asarray, drawn(rng, 20_000, UNIT)))
  before = jax.tree.map(np.array, arrays)
  jax.block_until_ready(rotation.turn(KEY, *arrays, 100))
  jax.tree.map(np.testing.assert_array_equal, arrays, before)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: rotation.turn(KEY, x, x, x, 5), r"k must be within \[0, 4\], got 5"),
    (lambda x: rotation.turn(KEY, x, x, x, -1), r"k must be within \[0, 4\], got -1"),
    (
      lambda x: rotation.turn(KEY, x.astype(float), x, x, 1),
      r"debt must be int32 \[4\], got float32",
    ),
    (lambda x: rotation.turn(KEY, x, x[:3], x, 1), r"share must be int32 \[4\], got int32 \(3,\)"),
    (
      lambda x: rotation.turn(KEY, x, x, x[None], 1),
      r"taken must be int32 \[4\], got int32 \(1, 4\)",
    ),
    (lambda x: rotation.turn(KEY, x, x, x, 1, valid=x), "valid must be bool"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.zeros(4, jnp.int32))
