"""Top-k against a stable float64 sort, against itself on several devices, and as a sampler."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from scipy import stats

import jsel
from jsel.kernels import highest, threshold, topk

DEVICES = [1, 2, 4, 8]
N = 2048


def top_k_oracle(scores, k, valid=None, by_score=False):
  """Ids of the k highest rows (float64, ties by id), and whether each place was filled."""
  eligible = np.ones(scores.shape, bool) if valid is None else valid.copy()
  if scores.dtype != np.int32:
    with np.errstate(invalid="ignore"):  # signalling NaN
      scores = scores.astype(np.float64)
    eligible &= ~np.isnan(scores)
  ids = np.flatnonzero(eligible)
  ids = ids[np.lexsort((ids, -scores[ids].astype(np.float64)))][:k]
  ids = ids if by_score else np.sort(ids)
  return np.concatenate([ids, np.full(k - len(ids), -1)])


def hostile_scores(rng, n, dtype=np.float32):
  """Few distinct values, and NaN, infinities, both zeros and subnormals among them."""
  scores = rng.integers(-4, 5, n).astype(np.float32)
  special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 2e-40]
  places = rng.permutation(n)[: n // 4]
  scores[places] = rng.choice(np.array(special, np.float32), places.size)
  return scores.astype(dtype)


def check(result, scores, k, valid=None, by_score=False):
  want = top_k_oracle(scores, k, valid, by_score)
  np.testing.assert_array_equal(result.indices, want)
  lowest = np.iinfo(np.int32).min if scores.dtype == np.int32 else -np.inf
  values = np.where(want < 0, lowest, scores[want].astype(np.float64))
  assert result.values.dtype == scores.dtype
  np.testing.assert_array_equal(np.asarray(result.values, np.float64), values)


def on_devices(kernel, devices):
  return jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))


# On both sides of each choice of path: candidates (k <= n / 64) and the mask.
@pytest.mark.parametrize("k", [1, 32, 700, N])
@pytest.mark.parametrize("by_score", [False, True])
def test_matches_a_stable_sort(rng, k, by_score):
  scores, valid = hostile_scores(rng, N), rng.random(N) < 0.8
  check(topk.top_k(scores, k, valid=valid, sorted=by_score), scores, k, valid, by_score)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("k", [5, 600])
def test_half_precision_scores(rng, dtype, k):
  scores = hostile_scores(rng, N, dtype)
  scores[7] = np.float32(3e-7).astype(dtype)  # subnormal in float16
  check(topk.top_k(scores, k), scores, k)


@pytest.mark.parametrize("k", [3, N])
@pytest.mark.parametrize("by_score", [False, True])
def test_integer_scores_to_their_extremes(rng, k, by_score):
  extremes = np.iinfo(np.int32)
  scores = rng.choice(np.array([extremes.min, extremes.min + 1, -1, 0, extremes.max]), N)
  scores, valid = scores.astype(np.int32), rng.random(N) < 0.7
  valid = valid if by_score else None
  check(topk.top_k(scores, k, valid=valid, sorted=by_score), scores, k, valid, by_score)


def test_distinct_floats_of_every_magnitude(rng):
  bits = rng.integers(0, 2**32, N, dtype=np.uint32)
  scores = bits.view(np.float32)  # a few are NaN
  check(topk.top_k(scores, 10), scores, 10)
  check(topk.top_k(scores, 1000), scores, 1000)


def test_equal_scores_give_the_first_rows():
  for k in (5, 1000):
    assert topk.top_k(jnp.ones(N), k).indices.tolist() == list(range(k))
    assert np.flatnonzero(topk.top_k_mask(jnp.ones(N), k)).tolist() == list(range(k))


@pytest.mark.parametrize("k", [20, 1500])
def test_too_few_eligible_rows_leave_places_unfilled_at_the_end(k):
  scores = np.full(N, np.nan, np.float32)
  scores[[5, 70, 900]] = [-np.inf, 2, 1]
  result = topk.top_k(scores, k)
  assert result.indices[:4].tolist() == [5, 70, 900, -1]
  check(result, scores, k)
  check(topk.top_k(scores, k, sorted=True), scores, k, by_score=True)
  nothing = topk.top_k(scores, k, valid=np.zeros(N, bool))
  assert (nothing.indices == -1).all()
  assert (nothing.values == -np.inf).all()


def test_zeros_of_both_signs_tie():
  scores = jnp.array([-0.0, 0.0, -0.0, 0.0])
  for k in (1, 2, 3):
    assert topk.top_k(scores, k).indices.tolist() == list(range(k))


@pytest.mark.parametrize("spread", [3, 10**6])
@pytest.mark.parametrize("k", [100, 300, 1000])  # from 512 on candidates are counted, not sorted
def test_few_of_many_by_blocks(rng, spread, k):
  n = 2**17 + 17  # not a multiple of the block
  scores = rng.integers(0, spread, n).astype(np.float32)
  scores[-1] = spread
  few = np.full(n, np.nan, np.float32)
  few[[3, n - 1]] = 1  # fewer eligible rows than blocks
  for case in (scores, -scores, few):
    check(topk.top_k(case, k), case, k)
    check(topk.top_k(case, k, sorted=True), case, k, by_score=True)
    want = top_k_oracle(case, k)
    np.testing.assert_array_equal(np.flatnonzero(topk.top_k_mask(case, k)), want[want >= 0])


def sampled_cases(rng, n, k):
  """Scores that a sample of every eighth row says much of, and some that it says nothing of."""
  distinct = rng.permutation(n).astype(np.float32)
  high, place = np.sort(distinct)[::-1], np.arange(n)
  sampled_first = np.lexsort((place, place % 8 != 0))
  cases = {"shuffled": distinct, "ascending": high[::-1], "descending": high}
  cases["sampled are highest"] = np.empty_like(high)
  cases["sampled are highest"][sampled_first] = high
  cases["sampled are lowest"] = -cases["sampled are highest"]
  cases["few values"] = rng.integers(0, 30, n).astype(np.float32)
  cases["one value"] = np.ones(n, np.float32)
  cases["k are tied"] = np.where(distinct < k, 1, 0).astype(np.float32)
  cases["fewer are eligible"] = np.where(distinct < k - 1, distinct, np.nan)
  return cases


@pytest.mark.parametrize("k", [512, 5000, 16_000])
def test_a_sample_leads_to_the_same_rows(rng, k):
  n = 2**17 + 17
  top_k = jax.jit(lambda scores: topk.top_k(scores, k))
  by_score = jax.jit(lambda scores: topk.top_k(scores, k, sorted=True))
  for scores in sampled_cases(rng, n, k).values():
    check(top_k(scores), scores, k)
    check(by_score(scores), scores, k, by_score=True)


def test_a_sample_on_the_one_device_of_a_mesh(rng):
  n = 2**17
  for name in ("shuffled", "few values"):
    scores, valid = sampled_cases(rng, n, 2000)[name], np.arange(n) < n - 300
    result = on_devices(topk.top_k, 1)(scores, 2000, valid=valid, sorted=True)
    check(result, scores, 2000, valid, by_score=True)


@pytest.mark.parametrize("by_score", [False, True])
def test_more_candidates_than_are_sorted_on_devices(rng, by_score):
  scores = rng.integers(0, 2000, 2**16).astype(np.float32)
  result = on_devices(topk.top_k, 8)(scores, 1000, sorted=by_score)
  check(result, scores, 1000, by_score=by_score)


def test_sizes_that_no_block_divides(rng):
  for n in (1, 33, 1797):
    scores = hostile_scores(rng, n)
    for k in {1, (n + 1) // 2}:
      check(topk.top_k(scores, k), scores, k)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("k", [30, 700])
def test_same_on_any_device_count(rng, devices, k):
  scores, valid = hostile_scores(rng, N), rng.random(N) < 0.9
  by_score = k == 30
  result = on_devices(topk.top_k, devices)(scores, k, valid=valid, sorted=by_score)
  check(result, scores, k, valid, by_score)


@pytest.mark.parametrize("devices", DEVICES)
def test_mask_same_on_any_device_count(rng, devices):
  scores, valid = hostile_scores(rng, N), rng.random(N) < 0.9
  mask_of = jax.jit(on_devices(topk.top_k_mask, devices))
  for k in (0, 1, 30, 700, N):
    want = top_k_oracle(scores, k, valid)
    mask = mask_of(scores, jnp.int32(k), valid=valid)
    np.testing.assert_array_equal(np.flatnonzero(mask), want[want >= 0])


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("spread", [9, 10**6])
def test_a_mask_of_few_same_on_any_device_count(rng, devices, spread):
  n = 2**16
  valid = rng.random(n) < 0.9
  scores = hostile_scores(rng, n) if spread == 9 else rng.permutation(n).astype(np.float32)
  scores[valid.cumsum() > 60_000 * 0.9] = np.nan  # some devices have hardly any
  for k in (0, 1, 5, 60, 128):
    want = top_k_oracle(scores, k, valid)
    mask = on_devices(topk.top_k_mask, devices)(scores, k, valid=valid)
    np.testing.assert_array_equal(np.flatnonzero(mask), want)
  integers = rng.choice(np.array([-(2**31), -(2**31) + 1, 7], np.int32), n, p=[0.9995, 4e-4, 1e-4])
  want = top_k_oracle(integers, 100, valid)
  mask = on_devices(topk.top_k_mask, devices)(integers, 100, valid=valid)
  np.testing.assert_array_equal(np.flatnonzero(mask), want)


@pytest.mark.parametrize("devices", [1, 8])
def test_integers_same_on_any_device_count(rng, devices):
  scores = rng.choice(np.array([-(2**31), 7, 2**31 - 1]), N).astype(np.int32)
  valid = rng.random(N) < 0.5
  check(on_devices(topk.top_k, devices)(scores, 1500, valid=valid), scores, 1500, valid)


def test_ties_across_devices_go_to_the_lowest_ids():
  scores = np.zeros(N, np.float32)
  scores[-3:] = 1
  for devices, k in itertools.product((2, 8), (5, 700)):
    check(on_devices(topk.top_k, devices)(scores, k), scores, k)


@pytest.mark.parametrize("devices", [1, 8])
def test_padding_changes_nothing(rng, devices):
  scores = hostile_scores(rng, 1797)
  padded, valid = jsel.pad_rows(scores, np.inf), jsel.pad_rows(np.ones(1797, bool), False)
  for k in (9, 1000):
    got = on_devices(topk.top_k, devices)(padded, k, valid=valid)
    want = topk.top_k(scores, k)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.values, want.values)


@pytest.mark.parametrize("k", [0, 1, 2, 400, N - 1, N])
def test_counting_and_histogram_agree(rng, k):
  extremes = rng.choice(np.array([-(2**31), -1, 0, 5, 2**31 - 1]), N)
  for keys in (extremes, rng.integers(-(2**31), 2**31, N), rng.integers(-9, 9, N)):
    keys = jnp.asarray(keys, jnp.int32)
    histogram = jax.jit(threshold.kth_by_histogram, static_argnums=2)(keys, jnp.int32(k), None)
    counting = jax.jit(threshold.kth_by_counting, static_argnums=2)(keys, jnp.int32(k), None)
    assert [int(x) for x in histogram] == [int(x) for x in counting]
    descending = np.sort(np.asarray(keys))[::-1]
    kth = descending[k - 1] if k else 2**31 - 1
    assert [int(x) for x in histogram] == [kth, k - (descending > kth).sum()]


def test_counting_agrees_on_eight_devices(rng):
  keys = jnp.asarray(rng.integers(-50, 50, N), jnp.int32)
  over = lambda kth: jax.jit(
    jax.shard_map(
      lambda keys: kth(keys, jnp.int32(700), "data"),
      mesh=jsel.make_mesh(),
      in_specs=P("data"),
      out_specs=P(),
    )
  )
  want = [int(x) for x in over(threshold.kth_by_histogram)(keys)]
  assert [int(x) for x in over(threshold.kth_by_counting)(keys)] == want


def test_a_mask_takes_any_traced_k_without_a_retrace(rng):
  scores = hostile_scores(rng, N)
  traces = []

  @jax.jit
  def mask_of(scores, k):
    traces.append(k)
    return topk.top_k_mask(scores, k)

  for k in (0, 1, 77, 1024, N):
    want = top_k_oracle(scores, k)
    np.testing.assert_array_equal(
      np.flatnonzero(mask_of(scores, jnp.int32(k))), np.sort(want[want >= 0])
    )
    np.testing.assert_array_equal(topk.top_k_mask(scores, k), mask_of(scores, jnp.int32(k)))
  assert len(traces) == 1
  np.testing.assert_array_equal(mask_of(scores, jnp.int32(2**31 - 1)), ~np.isnan(scores))
  assert not mask_of(scores, jnp.int32(-1)).any()


@pytest.mark.parametrize(("devices", "size"), [(1, 300), (2, N), (4, 300), (8, 300), (8, N)])
def test_compact_lists_the_rows_of_a_mask(rng, devices, size):
  kernel = jax.jit(lambda mask: on_devices(topk.compact, devices)(mask, size))
  for share in (0.0, 0.01, 0.5, 1.0):
    mask = rng.random(N) < share
    rows = np.flatnonzero(mask)
    ids, count = kernel(mask)
    want = np.zeros(size, np.int64)
    want[: min(size, len(rows))] = rows[:size]
    np.testing.assert_array_equal(ids, want)
    assert int(count) == len(rows)


def test_compact_takes_any_size_on_one_device(rng):
  odd = rng.random(1797) < 0.3
  ids, count = topk.compact(odd, 1797)
  assert ids[: int(count)].tolist() == np.flatnonzero(odd).tolist()


def collective_sizes(kernel, scores, **options):
  """The largest array that each collective of the compiled program on 8 devices makes."""
  text = jax.jit(lambda x: on_devices(kernel, 8)(x, **options)).lower(scores).compile().as_text()
  found = re.findall(
    r"= ([^=]*?) (?:all-gather|all-reduce|all-to-all|collective-permute)\S*\(", text
  )
  return [
    int(np.prod([int(size) for size in shape.split(",") if size], initial=1))
    for shapes in found
    for shape in re.findall(r"\w\[([\d,]*)\]", re.sub(r"\{[^}]*\}", "", shapes).replace("32", "x"))
  ]


def test_sharded_programs_gather_no_rows(rng):
  n = 2**17
  scores = jnp.asarray(rng.standard_normal(n), jnp.float32)
  few = collective_sizes(topk.top_k, scores, k=10)
  assert few
  assert max(few) == 8 * 10
  many = collective_sizes(topk.top_k, scores, k=3000)
  assert max(many) == 2**12  # a histogram of three
  assert max(collective_sizes(topk.top_k_mask, scores, k=3000)) == 2**12
  more = jax.ShapeDtypeStruct((2**20,), jnp.float32)
  assert max(collective_sizes(topk.top_k_mask, more, k=9000)) == 2**16  # of two


def test_a_slice_of_the_result_sorts_nothing_of_length_n(rng):
  scores = jnp.asarray(rng.standard_normal(60_416), jnp.float32)
  program = jax.jit(lambda x: topk.top_k(x, 128, sorted=True).values[-1]).lower(scores).compile()
  assert not re.search(r"60416\]\S* sort\(", program.as_text())
  assert program(scores) == np.sort(scores)[-128]


@pytest.mark.parametrize("k", [9, 900])
def test_jit_equals_eager(rng, k):
  scores, valid = hostile_scores(rng, N), rng.random(N) < 0.8
  usage = rng.integers(0, 9, N).astype(np.int32)
  calls = (
    lambda scores, usage, valid: topk.top_k(scores, k, valid=valid),
    lambda scores, usage, valid: topk.penalized_top_k(scores, usage, k, penalty=0.3, valid=valid),
    lambda scores, usage, valid: topk.gumbel_top_k(jax.random.key(3), scores, k, valid=valid),
  )
  for call in calls:
    eager = call(scores, usage, valid)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(call)(scores, usage, valid), eager)


def test_a_penalty_is_rounded_alike_by_the_compiler_and_at_run_time(rng):
  scores = rng.standard_normal(N).astype(np.float32)
  usage = rng.integers(0, 99, N).astype(np.int32)
  folded = jax.jit(lambda: topk.penalized_top_k(scores, usage, N, penalty=0.1))()
  rounded = scores - np.float32(0.1) * usage.astype(np.float32)  # no fused multiply-add
  np.testing.assert_array_equal(folded.values, rounded)
  for devices in (1, 8):
    got = on_devices(topk.penalized_top_k, devices)(scores, usage, N, penalty=0.1)
    np.testing.assert_array_equal(got.values, rounded)


@pytest.mark.parametrize("k", [2, 100])
def test_under_vmap_each_row_is_its_own_selection(rng, k):
  scores = hostile_scores(rng, 3 * N).reshape(3, N)
  together = jax.vmap(lambda x: topk.top_k(x, k))(scores)
  for i in range(3):
    check(topk.TopK(together.values[i], together.indices[i]), scores[i], k)


@pytest.mark.parametrize("k", [9, 900])
def test_under_pmap(rng, k):
  scores = hostile_scores(rng, N)
  select = jax.pmap(lambda x: topk.top_k(x, k, axis_name="d"), axis_name="d")
  result = jax.tree.map(np.asarray, select(scores.reshape(8, -1)))
  check(topk.TopK(result.values[5], result.indices[5]), scores, k)


def test_rows_over_two_axes(rng):
  scores = hostile_scores(rng, N)
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  for k in (9, 900):
    check(jsel.shard(topk.top_k, mesh, ("a", "b"))(scores, k), scores, k)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("k", [15, 1200])
def test_a_penalty_makes_used_rows_step_back(rng, devices, k):
  scores = rng.integers(-8, 9, N).astype(np.float32)  # multiples of 1/4: exact in float32
  usage, valid = rng.integers(0, 9, N).astype(np.int32), rng.random(N) < 0.9
  kernel = on_devices(topk.penalized_top_k, devices)
  want = (scores.astype(np.float64) - 0.25 * usage).astype(np.float32)
  check(kernel(scores, usage, k, penalty=0.25, valid=valid), want, k, valid)
  got = kernel(scores, usage, k, penalty=jnp.float32(0.25), valid=valid, sorted=True)
  check(got, want, k, valid, by_score=True)


def test_gumbel_draws_follow_plackett_luce():
  weights, k, draws = np.array([4.0, 2.0, 1.0, 1.0, 0.5]), 2, 40_000
  log_weights = jnp.asarray(np.log(weights), jnp.float32)
  keys = jax.random.split(jax.random.key(0), draws)
  drawn = np.asarray(jax.vmap(lambda key: topk.gumbel_top_k(key, log_weights, k).indices)(keys))
  probability = {}  # of each unordered pair: both orders of sequential draws
  for i, j in itertools.permutations(range(5), k):
    pair, total = (min(i, j), max(i, j)), weights.sum()
    ordered = weights[i] / total * weights[j] / (total - weights[i])
    probability[pair] = probability.get(pair, 0) + ordered
  counts = [(drawn == pair).all(1).sum() for pair in probability]
  assert sum(counts) == draws
  # A right sampler fails this for one key in 1,000; the key is fixed.
  assert stats.chisquare(counts, np.array(list(probability.values())) * draws).pvalue > 1e-3


@pytest.mark.parametrize("k", [10, 1000])
def test_gumbel_same_on_any_device_count(rng, key, k):
  log_weights = rng.standard_normal(N).astype(np.float32)
  log_weights[::5], log_weights[1] = -np.inf, np.nan
  valid = rng.random(N) < 0.9
  want = topk.gumbel_top_k(key, log_weights, k, valid=valid)
  allowed = valid & np.isfinite(log_weights)
  assert allowed[want.indices].all()
  for devices in DEVICES:
    got = on_devices(topk.gumbel_top_k, devices)(key, log_weights, k, valid=valid)
    jax.tree.map(np.testing.assert_array_equal, got, want)
  everything = topk.gumbel_top_k(key, log_weights, N, valid=valid)
  assert (everything.indices >= 0).sum() == allowed.sum()


def test_nothing_retraces_for_new_scores(rng):
  traces = []

  @jax.jit
  def select(scores):
    traces.append(0)
    return topk.top_k(scores, 5)

  for _ in range(3):
    select(hostile_scores(rng, N))
  assert len(traces) == 1


def test_wrong_arguments_are_refused():
  scores = jnp.zeros(10)
  for k in (0, 11, -1):
    with pytest.raises(ValueError, match=rf"k must be within \[1, 10\] for 10 rows, got {k}"):
      topk.top_k(scores, k)
  with pytest.raises(ValueError, match=r"k must be within \[0, 10\]"):
    topk.top_k_mask(scores, 11)
  with pytest.raises(ValueError, match="static int, got float"):
    topk.top_k(scores, 2.0)
  with pytest.raises(ValueError, match=r"int32 scalar, got float32\(\)"):
    topk.top_k_mask(scores, jnp.float32(2))
  with pytest.raises(ValueError, match=r"got float32\(2, 5\)"):
    topk.top_k(scores.reshape(2, 5), 1)
  with pytest.raises(ValueError, match="got int16"):
    topk.top_k(scores.astype(jnp.int16), 1)
  with pytest.raises(ValueError, match=r"valid must be bool\(10,\), got bool\(9,\)"):
    topk.top_k(scores, 1, valid=jnp.ones(9, bool))
  with pytest.raises(ValueError, match="size must be within"):
    topk.compact(jnp.ones(3, bool), 4)
  with pytest.raises(ValueError, match="mask must be bool"):
    topk.compact(scores, 4)
  with pytest.raises(ValueError, match="usage must be int32"):
    topk.penalized_top_k(scores, scores, 1, penalty=1.0)
  with pytest.raises(ValueError, match="log_weights must be floats"):
    topk.gumbel_top_k(jax.random.key(0), jnp.zeros(4, jnp.int32), 1)
  with pytest.raises(ValueError, match="multiple of 512, got 1000"):
    on_devices(topk.top_k, 8)(jnp.zeros(1000), 1)


def test_the_order_of_xla_that_cpu_candidates_rely_on():
  """Floats with the bits of keys rank as the keys do, quiet and signalling NaN included."""
  keys = jnp.array([2**31 - 1, 2**31 - 2, 5, 5, 0, -1, -5, -(2**31) + 1, -(2**31)], jnp.int32)
  shuffled = np.random.default_rng(1).permutation(9)
  top, position = jax.jit(lambda keys: highest.sorted_top_k(keys, 9))(keys[shuffled])
  np.testing.assert_array_equal(top, keys)
  np.testing.assert_array_equal(keys[shuffled][position], keys)
  assert lax.top_k(jnp.zeros(9), 9)[1].tolist() == list(range(9))
