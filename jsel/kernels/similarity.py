"""The best matches of queries in a pool that is streamed, and queries that take turns to pick."""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsel import native
from jsel.kernels import precision as products
from jsel.kernels.best_so_far import Best, Waiting, add_to_waiting, merge, no_waiting
from jsel.kernels.highest import sorted_top_k
from jsel.kernels.keys import LOWEST, from_keys, to_keys
from jsel.kernels.precision import Precision
from jsel.kernels.rows import AxisName, row_count, rows
from jsel.kernels.tiles import TILE, blocks

Duplicates = Literal["next_best", "lose_turn"]
NEVER = np.int32(np.iinfo(np.int32).max)


class Matches(NamedTuple):
  """Result of `best_matches`."""

  values: jax.Array  # [q, count] float32, descending; -inf where no row was left
  indices: jax.Array  # [q, count] int32 global row ids, -1 where no row was left


class Picks(NamedTuple):
  """Result of `round_robin`."""

  values: jax.Array  # [k] float32, similarity to the query that picked; -inf where none was left
  indices: jax.Array  # [k] int32 row ids in the order picked, -1 where none was left
  queries: jax.Array  # [k] int32, who picked the row; -1
  ranks: jax.Array  # [k] int32, the place of the row in that query's list; -1
  complete: jax.Array  # [] bool, longer lists would have given the same


