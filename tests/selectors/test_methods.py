"""What each method promises by itself."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jsel
from jsel import selectors, sharding
from jsel.selectors import Batch, Columns, Pool, with_fit
from jsel.selectors.factors import at_once, in_turn, shares

SIZE = 900
ONE = 2**24


def pool_of(size=SIZE):
  padded = jsel.padded_size(size)
  rows = {"features": jnp.zeros((padded, 2)), "labels": jnp.zeros(padded, jnp.int32)}
  return Pool(rows, jnp.arange(padded) < size)


def make(name, rows=270, total_steps=200, size=SIZE, **constants):
  return selectors.make(
    name,
    size=size,
    rows=rows,
    total_steps=total_steps,
    optimizer=optax.adam,
    axis_name=None,
    **constants,
  )


def rows_of(plan):
  return np.flatnonzero(plan.mask)


def factor_fit(rng, exponents, latents=256, active=8):
  """Zipf factors, as a fit of rep_div would have them; some rows have none."""
  padded = jsel.padded_size(SIZE)
  chance = 1 / np.arange(1, 41)
  index = np.array(
    [rng.choice(40, active, replace=False, p=chance / chance.sum()) for _ in range(padded)]
  )
  value = rng.random((padded, active)).astype(np.float32)
  value[rng.random(padded) < 0.05] = 0
  count = np.bincount(index[:SIZE][value[:SIZE] > 0], minlength=latents)
  return Columns(
    {"factor_index": jnp.asarray(index, jnp.int32), "factor_share": shares(jnp.asarray(value))},
    {
      "factor_count": jnp.asarray(count, jnp.int32),
      "exponents": jnp.asarray(exponents, jnp.float32),
      "level": jnp.int32(-1),
      "fitted": jnp.bool_(True),
    },
  )


def rounds(selector, first, pool, count, every=1):
  """The state after each of ``count`` plans from ``first`` on, the plans and their info."""
  state = first
  select = jax.jit(selector.select)
  for step in range(count):
    key = jax.random.fold_in(jax.random.key(5), step)
    state, plan, info = select(key, state, pool, jnp.int32(step * every))
    yield state, plan, info


def tilt_oracle(fit, exponent):
  """Weights of the rows in float64, by the formula."""
  count = np.asarray(fit.shared["factor_count"], np.float64)
  share = np.asarray(fit.rows["factor_share"], np.float64)[:SIZE] / 2**12
  q = np.where(count > 0, count / count.sum(), 1)
  table = np.where(count > 0, q ** (exponent - 1), 0)
  weight = (share * table[np.asarray(fit.rows["factor_index"])[:SIZE]]).sum(1)
  coded = share.sum(1) > 0
  return np.where(coded, weight, weight[coded].mean())


def entitlement_oracle(weight, rows):
  """min(1, c w) that sums to ``rows``, by bisection on c."""
  low, high = 0.0, 1e12
  for _ in range(200):
    middle = (low + high) / 2
    low, high = (middle, high) if np.minimum(1, middle * weight).sum() < rows else (low, middle)
  return np.minimum(1, high * weight)


@pytest.mark.parametrize("rows", [90, 450, 800, 900])
def test_an_entitlement_is_the_tilt_of_the_factors_capped_at_one(rng, rows):
  # At 800 of 900 many rows are capped.
  fit = factor_fit(rng, [0.2, 0.2])
  selector = make("rep_div", rows=rows, exponent_start=0.2, exponent_end=0.2)
  state = selector.init(jax.random.key(0), pool_of(), fit)
  state, _, _ = next(rounds(selector, state, pool_of(), 1))
  planned = np.asarray(state.rows["planned"])[:SIZE]
  share = (np.asarray(state.rows["debt"])[:SIZE] + planned * ONE) / ONE
  expected = entitlement_oracle(tilt_oracle(fit, 0.2), rows)
  # The table has 18 bits of its largest entry, weights 24 of theirs.
  np.testing.assert_allclose(share, expected, rtol=2e-4, atol=1e-6)
  assert share.sum() == pytest.approx(rows, rel=1e-6)


@pytest.mark.parametrize("loss_aware", [False, True])
def test_usage_stays_within_two_of_the_entitlement_over_200_plans(rng, loss_aware):
  fit = factor_fit(rng, [1.0, 0.2])
  selector = make(
    "rep_div", exponent_end=0.2, effective_share=0.0, loss_aware=loss_aware, total_steps=200
  )
  pool = pool_of()
  state = selector.init(jax.random.key(0), pool, fit)
  select, update = jax.jit(selector.select), jax.jit(selector.update)
  entitled = np.zeros(SIZE)
  for step in range(200):
    key = jax.random.fold_in(jax.random.key(5), step)
    before = np.asarray(state.rows["debt"])[:SIZE] / ONE
    state, plan, _ = select(key, state, pool, jnp.int32(step))
    planned = np.asarray(state.rows["planned"])[:SIZE]
    chosen = np.asarray(plan.mask)[:SIZE]
    entitled += np.asarray(state.rows["debt"])[:SIZE] / ONE - before + chosen
    assert np.abs(planned - entitled).max() < 2
    if loss_aware:
      index = jnp.asarray(rows_of(plan), jnp.int32)
      batch = Batch(index, jnp.ones(270), jnp.ones(270, bool))
      state = update(state, batch, {"probability": (index % 7).astype(jnp.float32) / 7})
  assert planned.max() - planned.min() > 4  # the tilt was real, so that the bound was tried


def test_at_exponent_one_rep_div_rotates_as_rs2_does(rng):
  fit = factor_fit(rng, [1.0, 1.0])
  selector = make("rep_div", exponent_end=1.0)
  first = selector.init(jax.random.key(0), pool_of(), fit)
  for state, _, _ in rounds(selector, first, pool_of(), 40):  # noqa: B007
    pass
  planned = np.asarray(state.rows["planned"])[:SIZE]
  # Entitlement 12 each; draws that even out stay within 2 of it.
  assert np.abs(planned - 12).max() < 2


def test_the_exponent_falls_on_a_cosine_and_stops_where_the_pool_would_shrink(rng):
  features = rng.standard_normal((1024, 6)).astype(np.float32)
  features[:, 0] += 20 * (np.arange(1024) % 97 == 0)  # a rare, strong factor
  small = {"rank": 4, "latents": 32, "active": 2, "sae_steps": 50, "sae_batch_size": 64}
  selector = make("rep_div", size=1024, exponent_end=-2.0, effective_share=0.9, **small)
  pool = pool_of(1024)
  fit = jax.jit(selector.fit)(jax.random.key(0), jnp.asarray(features), pool)
  start, end = np.asarray(fit.shared["exponents"])
  assert start == 1
  assert -2 < end < 1
  weight = tilt_oracle_of(fit, end, 1024)
  assert weight.sum() ** 2 / (1024 * (weight**2).sum()) == pytest.approx(0.9, abs=0.005)
  state = selector.init(jax.random.key(0), pool, fit)
  exponents = [float(info["exponent"]) for _, _, info in rounds(selector, state, pool, 5, every=50)]
  progress = np.minimum(np.arange(5) * 50 / 199, 1)
  free = -2 + 3 * np.round(256 * (1 + np.cos(np.pi * progress)) / 2) / 256
  np.testing.assert_allclose(exponents, np.maximum(free, end), atol=1e-5)


def tilt_oracle_of(fit, exponent, size):
  count = np.asarray(fit.shared["factor_count"], np.float64)
  share = np.asarray(fit.rows["factor_share"], np.float64)[:size]
  table = np.where(count > 0, np.maximum(count, 1) ** (exponent - 1.0), 0)
  weight = (share * table[np.asarray(fit.rows["factor_index"])[:size]]).sum(1)
  coded = share.sum(1) > 0
  return np.where(coded, weight, weight[coded].mean())


def test_entitlements_that_were_kept_are_those_of_a_new_fit(rng):
  selector = make("rep_div", exponent_end=0.2, effective_share=0.0, total_steps=5000)
  first = selector.init(jax.random.key(0), pool_of(), factor_fit(rng, [1.0, 0.2]))
  select, levels = jax.jit(selector.select), set()
  for step, (state, _, _) in enumerate(rounds(selector, first, pool_of(), 60, every=40)):
    levels.add(int(state.shared["level"]))
    anew = with_fit(state, Columns({}, {"level": jnp.int32(-1)}))
    again, _, _ = select(jax.random.key(0), anew, pool_of(), jnp.int32(40 * step))
    np.testing.assert_array_equal(again.rows["entitlement"], state.rows["entitlement"])
  assert 10 < len(levels) < 60  # some plans kept them, some did not


def test_either_order_of_a_rows_factors_gives_the_same_integer(rng):
  index = rng.integers(0, 40, (SIZE, 8)).astype(np.int32)
  share = rng.integers(0, 2**9, (SIZE, 8)).astype(np.int32)
  table = rng.integers(0, 2**18, 40).astype(np.int32)
  want = (share.astype(np.int64) * table[index]).sum(1)
  for of_rows in (at_once, in_turn):
    np.testing.assert_array_equal(jax.jit(of_rows)(index, share, table), want)


def test_importance_weights_restore_the_mean_over_the_data(rng):
  fit = factor_fit(rng, [0.2, 0.2])
  selector = make(
    "rep_div", exponent_start=0.2, exponent_end=0.2, importance_weights=True, largest_weight=1e6
  )
  state = selector.init(jax.random.key(0), pool_of(), fit)
  value = tilt_oracle(fit, 0.2)  # what the tilt favours, so that without weights it is biased
  weighted = plain = 0.0
  for _, plan, _ in rounds(selector, state, pool_of(), 200):
    index = rows_of(plan)
    weighted += float((np.asarray(plan.weight)[index] * value[index]).mean()) / 200
    plain += float(value[index].mean()) / 200
  # Deviations even out by the rotation: a third of a per cent after 200 plans.
  assert weighted == pytest.approx(value.mean(), rel=3e-3)
  assert plain > 1.02 * value.mean()


@pytest.mark.parametrize("penalty", [0.05, 0.2, 0.5])
def test_rep_div_plain_never_passes_its_bound(rng, penalty):
  selector = make("rep_div_plain", usage_penalty=penalty, total_steps=100)
  padded = jsel.padded_size(SIZE)
  fit = Columns(
    {
      "representativeness": jnp.asarray(rng.random(padded), jnp.float32),
      "diversity": jnp.asarray(rng.random(padded), jnp.float32),
    },
    {"fitted": jnp.bool_(True)},
  )
  first = selector.init(jax.random.key(0), pool_of(), fit)
  for state, _, _ in rounds(selector, first, pool_of(), 100):
    planned = np.asarray(state.rows["planned"])[:SIZE]
    assert planned.max() - planned.min() <= 1 / penalty + 1
  if penalty == 0.05:
    assert planned.max() - planned.min() > 5  # the bound was tried


def test_rep_div_plain_ranks_by_the_formula(rng):
  features = rng.standard_normal((1024, 6)).astype(np.float32)
  small = {"rank": 4, "latents": 16, "active": 2, "sae_steps": 30, "sae_batch_size": 64}
  plain = make("rep_div_plain", **small)
  entitled = make("rep_div", **small)
  fit = jax.jit(plain.fit)(jax.random.key(0), jnp.asarray(features), pool_of())
  factors = jax.jit(entitled.fit)(jax.random.key(0), jnp.asarray(features), pool_of())
  index = np.asarray(factors.rows["factor_index"])[:SIZE]
  share = np.asarray(factors.rows["factor_share"], np.float64)[:SIZE] / 2**12
  p = np.asarray(factors.shared["factor_count"], np.float64) / SIZE
  for name, table in (
    ("representativeness", p),
    ("diversity", -np.log(np.maximum(p, 1 / SIZE))),
  ):
    score = (share * table[index]).sum(1)
    order = np.argsort(np.asarray(fit.rows[name])[:SIZE], kind="stable")
    # Ranked by it; equal to float32 rounding may stand in any order.
    assert (np.diff(score[order]) > -1e-5).all()
    assert np.asarray(fit.rows[name])[:SIZE].mean() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("size", [3, 10, 97])
def test_rs2_visits_every_row_once_a_pass(size):
  rows = max(size * 3 // 10, 1)
  selector = make("rs2", size=size, rows=rows)
  pool = pool_of(size)
  first = selector.init(jax.random.key(0), pool, None)
  for state, plan, _ in rounds(selector, first, pool, 3 * size):
    planned = np.asarray(state.rows["planned"])[:size]
    assert planned.max() - planned.min() <= 1
    assert len(rows_of(plan)) == rows
  assert planned.sum() == 3 * size * rows


@pytest.mark.parametrize(("size", "rows"), [(900, 7), (1024, 64), (2000, 125)])
@pytest.mark.parametrize("devices", [1, 8])
def test_rs2_plans_few_rows_by_their_ids_as_by_the_pool_s(monkeypatch, size, rows, devices):
  module = sys.modules[selectors.rs2.__module__]
  assert rows <= size // module.TIMES
  mesh = jsel.make_mesh(jax.devices()[:devices])
  axis = sharding.row_axes(mesh)
  spec = jax.P(axis)
  found = {}
  for few in (module.FEW, 0):
    monkeypatch.setattr(module, "FEW", few)
    selector = selectors.rs2(size=size, rows=rows, axis_name=axis)
    pool = Pool({}, jax.device_put(pool_of(size).valid, sharding.rows_sharding(mesh)))
    state = selector.init(jax.random.key(0), pool, None)
    columns = Columns(spec, jax.P())  # of rows, and of what devices share
    step = jax.jit(
      jax.shard_map(
        lambda state, pool, step, selector=selector: selector.select(
          jax.random.key(1), state, pool, step
        )[:2],
        mesh=mesh,
        in_specs=(columns, spec, jax.P()),
        out_specs=(columns, spec),
      )
    )
    masks = []
    for number in range(2 * size // rows + 2):  # twice around
      state, plan = step(state, pool, jnp.int32(number))
      masks.append(np.asarray(plan.mask))
    assert masks[0].sum() == rows
    found[few] = np.stack(masks), np.asarray(state.rows["planned"]), state.shared["start"].item()
  for few, many in zip(*found.values(), strict=True):
    np.testing.assert_array_equal(few, many)


def test_rs2_draws_a_new_order_each_pass():
  selector = make("rs2", size=100, rows=50)
  pool = pool_of(100)
  plans = [
    set(rows_of(plan).tolist())
    for _, plan, _ in rounds(selector, selector.init(jax.random.key(0), pool, None), pool, 4)
  ]
  assert plans[0] | plans[1] == plans[2] | plans[3] == set(range(100))
  assert plans[0] not in (plans[2], plans[3])


def told(selector, state, losses):
  index = jnp.arange(len(losses), dtype=jnp.int32)
  batch = Batch(index, jnp.ones(len(losses)), jnp.ones(len(losses), bool))
  return selector.update(state, batch, {"loss": jnp.asarray(losses, jnp.float32)})


@pytest.mark.parametrize(("size", "prune"), [(7, 0.5), (900, 0.3), (900, 0.9)])
def test_infobatch_weights_make_up_exactly_for_what_it_skips(rng, size, prune):
  # 7 rows of which 3 are below the mean: a rounded count with a fixed weight would be biased.
  losses = rng.permutation(
    np.concatenate([np.full(3 * size // 7, 0.1), np.full(size - 3 * size // 7, 1.0)])
  )
  selector = make("infobatch", size=size, prune_probability=prune)
  pool = pool_of(size)
  state = told(selector, selector.init(jax.random.key(0), pool, None), losses)
  small = int((losses < losses.mean()).sum())
  visits = np.zeros(size)
  for repeat in range(300):
    _, plan, info = jax.jit(selector.select)(jax.random.key(repeat), state, pool, jnp.int32(0))
    index = rows_of(plan)
    count, weight = len(index), np.asarray(plan.weight)[index]
    assert weight.sum() == pytest.approx(size, rel=1e-5)
    assert (
      count
      == size - int(info["pruned"])
      == size - int(np.floor(np.float32(small) * np.float32(prune)))
    )
    assert (weight[losses[index] > 0.5] == 1).all()
    visits[index] += weight
  # The weighted visits of each row are 1 in the mean; 5 standard deviations of 300 draws.
  kept = count - (size - small)
  deviation = np.sqrt(small / kept - 1) / np.sqrt(300)
  assert np.abs(visits / 300 - 1).max() <= 5 * deviation + 1e-5


def test_infobatch_never_skips_what_it_has_not_seen_nor_anything_at_the_end():
  selector = make("infobatch", total_steps=100, anneal=0.2)
  pool = pool_of()
  state = selector.init(jax.random.key(0), pool, None)
  _, plan, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(0))
  assert len(rows_of(plan)) == SIZE
  state = told(selector, state, np.concatenate([np.zeros(100), np.ones(100)]))
  _, plan, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(79))
  assert len(rows_of(plan)) == SIZE - 50  # half of the 100 small ones that were seen
  _, plan, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(80))
  assert len(rows_of(plan)) == SIZE


def test_loss_takes_the_hardest_and_some_others():
  selector = make("loss", rows=100, epsilon=0.2, decay=1.0)
  pool = pool_of()
  losses = np.arange(SIZE, dtype=np.float32)
  state = told(selector, selector.init(jax.random.key(0), pool, None), losses)
  _, plan, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(0))
  chosen = set(rows_of(plan).tolist())
  assert set(range(SIZE - 80, SIZE)) <= chosen
  others = chosen - set(range(SIZE - 80, SIZE))
  assert len(others) == 20
  _, again, _ = selector.select(jax.random.key(2), state, pool, jnp.int32(0))
  assert set(rows_of(again).tolist()) != chosen


def test_loss_smooths_and_begins_with_the_unseen():
  selector = make("loss", rows=100, epsilon=0.0, decay=0.25)
  pool = pool_of()
  state = selector.init(jax.random.key(0), pool, None)
  state = told(selector, state, np.full(SIZE - 100, 4.0))
  _, plan, _ = selector.select(jax.random.key(1), state, pool, jnp.int32(0))
  assert set(rows_of(plan).tolist()) == set(range(SIZE - 100, SIZE))
  state = told(selector, state, np.full(10, 8.0))
  np.testing.assert_allclose(state.rows["loss"][:11], [5.0] * 10 + [4.0])
