"""DAC in training: rounds of picks from clusters, weighted by what the model has yet to learn."""

import jax
import jax.numpy as jnp

from jsel.kernels import gather, kmeans, quotas, random, reduce, segments
from jsel.kernels.rows import row_ids
from jsel.selectors.base import Columns, Plan, Pool, Selector
from jsel.selectors.finite import check_finite

LARGEST = 1e30  # of a gap: more counts as that
LOT_BITS = 20  # of a row's lot; above them stands how often it was planned


def dac_rounds(
  *,
  size: int,
  rows: int,
  clusters: int = 64,
  temperature: float = 1.0,
  compound: bool = True,
  iterations: int = 50,
  axis_name: str | tuple[str, ...] | None = None,
) -> Selector:
  r"""Every plan is a round: rows not yet planned, from clusters in proportion to their weights.

  .. math:: w_j \propto w_j^{\text{before}} \exp(\bar s_j / \tau), \quad
            s_i = \max_y \log p(y | x_i) - \log p(y_i | x_i)

  with the mean of s over the cluster's rows that were trained on since the last plan; a cluster
  without any has the mean of the others. s is 0 where the model predicts the label, and high
  where it is far from it. Shares are exact (largest remainder, none above the cluster's rows);
  within a cluster rows are drawn uniformly, those planned least often first, so that none comes
  twice before all have come once.

  Sharding: a plan gathers 12 bytes of each row on every device and sorts them; the fit is k-means.

  Args:
    size: examples in the pool, without padding.
    rows: examples in a plan.
    clusters: of k-means on the pool's features, at most ``size``.
    temperature: tau, above 0.
    compound: whether weights multiply from round to round (the paper) or are of this round alone
      (the authors' code).
    iterations: of k-means, at the most.
    axis_name: mesh axis (or axes) that rows are split over.

  Raises:
    ValueError: if a constant is out of its range.

  Source: Yu et al., *Diversify and Conquer*, 2024, arXiv 2409.11378, whose weight ``w s`` is none
  where s is negative or 0; so this takes ``w exp(s)``.

  >>> dac_rounds(size=1000, rows=300).feedback
  ('gap',)
  """
  check_finite("dac_rounds", clusters=clusters, temperature=temperature, iterations=iterations)
  if not 1 <= clusters <= size:
    raise ValueError(f"dac_rounds.clusters must be in [1, {size}], got {clusters}")
  if not temperature > 0 or iterations < 0:
    raise ValueError(
      f"dac_rounds.temperature must be above 0 and iterations not negative, got {temperature}"
      f" and {iterations}"
    )

  def of_labels(label: jax.Array, pool: Pool) -> Columns:
    held = jnp.where(pool.valid, 1, 0)[:, None]
    count = segments.segment_sum(held, label, clusters, axis_name=axis_name)[:, 0]
    nothing = jnp.zeros(clusters, jnp.float32)
    shared = {"size": count.astype(jnp.int32), "log_weight": nothing, "gap": nothing}
    return Columns({"cluster": label}, {**shared, "trained": jnp.zeros(clusters, jnp.int32)})

  def fit(key: jax.Array, features: jax.Array, pool: Pool) -> Columns:
    options = {"valid": pool.valid, "axis_name": axis_name}
    seeds = kmeans.plus_plus(key, features, clusters, **options)
    label = kmeans.fit(features, seeds, max_iters=iterations, **options).labels
    # A row that has no distance to anything is planned with the first cluster's.
    return of_labels(jnp.where(pool.valid, jnp.maximum(label, 0), -1), pool)

  def init(key: jax.Array, pool: Pool, fitted: Columns | None) -> Columns:
    del key
    if fitted is None:  # one cluster, so that plans rotate through the pool
      fitted = of_labels(jnp.where(pool.valid, 0, -1), pool)
    return Columns({"planned": jnp.zeros_like(pool.valid, jnp.int32), **fitted.rows}, fitted.shared)

  def weigh(shared: dict[str, jax.Array]) -> jax.Array:
    """Log-weights with what was learnt of the last round."""
    trained = shared["trained"]
    mean = shared["gap"] / jnp.maximum(trained, 1).astype(jnp.float32)
    seen = trained > 0
    others = jnp.sum(jnp.where(seen, mean, 0)) / jnp.maximum(jnp.sum(seen), 1).astype(jnp.float32)
    new = reduce.rounded(jnp.where(seen, mean, others) / temperature)
    new = new + (shared["log_weight"] if compound else 0)
    return jnp.where(jnp.any(seen), new - jnp.max(new), shared["log_weight"])

  def select(key, state, pool, step):
    del step
    planned, shared = state.rows["planned"], state.shared
    log_weight = weigh(shared)
    share = quotas.largest_remainder(jnp.exp(log_weight), jnp.int32(rows), capacity=shared["size"])
    lot = random.row_uniform_int(key, row_ids(planned.shape[0], axis_name)) >> (32 - LOT_BITS)
    most = 2 ** (31 - LOT_BITS) - 1
    score = ((most - jnp.minimum(planned, most)) << LOT_BITS) + lot.astype(jnp.int32)
    mask = quotas.cap_mask(
      score, state.rows["cluster"], share, valid=pool.valid, axis_name=axis_name
    )
    nothing = jnp.zeros_like(log_weight)
    learnt = {
      "log_weight": log_weight,
      "gap": nothing,
      "trained": jnp.zeros_like(shared["trained"]),
    }
    columns = {**state.rows, "planned": planned + mask.astype(jnp.int32)}
    return Columns(columns, {**shared, **learnt}), Plan(mask, None), {"share": share}

  def update(state, batch, feedback):
    gap, shared = feedback["gap"], state.shared
    usable = batch.valid & jnp.isfinite(gap)
    label = gather.gather(state.rows["cluster"], batch.index, axis_name=axis_name)
    label = jnp.where(usable, label, -1)
    gap = jnp.clip(gap, -LARGEST, LARGEST)  # sums stay finite, as log-weights have to
    columns = jnp.stack([jnp.where(usable, gap, 0), usable.astype(jnp.float32)], axis=1)
    total = segments.segment_sum(columns, label, clusters)
    learnt = {
      "gap": shared["gap"] + total[:, 0],
      "trained": shared["trained"] + total[:, 1].astype(jnp.int32),
    }
    return state._replace(shared={**shared, **learnt})

  return Selector(
    needs=("features",),
    feedback=("gap",),
    scope=("pool",),
    least=rows,
    most=rows,
    weighted=False,
    fit=fit,
    init=init,
    select=select,
    pick=None,
    update=update,
  )
