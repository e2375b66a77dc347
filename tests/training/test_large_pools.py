"""Row ids that float32 would round, pools that int32 ids cannot tell apart, and large totals."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

import jsel
from jsel import selectors
from jsel.kernels import gather, nth, scatter, topk
from jsel.selection import subset
from jsel.selectors import Plan, Pool
from jsel.selectors.parts import Ranking
from jsel.training import outputs
from jsel.training.plan import empty_plan, next_plan, take_rows

SIZE = 2**24 + 512
# In float32 each of them would be one of its neighbours.
IDS = np.arange(2**24 + 1, SIZE, 2, dtype=np.int32)


@pytest.fixture(scope="module")
def mask():
  return jnp.zeros(SIZE, bool).at[IDS].set(True)


def test_a_plan_of_high_ids_is_trained_on_as_it_is(mask, key):
  none = empty_plan(SIZE, weighted=False, batch_size=8).carried
  active = next_plan(Plan(mask, None), none, jnp.int32(0))
  batch = take_rows(active, key, jnp.arange(len(IDS), dtype=jnp.int32))
  np.testing.assert_array_equal(np.sort(batch.index), IDS)
  assert not np.array_equal(batch.index, IDS)  # in an order of its own


def test_the_highest_rows_are_found_read_and_written(mask):
  scores = mask.astype(jnp.float32)
  np.testing.assert_array_equal(topk.top_k(scores, len(IDS)).indices, IDS)
  np.testing.assert_array_equal(jnp.flatnonzero(topk.top_k_mask(scores, len(IDS))), IDS)
  np.testing.assert_array_equal(gather.gather(mask, jnp.asarray(IDS)), np.ones(len(IDS), bool))
  np.testing.assert_array_equal(gather.gather(mask, jnp.asarray(IDS - 1)), np.zeros(len(IDS), bool))
  counts = scatter.scatter_add(jnp.zeros(SIZE, jnp.uint8), jnp.asarray(IDS), jnp.uint8(1))
  np.testing.assert_array_equal(counts, mask)


def test_two_plans_of_half_of_a_large_pool_are_once_around(key):
  selector = selectors.make("rs2", size=SIZE, rows=SIZE // 2)
  pool = Pool({}, jnp.ones(SIZE, bool))
  state = selector.init(key, pool, None)
  select = jax.jit(selector.select, donate_argnums=1)
  for step in range(2):
    state, plan, _ = select(key, state, pool, jnp.int32(step))
    assert int(plan.mask.sum()) == SIZE // 2
  assert (np.asarray(state.rows["planned"]) == 1).all()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
  ("kernel", "rows", "others"),
  [
    (topk.top_k, [jnp.float32], [3]),
    (topk.top_k_mask, [jnp.float32], [3]),
    (topk.compact, [jnp.bool_], [3]),
    (nth.count_tiles, [jnp.bool_], []),
    (gather.gather, [jnp.int8], [jnp.zeros(8, jnp.int32)]),
    (scatter.scatter_add, [jnp.int8], [jnp.zeros(8, jnp.int32), jnp.int8(1)]),
  ],
)
def test_more_rows_than_ids_are_refused(kernel, rows, others, devices):
  rows = [jax.ShapeDtypeStruct((2**31,), dtype) for dtype in rows]
  on_mesh = kernel
  if devices > 1:
    on_mesh = jsel.shard(kernel, jsel.make_mesh(jax.devices()[:devices]))
  with pytest.raises(ValueError, match="row ids are int32: 2147483648 rows are too many"):
    jax.eval_shape(lambda *rows: on_mesh(*rows, *others), *rows)


def test_the_largest_pool_is_padded_and_the_next_is_refused():
  assert jsel.padded_size(2**31 - 512) == 2**31 - 512
  with pytest.raises(ValueError, match="row ids are int32: 2147483137 rows are too many"):
    jsel.padded_size(2**31 - 511)


def test_the_exposure_log_keeps_every_bit(tmp_path):
  index = np.array([2**24 + 1, 2**31 - 513], np.int32)
  seen = np.array([2**24 + 1, 2**31 - 1], np.int32)
  steps = {"first_step": index, "last_step": seen, "last_loss": np.zeros(2, np.float32)}
  columns = {"index": index, "times_selected": seen, **steps, "planned": seen}
  outputs.write_exposure(tmp_path / "exposure.parquet", columns)
  read = pyarrow.parquet.read_table(tmp_path / "exposure.parquet").to_pydict()
  assert read["index"] == read["first_step"] == index.tolist()
  assert read["times_selected"] == read["last_step"] == read["planned"] == seen.tolist()


def test_tokens_of_a_budget_are_added_beyond_int32_and_float32():
  # As a pool gives them. Each is a float32, the totals of the first three and of all are not.
  tokens = np.array([2**30, 2**30, 3, 2**30, 1], np.float64)
  ranking = Ranking(np.arange(5, dtype=np.int32), np.zeros(5, np.float32))
  take = lambda budget: subset.within(ranking, 5, 0, tokens=tokens, budget=budget, rows=5)
  assert len(take(2**31 + 2).index) == 2
  assert len(take(2**31 + 3).index) == 3
  assert len(take(3 * 2**30 + 3).index) == 4
  assert len(take(3 * 2**30 + 4).index) == 5
