"""Methods over a pool in parts, against float64 NumPy."""

import jax
import numpy as np
import pytest

from jsel.selection import select, walk
from jsel.selectors import cells, sensitivity
from jsel.selectors.methods import METHODS

OPTIONS = {
  "crds_r": {"layers": 3},
  "kmq": {"clusters": 16},
  "km_random": {"clusters": 16},
  "dac": {"clusters": 16},
  "sensitivity": {"clusters": 16},
  "sensitivity_regression": {"clusters": 64},
}


def round_robin(x, queries, k):
  unit = lambda a: a.astype(np.float64) / np.linalg.norm(a.astype(np.float64), axis=1)[:, None]
  order = np.argsort(-(unit(queries) @ unit(x).T), axis=1, kind="stable")
  taken = []
  while len(taken) < k:
    for best in order:
      if len(taken) < k:
        taken.append(next(int(i) for i in best if i not in taken))
  return taken


def test_rds_is_the_loop_of_its_definition(pool, rng):
  queries = pool[:4] + 0.3 * rng.standard_normal((4, 36)).astype(np.float32)
  found = select(pool, "rds", 90, unit="rows", queries=queries)
  assert found.index.tolist() == round_robin(pool, queries, 90)


@pytest.mark.parametrize("method", METHODS)
def test_budgets_are_met_without_doubles(method, pool, columns):
  found = select(pool, method, 0.1, queries=pool[:3], columns=columns, **OPTIONS.get(method, {}))
  assert len(set(found.index.tolist())) == len(found.index) == 150


@pytest.mark.parametrize("method", sorted({*METHODS} - {"km_closest"}))
def test_small_budgets_are_within_large_ones(method, pool, columns):
  of = lambda b: select(
    pool, method, b, unit="rows", queries=pool[:3], columns=columns, **OPTIONS.get(method, {})
  ).index.tolist()
  assert of(200)[:70] == of(70)


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_blocks_changes_no_row(method, pool, columns, monkeypatch):
  of = lambda: select(
    pool, method, 0.05, queries=pool[:3] + 0.1, columns=columns, **OPTIONS.get(method, {})
  ).index.tolist()
  whole = of()
  monkeypatch.setattr(walk, "block_rows", lambda *_: 512)
  assert of() == whole


def test_no_block_waits_behind_another(rng, monkeypatch):
  ready = []

  def watched(update, mesh, compiled=walk.compiled):
    def call(state, shared, block):
      ready.append(all(leaf.is_ready() for leaf in jax.tree.leaves(state)))
      return compiled(update, mesh)(state, shared, block)

    return call

  monkeypatch.setattr(walk, "compiled", watched)
  monkeypatch.setattr(walk, "block_rows", lambda *_: 4096)
  x = rng.standard_normal((65_536, 64), np.float32)
  select(x, "rds", 0.05, queries=x[:64])
  assert len(ready) == 16
  assert all(ready)


@pytest.mark.parametrize("method", METHODS)
def test_a_second_call_compiles_nothing(method, pool, columns):
  compiled = []

  def on_duration(event, seconds, **about):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(about.get("fun_name", "?"))

  of = lambda seed: select(
    pool, method, 0.05, queries=pool[seed : seed + 3], columns=columns, seed=seed,
    **OPTIONS.get(method, {}),
  )  # fmt: skip
  of(0)
  jax.monitoring.register_event_duration_secs_listener(on_duration)
  try:
    of(1)
  finally:
    jax.monitoring.unregister_event_duration_listener(on_duration)
  assert not compiled


def unit(x):
  return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]


def test_k_center_takes_the_farthest(pool):
  found = select(pool, "k_center", 60, unit="rows")
  x = pool.astype(np.float64)
  far = ((x - x[found.index[0]]) ** 2).sum(1)
  for taken, score in zip(found.index[1:], found.score[1:], strict=True):
    assert taken == far.argmax()
    # Sums of 36 float32 squares.
    np.testing.assert_allclose(score, far[taken], rtol=1e-5)
    far = np.minimum(far, ((x - x[taken]) ** 2).sum(1))


def test_deita_goes_by_score_and_drops_what_resembles_a_taken_row(pool, columns):
  found = select(pool, "deita", 400, unit="rows", columns=columns, threshold=0.3)
  taken, dropped, cosine = [], [], unit(pool) @ unit(pool).T
  for i in np.lexsort((np.arange(1500), -columns["score"])):
    (dropped if taken and cosine[i, taken].max() >= 0.3 else taken).append(int(i))
  assert len(taken) < 400
  assert found.index.tolist() == (taken + sorted(dropped, key=lambda i: -columns["score"][i]))[:400]


def test_qdit_takes_the_largest_gains(pool, columns):
  found = select(pool, "qdit", 40, unit="rows", columns=columns, quality_weight=0.5)
  cosine, covered = unit(pool) @ unit(pool).T, np.full(1500, -1.0)
  for taken, score in zip(found.index, found.score, strict=True):
    gain = 0.5 * np.maximum(cosine - covered[:, None], 0).sum(0) + 0.5 * columns["score"]
    # Sums of 1500 float32 products: the taken one is the best up to their rounding.
    np.testing.assert_allclose(gain[taken], gain.max(), rtol=1e-5)
    np.testing.assert_allclose(score, gain[taken], rtol=1e-5)
    covered = np.maximum(covered, cosine[taken])


def test_kmq_gives_each_cluster_its_share(pool, columns):
  found = select(pool, "kmq", 300, unit="rows", columns=columns, clusters=8)
  full = select(pool, "kmq", 1500, unit="rows", columns=columns, clusters=8)
  share = 0.2 * np.bincount(full.cluster, minlength=8)
  assert np.abs(np.bincount(found.cluster, minlength=8) - share).max() <= 1


