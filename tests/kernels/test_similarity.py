"""Streamed matches against a float64 sort and scikit-learn, and turns against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import jsel
from jsel.kernels import similarity as module
from jsel.kernels.similarity import Matches, best_matches, round_robin

N = 1024
DEVICES = [1, 2, 4, 8]


def best_matches_oracle(x, queries, count, valid=None):
  with np.errstate(invalid="ignore"):
    products = queries.astype(np.float64) @ x.astype(np.float64).T
  values = np.full((len(queries), count), -np.inf)
  indices = np.full((len(queries), count), -1)
  for row, product in enumerate(products):
    eligible = ~np.isnan(product) & (True if valid is None else valid)
    ids = np.flatnonzero(eligible)
    ids = ids[np.lexsort((ids, -product[ids]))][:count]
    indices[row, : len(ids)], values[row, : len(ids)] = ids, product[ids]
  return values, indices


def round_robin_oracle(indices, k, duplicates):
  """(row, query, rank) in the order picked, and whether a list was too short to know."""
  lists = [[int(i) for i in row if i >= 0] for row in indices]
  full = [(row >= 0).all() for row in indices]
  place, picks, seen, complete = [0] * len(lists), [], set(), True
  while len(picks) < k and any(at < len(row) for at, row in zip(place, lists, strict=True)):
    for query, row in enumerate(lists):
      while duplicates == "next_best" and place[query] < len(row) and row[place[query]] in seen:
        place[query] += 1
      if place[query] >= len(row):
        complete &= not full[query]
        continue
      if row[place[query]] not in seen:
        picks.append((row[place[query]], query, place[query]))
        seen.add(row[place[query]])
      place[query] += 1
      if len(picks) == k:
        return picks, complete
  return picks, complete and not any(full)


def check(got, want):
  values, indices = want
  np.testing.assert_array_equal(got.indices, indices)
  np.testing.assert_array_equal(got.values, values)
  assert got.values.dtype == jnp.float32
  assert got.indices.dtype == jnp.int32


@pytest.fixture
def pool(rng):
  """Small integers, whose products are exact and often tie; NaN, duplicates and padding."""
  x = rng.integers(-3, 4, (N, 8)).astype("f4")
  x[600:700] = x[500:600]
  x[[3, 900], 2] = np.nan
  return x, rng.integers(-3, 4, (5, 8)).astype("f4"), rng.random(N) < 0.9


@pytest.mark.parametrize("tile", [None, 1, 100, 1000, 5000])
def test_matches_a_sort_whatever_the_tile(pool, tile):
  x, queries, valid = pool
  n = 60 if tile == 1 else 1001  # not a multiple of any
  got = best_matches(x[:n], queries, 37, valid=valid[:n], tile=tile)
  check(got, best_matches_oracle(x[:n], queries, 37, valid[:n]))


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
@pytest.mark.parametrize("count", [5, 700])
def test_rows_that_wait_for_a_merge_are_not_lost(rng, order, count):
  """Of rising rows every tile's join; those of a tile that few join, and that many do."""
  x = rng.integers(-50, 51, (40_000, 2)).astype("f4")
  queries = np.array([[1, 0], [3, -2], [0, 0]], "f4")  # ties, and nothing but ties
  rank = np.argsort(x @ queries[0], kind="stable")
  x = {"rising": x[rank], "falling": x[rank[::-1]], "shuffled": x}[order]
  check(best_matches(x, queries, count, tile=900), best_matches_oracle(x, queries, count))


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize(("count", "tile"), [(37, 200), (900, None)])
def test_same_on_any_device_count(pool, devices, count, tile):
  x, queries, valid = pool
  sharded = jsel.shard(best_matches, jsel.make_mesh(jax.devices()[:devices]))
  got = sharded(x, queries, count, valid=valid, tile=tile)
  check(got, best_matches_oracle(x, queries, count, valid))


@pytest.mark.parametrize("precision", ["float32", "bfloat16_3x"])
def test_bitwise_the_same_on_any_device_count(rng, precision):
  x = rng.standard_normal((N, 40)).astype("f4")
  x[512:] = x[:512]  # whose ties show any difference
  queries = rng.standard_normal((7, 40)).astype("f4")
  on = lambda count: jsel.shard(best_matches, jsel.make_mesh(jax.devices()[:count]))
  want = on(1)(x, queries, 50, precision=precision)
  for devices in DEVICES[1:] if precision == "float32" else [8]:
    got = on(devices)(x, queries, 50, precision=precision)
    jax.tree.map(np.testing.assert_array_equal, got, want)
  alone = best_matches(x, queries, 50, precision=precision)
  np.testing.assert_allclose(alone.values, want.values, rtol=1e-5)