@rows("x", "valid", out=Matches(False, False))  # pyrefly: ignore
def best_matches(
  x: jax.Array,
  queries: jax.Array,
  count: int,
  *,
  valid: jax.Array | None = None,
  tile: int | None = None,
  precision: Precision = "float32",
  axis_name: AxisName = None,
) -> Matches:
  r"""The ``count`` rows of largest inner product with each query, exactly; ties to the lowest id.

  .. math:: \text{top-count}_i \; \langle x_i, q_j \rangle \quad \text{for each } j

  Rows of length 1 make these cosines. The pool is streamed: products are merged
  into the best so far ``tile`` rows at a time, and not where no product of the
  tile is above the last of its query's best. ``n x q`` is never held.

  Sharding: rows may be split over ``axis_name``; costs a gather of ``[q, count]``
  values and ids of each device, and holds those of all. Rows are multiplied
  n / 512 or fewer at a time, so that the result is bitwise the same on any device
  count. With None they are cut otherwise: values agree with those to float32
  rounding, ids where products do not round to a tie or past one another.

  Args:
    x: ``[n, d]`` rows of any real dtype.
    queries: ``[q, d]`` of any real dtype, the same on every device.
    count: matches a query, static, ``1 <= count <= n``.
    valid: ``[n]`` bool, False for padded rows; all rows count if None.
    tile: rows compared at a time, static; if None, as many as have 4 million
      products with the queries, and at least ``count``. Changes no result.
    precision: of the products.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    A `Matches`, the same on every device. Products that are NaN never win, and
    neither do invalid rows; 0.0 and -0.0 tie, and come back as 0.0.

  Raises:
    ValueError: if a shape, a dtype or an option is out of range, or rows that are
      split no multiple of 512.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> best_matches(x, jnp.array([[1.0, 0.0], [0.0, 2.0]]), 2).indices.tolist()
    [[0, 2], [1, 2]]

  References:
    Johnson, Douze, Jégou, *Billion-scale similarity search with GPUs*, 2017, arXiv 1702.08734;
    Ivison et al., *Large-Scale Data Selection for Instruction Tuning*, 2025, arXiv 2503.01807
    (lists of matches that take turns).
  """
  if x.ndim != 2 or not x.shape[1]:
    raise ValueError(f"x must be a matrix [n, d] with columns, got shape {x.shape}")
  if queries.ndim != 2 or queries.shape[1] != x.shape[1] or not queries.shape[0]:
    raise ValueError(f"queries must be [q, {x.shape[1]}] as x has it, got shape {queries.shape}")
  if valid is not None and (valid.shape != x.shape[:1] or valid.dtype != jnp.bool_):
    raise ValueError(f"valid must be bool{x.shape[:1]}, got {valid.dtype}{valid.shape}")
  n = row_count(x.shape[0], axis_name)
  if not isinstance(count, (int, np.integer)) or not 1 <= count <= n:
    raise ValueError(f"count must be a static int within [1, {n}] for {n} rows, got {count}")
  if tile is not None and (not isinstance(tile, (int, np.integer)) or tile < 1):
    raise ValueError(f"tile must be a static int of at least 1, or None, got {tile}")
  products.check(precision)
  if tile is None:
    tile = max(TILE // queries.shape[0], int(count))
  return _best_matches(
    x, queries, valid, count=int(count), tile=int(tile), precision=precision, axis_name=axis_name
  )


@functools.partial(jax.jit, static_argnames=("count", "tile", "precision", "axis_name"))
def _best_matches(x, queries, valid, *, count, tile, precision, axis_name):
  if valid is None:
    valid = jnp.ones(x.shape[0], bool)
  held = min(count, x.shape[0])
  options = {"held": held, "tile": tile, "precision": precision}
  by_tiles = functools.partial(_best_by_tiles, **options, axis_name=axis_name)
  arrays = x, queries, valid
  if x.dtype == queries.dtype == jnp.float32 and x.shape[0]:
    at_once = functools.partial(_best_at_once, **options)
    best, ids = native.on_cpu("best_matches", at_once, by_tiles, *arrays)
  else:
    best, ids = by_tiles(*arrays)
  if axis_name is not None:
    offset = lax.axis_index(axis_name) * x.shape[0]
    ids = jnp.where(ids < 0, ids, offset + ids)
    gather = lambda part: lax.all_gather(part, axis_name, axis=1, tiled=True, to="invarying")
    # In the order of the devices, so position still breaks ties by id.
    best, position = sorted_top_k(gather(best), count)
    ids = jnp.take_along_axis(gather(ids), position, axis=1)
  return Matches(from_keys(best, jnp.float32), jnp.where(best == LOWEST, -1, ids))


def _best_at_once(
  x: jax.Array, queries: jax.Array, valid: jax.Array, *, held: int, tile: int, precision: Precision
) -> Best:
  shape = jax.ShapeDtypeStruct((queries.shape[0], held), jnp.int32)
  parts, rows = np.int64(products.PARTS[precision]), np.int64(tile)
  arrays = x, queries, valid
  return Best(*native.call("best_matches", (shape, shape), *arrays, parts=parts, rows=rows))


def _best_by_tiles(
  x: jax.Array,
  queries: jax.Array,
  valid: jax.Array,
  *,
  held: int,
  tile: int,
  precision: Precision,
  axis_name: AxisName,
) -> Best:
  n, d = x.shape
  q = queries.shape[0]
  cut = blocks(n, max(min(TILE // max(d, q), tile), 1), axis_name)
  steps = -(-cut.count // max(tile // cut.size, 1))
  per_step = -(-cut.count // steps)

  def block_keys(index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys ``[q, size]`` of a block's products, and the rows' ids; rows seen before are out."""
    start, first = cut.span(index)
    row = start + jnp.arange(cut.size, dtype=jnp.int32)
    block = lax.dynamic_slice_in_dim(x, start, cut.size)
    product = products.matmul(queries, block, precision=precision, transpose_b=True)
    eligible = (row >= first) & (index < cut.count)
    eligible &= lax.dynamic_slice_in_dim(valid, start, cut.size)
    return to_keys(product, jnp.broadcast_to(eligible[None], product.shape)), row

  def tile_keys(index: jax.Array) -> tuple[jax.Array, jax.Array]:
    block_ids = index * per_step + jnp.arange(per_step, dtype=jnp.int32)
    keys, row = lax.map(block_keys, block_ids)
    return jnp.moveaxis(keys, 0, 1).reshape(q, -1), row.reshape(-1)

  def merge_each(best: Best) -> Best:
    def step(best: Best, index: jax.Array) -> tuple[Best, None]:
      keys, row = tile_keys(index)
      rises = jnp.any(jnp.max(keys, axis=1) > best.keys[:, -1])
      return lax.cond(rises, merge, lambda best, *_: best, best, keys, row[None]), None

    return lax.scan(step, best, jnp.arange(steps, dtype=jnp.int32))[0]

  def merge_seldom(best: Best) -> Best:
    def step(state: tuple[Best, Waiting], index: jax.Array):
      return add_to_waiting(*state, *tile_keys(index)), None

    state = best, no_waiting(best)
    (best, waiting), _ = lax.scan(step, state, jnp.arange(steps, dtype=jnp.int32))
    return merge(best, waiting.keys, waiting.ids)

  best = Best(jnp.full((q, held), LOWEST), jnp.full((q, held), -1, jnp.int32))
  if axis_name is not None:
    best = lax.pcast(best, axis_name, to="varying")
  return lax.platform_dependent(best, cpu=merge_seldom, default=merge_each)


def round_robin(matches: Matches, k: int, *, duplicates: Duplicates = "next_best") -> Picks:
  """Queries take turns to pick their best match, until ``k`` different rows are picked.

  The first query begins, in every round. A query whose best match is taken picks
  the next best that is free in the same turn; with ``duplicates="lose_turn"`` it
  moves on by one match and picks nothing, so that rows come in the order (rank,
  query) of their first appearance. A query at the end of its list sits out.

  Sharding: ``matches`` are the same on every device, and so is the result;
  nothing is exchanged.

  ``"lose_turn"`` is one sort of the ``q * count`` ids. ``"next_best"`` goes round by
  round after it, each as many steps as queries get into each other's way.

  Args:
    matches: of `best_matches`. No query has a row twice; where ids are -1 its
      list is over.
    k: rows to pick, static, ``1 <= k <= q * count``.
    duplicates: see above.

  Returns:
    `Picks` in the order picked. Where all lists end before ``k`` rows are found,
    the last entries are -1. ``complete`` says whether longer lists would have
    changed nothing; where not, double ``count``.

  Raises:
    ValueError: if a shape or dtype is wrong, or an option is out of range.

  Example:
    >>> matches = Matches(jnp.array([[9.0, 8, 7], [6, 5, 4]]), jnp.array([[3, 0, 1], [3, 0, 2]]))
    >>> round_robin(matches, 3).indices.tolist()
    [3, 0, 1]
    >>> round_robin(matches, 3, duplicates="lose_turn").indices.tolist()
    [3, 0, 1]
    >>> round_robin(matches, 3).queries.tolist()
    [0, 1, 0]
    >>> round_robin(matches, 3, duplicates="lose_turn").queries.tolist()
    [0, 0, 0]

  References:
    Ivison et al., *Large-Scale Data Selection for Instruction Tuning*, 2025, arXiv 2503.01807
    (algorithm 1, whose turns are lost).
  """
  shape = matches.indices.shape
  if len(shape) != 2 or not all(shape) or matches.indices.dtype != jnp.int32:
    raise ValueError(f"indices must be int32 [q, count], got {matches.indices.dtype}{shape}")
  if matches.values.shape != shape:
    raise ValueError(f"values have shape {matches.values.shape}, indices {shape}")
  entries = shape[0] * shape[1]
  if entries >= 2**31:
    raise ValueError(
      f"{shape[0]} lists of {shape[1]} are more than 2**31 - 1 matches: shorten them"
    )
  if not isinstance(k, (int, np.integer)) or not 1 <= k <= entries:
    raise ValueError(
      f"k must be a static int within [1, {entries}] for {shape[0]} lists of {shape[1]}, "
      f"got {k}: longer lists give more"
    )
  if duplicates not in get_args(Duplicates):
    raise ValueError(f"duplicates must be one of {get_args(Duplicates)}, got {duplicates!r}")
  return _round_robin(matches, k=int(k), duplicates=duplicates)


@functools.partial(jax.jit, static_argnames=("k", "duplicates"))
def _round_robin(matches, *, k, duplicates):
  q, count = matches.indices.shape
  ids = matches.indices.T.reshape(-1)  # in the order (rank, query) of turns
  place = jnp.arange(ids.shape[0], dtype=jnp.int32)
  sorted_ids, order = lax.sort((ids, place), num_keys=1, is_stable=True)
  starts = jnp.concatenate([jnp.ones(1, bool), sorted_ids[1:] != sorted_ids[:-1]])
  start = lax.cummax(jnp.where(starts, place, 0))
  # A row's name: the place where it appears first.
  name = jnp.zeros_like(place).at[order].set(order[start], unique_indices=True)
  name = jnp.where(ids < 0, -1, name)
  if duplicates == "lose_turn":
    turn = jnp.where(name == place, place, NEVER)
    rank, short = place // q, jnp.where((matches.indices[:, -1] >= 0).any(), NEVER - 1, NEVER)
  else:
    turn, rank, short = _next_best(name.reshape(count, q).T, k)
  turn, rank, name = (part[:k] for part in lax.sort((turn, rank, place), num_keys=1))
  found = turn < NEVER
  queries = jnp.where(found, turn % q, -1)
  ranks = jnp.where(found, rank, -1)
  values = jnp.where(found, matches.values.astype(jnp.float32)[queries, ranks], -jnp.inf)
  complete = (turn[-1] < short) | (short == NEVER)
  return Picks(values, jnp.where(found, ids[name], -1), queries, ranks, complete)


def _next_best(names: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of every name, the turn in which it is picked (`NEVER`) and its rank then; the first turn
  that a query has no match left for.

  The queries of a round propose all at once, and a row goes to the first of them;
  those it is refused go on to their next. As the order is the same for every row,
  what they end with is what they would have picked one after another.
  """
  q, count = names.shape
  query = jnp.arange(q, dtype=jnp.int32)

  def propose(state):
    turns, ranks, position, round_, short, picked, _ = state
    ended = position >= count
    wanted = names[query, jnp.minimum(position, count - 1)]
    active = ~ended & (wanted >= 0)
    target = jnp.where(active, wanted, names.size)
    turn = round_ * q + query
    turns = turns.at[target].min(turn, mode="drop")
    refused = active & (turns.at[target].get(mode="fill", fill_value=NEVER) != turn)
    settled = ~refused.any()
    ranks = ranks.at[jnp.where(settled, target, names.size)].set(position, mode="drop")
    short = jnp.where(settled, jnp.minimum(short, jnp.where(ended, turn, NEVER).min()), short)
    picked = picked + jnp.where(settled, active.sum(dtype=jnp.int32), 0)
    position = position + jnp.where(settled, active, refused).astype(jnp.int32)
    done = settled & ((picked >= k) | ~active.any())
    return turns, ranks, position, round_ + settled.astype(jnp.int32), short, picked, done

  never = jnp.full(names.size, NEVER)
  zero = jnp.int32(0)
  state = (
    never,
    jnp.zeros_like(never),
    jnp.zeros_like(query),
    zero,
    jnp.int32(NEVER),
    zero,
    jnp.bool_(False),
  )
  turns, ranks, _, _, short, _, _ = lax.while_loop(lambda state: ~state[-1], propose, state)
  return turns, ranks, short
