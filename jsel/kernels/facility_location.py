"""Rows picked one after another that cover all rows best: facility location, with quality."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jsel.kernels import precision as products
from jsel.kernels import topk
from jsel.kernels.gather import gather
from jsel.kernels.greedy import NOBODY, Greedy
from jsel.kernels.kmeans_seeding import check_k, check_rows, square_lengths
from jsel.kernels.reduce import fixed_tree_map_sum
from jsel.kernels.rows import AxisName, axis_size, row_ids, rows
from jsel.kernels.scatter import scatter
from jsel.kernels.tiles import map_tiles, pad_to_leaves

BLOCK = 64  # rows whose gains are worked out together


@rows("x", "quality", "valid", out=Greedy(False, False))  # pyrefly: ignore
def facility_location(
  x: jax.Array,
  k: int,
  *,
  quality: jax.Array | None = None,
  quality_weight: float | jax.Array = 0.0,
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> Greedy:
  r"""The row of largest gain ``k`` times; ties to the lowest id.

  .. math:: g_i = (1 - a) \sum_v \Big[\max_{c \in A \cup \{i\}} x_v \cdot x_c
            - \max_{c \in A} x_v \cdot x_c\Big] + a q_i

  with -1, the least cosine, for the maximum over nothing; at least 1 - 1/e of the best there is
  where q is not negative. Gains never rise while rows are picked, so those worked out before are
  bounds: only the 64 rows of the highest are looked at anew, until one of them is above all other
  bounds. What is picked is what working out every gain at every pick gives.

  Sharding: rows may be split over ``axis_name``; costs 64 rows and a sum of 64 numbers over it each
  time that gains are worked out. The same picks on any device count, for n a multiple of 512.

  Args:
    x: ``[n, d]`` rows of length 1 (or less), of any real dtype.
    k: how many, static, ``1 <= k <= n``.
    quality: ``[n]`` float32, q; NaN is never picked. All 0 if None.
    quality_weight: a, in [0, 1].
    valid: ``[n]`` bool, False for padded rows, which are neither picked nor covered.
    axis_name: mesh axis (or axes) that the rows are split over.

  Returns:
    `Greedy` whose values are gains. Rows with a NaN or an infinity are neither picked nor covered.

  Raises:
    ValueError: if ``k`` is out of range, or a shape is another.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, -1.0]])
    >>> facility_location(x, 2).indices.tolist()
    [0, 3]

  References:
    Nemhauser, Wolsey and Fisher, *An analysis of approximations for maximizing submodular set
    functions*, 1978; Minoux, *Accelerated greedy algorithms*, 1978.
  """
  check_rows(x, None, valid)
  check_k(k, x.shape[0] * axis_size(axis_name))
  if quality is not None and (quality.shape != x.shape[:1] or quality.dtype != jnp.float32):
    raise ValueError(f"quality must be float32[{x.shape[0]}], got {quality.dtype}{quality.shape}")
  weight = jnp.float32(quality_weight)
  return _facility_location(x, quality, weight, valid, k=int(k), axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("k", "axis_name"))
def _facility_location(x, quality, quality_weight, valid, *, k, axis_name):
  block = min(BLOCK, x.shape[0] * axis_size(axis_name))
  counts = jnp.isfinite(square_lengths(x, axis_name))
  counts = counts if valid is None else counts & valid
  quality = jnp.zeros_like(counts, jnp.float32) if quality is None else quality
  # Once, and not in every sum: its leaves are of rows that 512 divides.
  bonus = jnp.where((quality_weight == 0) & ~jnp.isnan(quality), 0, quality_weight * quality)
  x, counts, bonus = pad_to_leaves((x, counts, bonus), axis_name)
  n, d = x.shape
  ids = row_ids(n, axis_name)

  def gains(covered, rows):
    def of_leaf(arrays, _):
      x, covered, counts = arrays
      like = products.matmul(x.astype(jnp.float32), rows, transpose_b=True)
      more = jnp.maximum(like - covered[:, None], 0)
      return jnp.sum(jnp.where(counts[:, None], more, 0), axis=0)

    return fixed_tree_map_sum(of_leaf, (x, covered, counts), axis_name=axis_name)

  def cover(covered, row):
    like = map_tiles(
      lambda x: jnp.sum(x.astype(jnp.float32) * row[None], axis=1), x, width=d, axis_name=axis_name
    )
    return jnp.maximum(covered, like)

  def look(carry):
    covered, bound, open_, values, indices, j = carry
    top = topk.top_k(bound, block, valid=open_, axis_name=axis_name)
    place = jnp.maximum(top.indices, 0)
    there = top.indices >= 0
    rows = gather(x, place, axis_name=axis_name).astype(jnp.float32)
    gain = (1 - quality_weight) * gains(covered, rows) + gather(bonus, place, axis_name=axis_name)
    gain = jnp.where(there & ~jnp.isnan(gain), gain, -jnp.inf)
    bound = scatter(bound, place, gain, valid=there, axis_name=axis_name)
    best = jnp.max(gain)
    pick = jnp.min(jnp.where(there & (gain == best), top.indices, NOBODY))
    # Nobody whose gain is not known anew can be above, or as high and before.
    highest = jnp.max(jnp.where(open_, bound, -jnp.inf))
    highest = highest if axis_name is None else lax.pmax(highest, axis_name)
    first = jnp.min(jnp.where(open_ & (bound == highest), ids, NOBODY))
    first = first if axis_name is None else lax.pmin(first, axis_name)
    none_left = ~jnp.any(there)
    settled = (first == pick) | none_left

    def take(covered):
      row = gather(x, jnp.maximum(pick, 0)[None], axis_name=axis_name)[0].astype(jnp.float32)
      return cover(covered, row)

    covered = lax.cond(settled & ~none_left, take, lambda covered: covered, covered)
    at = jnp.where(settled, j, k)
    values = values.at[at].set(jnp.where(none_left, -jnp.inf, best), mode="drop")
    indices = indices.at[at].set(jnp.where(none_left, -1, pick), mode="drop")
    open_ = open_ & ~(settled & (ids == pick))
    return covered, bound, open_, values, indices, j + settled.astype(jnp.int32)

  start = (
    jnp.where(counts, jnp.float32(-1), jnp.inf),
    jnp.where(counts, jnp.inf, -jnp.inf).astype(jnp.float32),
    counts & ~jnp.isnan(bonus),
    jnp.full(k, -jnp.inf, jnp.float32),
    jnp.full(k, -1, jnp.int32),
    jnp.int32(0),
  )
  _, _, _, values, indices, _ = lax.while_loop(lambda carry: carry[-1] < k, look, start)
  return Greedy(values, indices)