# Of a sum of 64 terms of size 1, rounded at 2**-24, 2**-16 or 2**-8 each.
@pytest.mark.parametrize(
  ("precision", "tolerance"), [("float32", 1e-5), ("bfloat16_3x", 5e-4), ("bfloat16", 0.2)]
)
def test_values_are_as_precise_as_is_named(rng, precision, tolerance):
  x, queries = (rng.standard_normal((rows, 64)).astype("f4") for rows in (3000, 9))
  got = best_matches(x, queries, 20, precision=precision, tile=512)
  want, _ = best_matches_oracle(x, queries, 20)
  np.testing.assert_allclose(got.values, want, atol=tolerance)
  products = queries.astype(np.float64) @ x.T.astype(np.float64)
  held = np.take_along_axis(products, np.asarray(got.indices), 1)
  np.testing.assert_allclose(got.values, held, atol=tolerance)


def test_cosines_are_those_of_scikit_learn(rng):
  x, queries = (rng.standard_normal((rows, 32)).astype("f4") for rows in (500, 6))
  unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
  got = best_matches(unit(x), unit(queries), 10)
  distances, ids = NearestNeighbors(metric="cosine", n_neighbors=10).fit(x).kneighbors(queries)
  np.testing.assert_array_equal(got.indices, ids)
  np.testing.assert_allclose(got.values, 1 - distances, atol=1e-6)


def test_all_rows_and_more_than_are_left(pool):
  x, queries, _ = pool
  check(best_matches(x, queries, N), best_matches_oracle(x, queries, N))
  few = np.arange(N) < 9  # one of them NaN
  got = best_matches(x, queries, 20, valid=few, tile=64)
  check(got, best_matches_oracle(x, queries, 20, few))
  assert (np.asarray(got.indices)[:, 8:] == -1).all()
  nothing = best_matches(x, queries, 20, valid=np.zeros(N, bool), tile=64)
  assert (nothing.indices == -1).all()
  assert (nothing.values == -np.inf).all()


def test_infinities_and_zeros_of_both_signs():
  x = np.array([[-0.0], [-np.inf], [0.0], [np.nan], [np.inf]], np.float32)
  got = best_matches(x, np.ones((1, 1), np.float32), 5)
  assert got.indices.tolist() == [[4, 0, 2, 1, -1]]
  assert not np.signbit(got.values[0, 1:3]).any()
  lost = best_matches(x, np.full((1, 1), np.nan, np.float32), 2)
  assert lost.indices.tolist() == [[-1, -1]]


def test_rows_and_queries_of_any_dtype(pool):
  x, queries, _ = pool
  x = np.nan_to_num(x)
  want = best_matches_oracle(x, queries, 9)
  check(best_matches(x.astype(np.int8), queries.astype(np.int32), 9), want)
  check(best_matches(jnp.asarray(x, jnp.bfloat16), jnp.asarray(queries, jnp.float16), 9), want)


def test_products_are_never_held_whole():
  x = jax.ShapeDtypeStruct((200_000, 64), jnp.float32)
  queries = jax.ShapeDtypeStruct((1000, 64), jnp.float32)
  match = jax.jit(lambda x, queries: best_matches(x, queries, 100))
  memory = match.lower(x, queries).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 128 * 2**20  # the products would have 800 MB


def test_eager_is_what_jit_is_and_other_values_compile_nothing(pool):
  x, queries, valid = pool
  want = best_matches(x, queries, 6, valid=valid)
  jitted = jax.jit(lambda x, queries, valid: best_matches(x, queries, 6, valid=valid))
  jax.tree.map(np.testing.assert_array_equal, jitted(x, queries, valid), want)
  picks = round_robin(want, 20)
  jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda m: round_robin(m, 20))(want), picks)
  before = module._best_matches._cache_size(), module._round_robin._cache_size()
  round_robin(best_matches(x + 1, queries, 6, valid=~valid), 20)
  assert (module._best_matches._cache_size(), module._round_robin._cache_size()) == before


def lists(rng, queries, count, rows, ended=0):
  """Lists of matches over ``rows`` rows, the last ``ended`` places of every other one empty."""
  indices = np.stack([rng.permutation(rows)[:count] for _ in range(queries)]).astype(np.int32)
  if ended:
    indices[::2, count - ended :] = -1
  values = -np.sort(-rng.standard_normal(indices.shape).astype("f4"), axis=1)
  return Matches(np.where(indices < 0, -np.float32(np.inf), values), indices)


