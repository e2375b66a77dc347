"""Candidates of a super-batch against the long sequence itself, built pass by pass."""

import itertools

import jax
import numpy as np
import pytest

from jsel.data import candidates
from jsel.data.candidates import MAX_ROWS, candidate_ids
from jsel.kernels.permutation import permute

PIECE = 4096
permuted = jax.jit(lambda key, e, index, n: permute(jax.random.fold_in(key, e), index, n))


def at(key, n, positions):
  """The ids at positions of the long sequence, Python's integers."""
  found = []
  for e in sorted({position // n for position in positions}):
    offsets = np.array([position % n for position in positions if position // n == e], np.int32)
    for begin in range(0, len(offsets), PIECE):
      piece = np.zeros(PIECE, np.int32)
      count = len(offsets[begin : begin + PIECE])
      piece[:count] = offsets[begin : begin + PIECE]
      found.append(np.asarray(permuted(key, np.uint32(e), piece, np.int32(n)))[:count])
  return np.concatenate(found)


@pytest.mark.parametrize(
  ("first_step", "steps", "s", "n"),
  [
    (0, 5, 4, 7),
    (3, 5, 4, 7),
    (0, 1, 1, 1),
    (7, 3, 10, 3),  # a step holds passes whole
    (2, 2, 3, 70_000),
    (5, 20, 512, 6_000),  # passes meet inside of steps
    (40, 5, 2**16, 70_000),  # more than is permuted in one call
  ],
)
def test_steps_are_pieces_of_the_sequence(key, first_step, steps, s, n):
  found = candidate_ids(key, first_step, steps, s, n)
  assert (found.dtype, found.shape) == (np.int32, (steps, s))
  positions = range(first_step * s, (first_step + steps) * s)
  np.testing.assert_array_equal(found.reshape(-1), at(key, n, positions))


@pytest.mark.parametrize(("s", "n"), [(4, 7), (5, 5), (16, 6), (30, 100)])
def test_every_pass_has_every_row_once(key, s, n):
  ids = candidate_ids(key, 0, 3 * n, s, n).reshape(-1)
  for begin in range(0, len(ids), n):
    np.testing.assert_array_equal(np.sort(ids[begin : begin + n]), np.arange(n))


def test_what_a_step_is_offered_depends_on_the_step_alone(key):
  whole = candidate_ids(key, 0, 40, 12, 100)
  for cuts in ([0, 40], [0, 1, 2, 3, 40], [0, 17, 33, 40]):
    for a, b in itertools.pairwise(cuts):
      np.testing.assert_array_equal(candidate_ids(key, a, b - a, 12, 100), whole[a:b])
  other = candidate_ids(jax.random.fold_in(key, 1), 0, 40, 12, 100)
  assert (other != whole).mean() > 0.9


def test_a_block_of_another_size_gives_the_same(key, monkeypatch):
  whole = candidate_ids(key, 3, 20, 12, 100)
  monkeypatch.setattr(candidates, "BLOCK", 16)
  np.testing.assert_array_equal(candidate_ids(key, 3, 20, 12, 100), whole)


@pytest.mark.parametrize("n", [MAX_ROWS, MAX_ROWS - 1, 2**30 + 1])
def test_positions_beyond_the_integers_of_ids(key, n):
  s, passes = 1000, 5
  first_step = passes * n // s - 1  # the end of a pass and the begin of the next, far above 2**31
  found = candidate_ids(key, first_step, 3, s, n)
  positions = range(first_step * s, (first_step + 3) * s)
  assert positions[0] > 2**32
  np.testing.assert_array_equal(found.reshape(-1), at(key, n, positions))
  assert found.min() >= 0
  assert found.max() < n


def test_transfers_and_key_placement_do_not_matter(key):
  expected = candidate_ids(key, 4, 3, 8, 50)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), "data")
  spread = jax.device_put(key, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
  with jax.transfer_guard("disallow"):
    for same in (key, spread):
      np.testing.assert_array_equal(candidate_ids(same, 4, 3, 8, 50), expected)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"first_step": -1}, "need first_step of at least 0, got -1"),
    ({"steps": 0}, "need steps of at least 1, got 0"),
    ({"s": 0}, "need s of at least 1, got 0"),
    ({"n": 0}, r"1 to 2\*\*31 - 512 rows, got n = 0"),
    ({"n": 2**31 - 511}, r"got n = 2147483137"),
    ({"first_step": 2**40}, r"more than 2\*\*32 passes"),
  ],
)
def test_numbers_that_cannot_be_are_refused(key, change, match):
  numbers = {"first_step": 0, "steps": 1, "s": 1, "n": 1} | change
  with pytest.raises(ValueError, match=match):
    candidate_ids(key, **numbers)
