"""Both ways to keep the best of many tiles, against one sort of them all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsel.kernels import best_so_far as module
from jsel.kernels.threshold import LOWEST

WAYS = {
  "whole": module._whole_tiles,
  "held back": functools.partial(module._held_back, slots=40),  # which overflow, and are merged
}


@functools.partial(jax.jit, static_argnames=("way", "held"))
def best(keys, ids, *, way, held):
  tile = lambda step: (keys[step], ids[step])
  options = {"steps": keys.shape[0], "shape": (keys.shape[1], held), "axis_name": None}
  return WAYS[way](tile, **options)


def oracle(keys, ids, held):
  every = np.moveaxis(keys, 0, 1).reshape(keys.shape[1], -1).astype(np.int64)
  order = np.lexsort((np.broadcast_to(ids.reshape(-1), every.shape), -every), axis=1)[:, :held]
  return np.take_along_axis(every, order, 1), ids.reshape(-1)[order]


# Rows in any order; all above those before them, so that every tile is merged; all below, so that
# none is after the first; few values, so that most tie.
ORDERS = {
  "any": lambda rng, shape: rng.integers(-(2**31), 2**31, shape),
  "rising": lambda rng, shape: np.sort(rng.integers(-(10**9), 10**9, shape), axis=0),
  "falling": lambda rng, shape: -np.sort(rng.integers(-(10**9), 10**9, shape), axis=0),
  "ties": lambda rng, shape: rng.integers(0, 4, shape),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [333, 1600])
def test_the_best_of_all_tiles(rng, way, order, width):
  keys = ORDERS[order](rng, (12, 3, width)).astype(np.int32)
  keys[rng.random(keys.shape) < 0.1] = LOWEST
  ids = np.arange(12 * width, dtype=np.int32).reshape(12, width)
  got, got_ids = best(keys, ids, way=way, held=100)
  want, want_ids = oracle(keys, ids, 100)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(got_ids, want_ids)


@pytest.mark.parametrize("way", WAYS)
def test_fewer_rows_than_are_held(way):
  keys = np.full((5, 2, 64), LOWEST)
  keys[3, 0, 7], keys[4, 1, 60] = 5, -5
  got, ids = best(keys, np.arange(320, dtype=np.int32).reshape(5, 64), way=way, held=100)
  assert got[:, 0].tolist() == [5, -5]
  assert ids[:, 0].tolist() == [3 * 64 + 7, 4 * 64 + 60]
  assert (got[:, 1:] == LOWEST).all()


def test_short_lists_and_many_queries_are_merged_whole():
  tile = lambda step: (jnp.zeros((2, 64), jnp.int32) + step, 64 * step + jnp.arange(64))
  text = lambda shape: str(jax.make_jaxpr(lambda: module.best_so_far(tile, 3, shape, None))())
  assert "cumsum" not in text((2, 2 * module.LEAST - 2))
  assert "cumsum" in text((2, 2 * module.LEAST))