def check_turns(matches, k, duplicates):
  got = jax.tree.map(np.asarray, round_robin(matches, k, duplicates=duplicates))
  picks, complete = round_robin_oracle(matches.indices, k, duplicates)
  want = np.full((k, 3), -1)
  want[: len(picks)] = np.array(picks).reshape(-1, 3)
  np.testing.assert_array_equal(np.stack([got.indices, got.queries, got.ranks], 1), want)
  values = np.where(want[:, 0] < 0, -np.inf, matches.values[want[:, 1], want[:, 2]])
  np.testing.assert_array_equal(got.values, values)
  assert got.complete == complete


@pytest.mark.parametrize("duplicates", ["next_best", "lose_turn"])
@pytest.mark.parametrize(
  ("shape", "k"),
  [
    ((1, 7, 9), 5),
    ((6, 20, 25), 22),  # nearly every match is taken by another
    ((6, 20, 25), 120),  # more than there are rows
    ((9, 10, 10), 10),  # all lists hold all rows
    ((5, 30, 400, 12), 100),
    ((8, 12, 14, 9), 14),
  ],
)
def test_turns_are_those_of_a_loop(rng, shape, k, duplicates):
  for _ in range(5):
    check_turns(lists(rng, *shape), k, duplicates)


@pytest.mark.parametrize("duplicates", ["next_best", "lose_turn"])
def test_queries_that_agree_share_one_list(rng, duplicates):
  one = lists(rng, 1, 30, 30)
  matches = Matches(*(np.repeat(part, 4, axis=0) for part in one))
  for k in (13, 30):
    check_turns(matches, k, duplicates)
  picked = round_robin(matches, 30, duplicates=duplicates).indices
  np.testing.assert_array_equal(picked, one.indices[0])


def test_lost_turns_change_who_is_picked():
  # Query 1 finds row 0 taken: in its turn it picks row 5, or lets query 0 go on with row 1.
  matches = Matches(np.ones((2, 3), np.float32), np.array([[0, 1, 2], [0, 5, 6]], np.int32))
  assert round_robin(matches, 3).indices.tolist() == [0, 5, 1]
  assert round_robin(matches, 3, duplicates="lose_turn").indices.tolist() == [0, 1, 5]


def test_lists_without_any_match():
  matches = Matches(np.full((3, 2), -np.inf, np.float32), np.full((3, 2), -1, np.int32))
  for duplicates in ("next_best", "lose_turn"):
    check_turns(matches, 4, duplicates)


def test_turns_of_streamed_matches(pool):
  x, queries, valid = pool
  matches = best_matches(x, queries, 100, valid=valid)
  check_turns(jax.tree.map(np.asarray, matches), 150, "next_best")


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x, q: best_matches(x[0], q, 1), r"x must be a matrix \[n, d\] with columns"),
    (lambda x, q: best_matches(x, q[:, :2], 1), r"queries must be \[q, 3\] .* got shape \(2, 2\)"),
    (lambda x, q: best_matches(x, q[:0], 1), r"queries must be \[q, 3\]"),
    (lambda x, q: best_matches(x, q, 5), r"count must be .* within \[1, 4\] for 4 rows, got 5"),
    (lambda x, q: best_matches(x, q, 0), "count must be .* got 0"),
    (lambda x, q: best_matches(x, q, 1, tile=0), "tile must be a static int of at least 1"),
    (lambda x, q: best_matches(x, q, 1, valid=np.ones(3, bool)), r"valid must be bool\(4,\)"),
    (lambda x, q: best_matches(x, q, 1, precision="int8"), "precision must be one of"),
    (
      lambda x, q: jsel.shard(best_matches, jsel.make_mesh(jax.devices()[:2]))(x, q, 1),
      "4 rows do not split .* jsel.pad_rows",
    ),
    (
      lambda x, q: round_robin(Matches(q, q), 1),
      r"indices must be int32 \[q, count\], got float32",
    ),
    (
      lambda x, q: round_robin(Matches(q[0], q.astype(np.int32)), 1),
      r"values have shape \(3,\), indices \(2, 3\)",
    ),
    (
      lambda x, q: round_robin(Matches(q, q.astype(np.int32)), 7),
      r"k must be .* \[1, 6\] for 2 lists of 3, got 7: longer lists",
    ),
    (
      lambda x, q: round_robin(Matches(q, q.astype(np.int32)), 1, duplicates="skip"),
      "duplicates must be one of .* got 'skip'",
    ),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.ones((4, 3), np.float32), np.ones((2, 3), np.float32))
