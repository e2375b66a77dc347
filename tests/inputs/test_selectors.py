"""Selectors under hostile feedback, usage and features: plans and picks are whole, always."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jsel.selectors import Batch, Candidates
from tests.inputs.hostile import ODD, palettes
from tests.selectors.test_contract import SIZE, VARIANTS, chosen, make, make_pool

FEEDBACK = (*ODD, 0.5, 1.0, 2.0, 3e38)
COUNT = 16  # picks, of three times as many candidates
USAGE = (0, 1, 7, 2**24 + 1, 2**31 - 3)  # of the last but two plans that int32 can count


def hostile_features():
  x = np.random.default_rng(0).standard_normal((1024, 8)).astype(np.float32)
  x[:40] = x[0]
  x[40:44] = np.array([[np.nan], [np.inf], [1e30], [1e-40]], np.float32)
  return x


def step_of(variant, pool):
  selector = make(variant)

  @jax.jit
  def step(key, state, feedback, step):
    index = jnp.arange(SIZE, dtype=jnp.int32)
    batch = Batch(index, jnp.ones(SIZE), jnp.ones(SIZE, bool))
    state = selector.update(state, batch, feedback)
    state, plan, _ = selector.select(key, state, pool, step)
    return state, plan

  return selector, step


def check(selector, plan):
  index = chosen(plan)
  assert selector.least <= len(index) <= selector.most
  assert index.max() < SIZE
  if plan.weight is not None:
    assert np.isfinite(plan.weight).all()
    assert (np.asarray(plan.weight)[index] > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_plans_stay_whole_and_recover(variant, tally):
  pool = jax.tree.map(jnp.asarray, make_pool(hostile_features()))
  selector, step = step_of(variant, pool)
  start = selector.init(jax.random.key(0), pool, None)
  good = jnp.arange(SIZE, dtype=jnp.float32) / SIZE

  def given(values):
    return {"loss": values, "probability": values, "gap": values}

  @hypothesis.given(palettes(FEEDBACK), st.sampled_from(USAGE), st.integers(0, 2**32 - 1))
  def run(palette, usage, seed):
    rng = np.random.default_rng(seed)
    values = np.asarray(palette, np.float32)[rng.integers(0, len(palette), SIZE)]
    tally["tried"] += 1
    planned = jnp.where(pool.valid, jnp.int32(usage), 0)
    state = start._replace(rows={**start.rows, "planned": planned})
    state, plan = step(jax.random.key(1), state, given(jnp.asarray(values)), jnp.int32(0))
    check(selector, plan)
    state, plan = step(jax.random.key(2), state, given(good), jnp.int32(1))
    check(selector, plan)
    for name, column in (*state.rows.items(), *state.shared.items()):
      if jnp.issubdtype(column.dtype, jnp.floating):
        assert np.isfinite(column).all(), f"{name} does not recover"
    tally["answered"] += 1

  run()


PICKING = [variant for variant in VARIANTS if make(variant).pick]


@pytest.mark.parametrize("variant", PICKING)
def test_picks_are_distinct_candidates_whatever_was_said_of_them(variant, tally):
  pool = jax.tree.map(jnp.asarray, make_pool(hostile_features()))
  selector = make(variant)
  start = selector.init(jax.random.key(0), pool, None)

  @jax.jit
  def step(key, state, candidates, step):
    state, picks = selector.pick(key, state, pool, candidates, COUNT, step)
    batch = Batch(candidates.ids[picks.position], picks.weight, jnp.ones(COUNT, bool))
    said = {name: x[picks.position] for name, x in candidates.outputs.items()}
    return selector.update(state, batch, said), picks

  @hypothesis.given(palettes(FEEDBACK), st.sampled_from(USAGE), st.integers(0, 2**32 - 1))
  def run(palette, usage, seed):
    rng = np.random.default_rng(seed)
    tally["tried"] += 1
    planned = jnp.where(pool.valid, jnp.int32(usage), 0)
    state = start._replace(rows={**start.rows, "planned": planned})
    for number, values in enumerate((palette, (0.5, 1.0))):
      ids = jnp.asarray(rng.permutation(SIZE)[: 3 * COUNT].astype(np.int32))
      said = np.asarray(values, np.float32)[rng.integers(0, len(values), 3 * COUNT)]
      outputs = dict.fromkeys(selector.feedback, jnp.asarray(said))
      state, picks = step(jax.random.key(seed), state, Candidates(ids, outputs), jnp.int32(number))
      position, weight = np.asarray(picks.position), np.asarray(picks.weight)
      assert len(set(position.tolist())) == COUNT
      assert position.min() >= 0
      assert position.max() < 3 * COUNT
      assert np.isfinite(weight).all()
      assert (weight > 0).all()
    tally["answered"] += 1

  run()


@pytest.mark.parametrize("variant", ["dac_rounds", "rep_div", "rep_div_plain"])
def test_fits_of_odd_features(variant, is_long, tally):
  if not is_long:
    pytest.skip("compiles long")
  pool = jax.tree.map(jnp.asarray, make_pool(hostile_features()))
  selector, step = step_of(variant, pool)
  for features in (pool.rows["features"], jnp.zeros((1024, 8)), jnp.full((1024, 8), jnp.nan)):
    tally["tried"] += 1
    fit = jax.jit(selector.fit)(jax.random.key(0), features, pool)
    for column in (*fit.rows.values(), *fit.shared.values()):
      assert np.isfinite(column).all()
    state = selector.init(jax.random.key(0), pool, fit)
    _, plan = step(jax.random.key(1), state, {"gap": jnp.ones(SIZE)}, jnp.int32(0))
    check(selector, plan)
    tally["answered"] += 1