def test_turns_are_nested_and_pass_over_what_is_empty():
  order = cells.take_turns(np.array([0, 1, 1, 1, -1]), np.zeros(5), np.array([9, 1]))
  assert order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("draws", ["priority", "systematic"])
def test_sums_over_samples_are_unbiased(rng, draws):
  import jax

  p = rng.random(400)
  p, loss = p / p.sum(), rng.random(400)
  labels = rng.integers(0, 5, 400).astype(np.int32)
  sums = []
  for seed in range(400):
    drawn = sensitivity.DRAWS[draws](jax.random.key(seed), p, labels, 60)
    assert len(set(drawn.index)) == 60
    sums.append((drawn.weight * loss[drawn.index]).sum())
  assert abs(np.mean(sums) - loss.sum()) < 4 * np.std(sums) / 20


def test_strides_take_the_share_of_every_cluster(rng):
  """Of each cluster the expected number of rows, to one; and rows that are sure are taken."""
  import jax

  labels = rng.integers(0, 7, 900).astype(np.int32)
  p = rng.random(900)
  p[:3] = 40
  p /= p.sum()
  drawn = sensitivity.by_systematic(jax.random.key(1), p, labels, 100)
  assert set(drawn.index[:3]) == {0, 1, 2}
  np.testing.assert_allclose(drawn.weight[:3], 1)
  expected = np.bincount(labels[3:], p[3:] / p[3:].sum() * 97, minlength=7)
  found = np.bincount(labels[drawn.index[3:]], minlength=7)
  assert (abs(found - expected) < 1.01).all()
  np.testing.assert_allclose(1 / drawn.weight[3:], p[drawn.index[3:]] / p[3:].sum() * 97, rtol=1e-5)


def probabilities_of(pool, loss, **options):
  """p of every row: a selection of all of them says it."""
  columns = {"score": loss}
  found = select(pool, "sensitivity", 1.0, columns=columns, clusters=8, slope=0.01, **options)
  p = np.zeros(len(pool))
  p[found.index] = found.score
  return p


def test_bounds_are_made_of_the_nearest_row_whose_loss_is_known(pool, rng):
  loss = np.full(len(pool), np.nan)
  known = np.sort(rng.permutation(len(pool))[:90])
  loss[known] = rng.random(90)
  p = probabilities_of(pool, loss, proxy="known", floor=0.1)
  wide = pool.astype(np.float64)
  distance2 = ((wide[:, None] - wide[known][None]) ** 2).sum(2)
  near = distance2.argmin(1)
  bound = loss[known][near] + 0.01 * distance2.min(1)
  # float32 distances, of rows whose squared lengths are some hundred times theirs.
  np.testing.assert_allclose(p, 0.9 * bound / bound.sum() + 0.1 / len(pool), rtol=1e-3)


def test_a_round_more_lowers_the_error_of_the_sum(pool, rng):
  loss = (pool @ rng.standard_normal(36).astype(np.float32) / 10) ** 2
  told = np.full(len(pool), np.nan)
  first = rng.permutation(len(pool))[:40]
  told[first] = loss[first]
  variance = lambda p: (loss.astype(np.float64) ** 2 / p).sum() - loss.sum() ** 2  # of one draw
  before = variance(probabilities_of(pool, told, proxy="center"))
  drawn = select(pool, "sensitivity", 200, unit="rows", columns={"score": told}, clusters=8).index
  told[drawn] = loss[drawn]
  assert variance(probabilities_of(pool, told, proxy="known")) < 0.8 * before


def test_rows_without_a_chance_do_not_make_a_sample_short():
  x = np.repeat(np.eye(2, dtype=np.float32), [45, 5], axis=0)
  columns = {"score": np.repeat([0.0, 1.0], [45, 5])}
  options = {"unit": "rows", "columns": columns, "clusters": 2, "slope": 0.0}
  with pytest.raises(
    ValueError, match="only 5 rows have a chance above 0, the budget is 20: raise"
  ):
    select(x, "sensitivity", 20, floor=0.0, **options)
  assert len(select(x, "sensitivity", 5, floor=0.0, **options).index) == 5
  assert len(select(x, "sensitivity", 20, floor=0.01, **options).index) == 20
  # With replacement rows come twice: there are fewer of them as it is.
  found = select(x, "sensitivity", 20, floor=0.0, draws="replacement", **options)
  assert len(found.index) < 20


def test_a_regression_with_too_few_chances_names_its_own_floor():
  p = np.repeat([0.2, 0.0], [5, 45])
  sensitivity.check_chances("sensitivity_regression", p, 5, "priority")
  with pytest.raises(ValueError, match=r"--config.method.sensitivity_regression.floor above 0"):
    sensitivity.check_chances("sensitivity_regression", p, 6, "priority")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"budget": 0}, "budget is 0"),
    ({"budget": 2000, "unit": "rows"}, "pool of 1500 rows"),
    ({"queries": np.ones((2, 5), np.float32)}, "pool has 36 columns"),
    ({"queries": None}, "needs queries"),
    ({"method": "kmq"}, "needs score"),
    ({"method": "rsd"}, "did you mean 'rds'"),
    ({"columns": {"id": [7] * 1500}}, "more than once, the first is 7"),
  ],
)
def test_bad_input_is_one_line(change, message, pool):
  arguments = {"method": "rds", "budget": 0.1, "queries": pool[:2]} | change
  with pytest.raises(ValueError, match=message):
    select(pool, **arguments)


def test_rows_that_are_no_numbers_are_named_or_dropped(pool):
  pool[7, 3] = np.nan
  with pytest.raises(ValueError, match="the first is row 7"):
    select(pool, "random", 0.5)
  assert 7 not in select(pool, "random", 1499, unit="rows", on_nonfinite="drop").index
