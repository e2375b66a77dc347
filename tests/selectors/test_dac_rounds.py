"""DAC's rounds against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsel.selectors import Batch, Pool
from jsel.selectors.dac import reweigh
from jsel.selectors.dac_rounds import dac_rounds

SIZE, ROWS, CLUSTERS = 512, 96, 4
LABEL = np.repeat(np.arange(CLUSTERS), [300, 150, 50, 12]).astype(np.int32)


def fitted(selector, pool):
  return selector.fit(jax.random.key(0), jnp.eye(CLUSTERS, dtype=jnp.float32)[LABEL], pool)


def run(selector, gaps, rounds):
  """Clusters of each plan's rows, by which k-means found the four groups; and the rows."""
  pool = Pool({}, jnp.ones(SIZE, bool))
  fit = fitted(selector, pool)
  state = selector.init(jax.random.key(1), pool, fit)
  plans = []
  for step in range(rounds):
    state, plan, _ = selector.select(jax.random.key(step), state, pool, jnp.int32(step))
    index = np.flatnonzero(plan.mask).astype(np.int32)
    plans.append(index)
    batch = Batch(jnp.asarray(index), jnp.ones(len(index)), jnp.ones(len(index), bool))
    state = selector.update(state, batch, {"gap": jnp.asarray(gaps[index])})
  return plans


@pytest.mark.parametrize("compound", [True, False])
def test_clusters_are_weighted_by_what_the_model_has_yet_to_learn(compound, rng):
  gaps = (np.array([0.0, 0.5, 2.0, 1.0])[LABEL] + 0.1 * rng.random(SIZE)).astype(np.float32)
  selector = dac_rounds(size=SIZE, rows=ROWS, clusters=CLUSTERS, temperature=0.7, compound=compound)
  plans = run(selector, gaps, 3)
  size, weight = np.bincount(LABEL), np.full(CLUSTERS, 1 / CLUSTERS)
  for index in plans:
    assert len(index) == ROWS
    got = np.bincount(LABEL[index], minlength=CLUSTERS)
    # What passes a cluster's rows goes to the others by weight; one row is rounding.
    want, open_ = np.zeros(CLUSTERS), np.ones(CLUSTERS, bool)
    while ROWS - want.sum() > 1e-9:
      want[open_] += (ROWS - want.sum()) * weight[open_] / weight[open_].sum()
      open_ &= want < size
      want = np.minimum(want, size)
    assert np.abs(got - want).max() <= 1
    weight = reweigh(
      weight, LABEL[index], gaps[index].astype(np.float64), temperature=0.7, compound=compound
    )


def test_no_row_comes_twice_before_all_of_its_cluster_have_come_once():
  selector = dac_rounds(size=SIZE, rows=ROWS, clusters=CLUSTERS)
  plans = run(selector, np.zeros(SIZE, np.float32), 4)
  times = np.bincount(np.concatenate(plans), minlength=SIZE)
  for cluster in range(CLUSTERS):
    of_cluster = times[cluster == LABEL]
    assert of_cluster.max() - of_cluster.min() <= 1


def test_constants_out_of_range_are_named():
  for option, message in (({"clusters": 600}, r"\[1, 512\]"), ({"temperature": 0}, "above 0")):
    with pytest.raises(ValueError, match=message):
      dac_rounds(size=SIZE, rows=ROWS, **{"clusters": 4, **option})
