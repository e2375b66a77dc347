"""A TopK sparse autoencoder, fitted in one program; its other functions under one name."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsel.kernels.gather import gather
from jsel.kernels.permutation import permute
from jsel.kernels.precision import Precision
from jsel.kernels.rows import AxisName, check_valid, rows
from jsel.kernels.sae_codes import decode, encode, factor_counts, target_mean, unexplained
from jsel.kernels.sae_model import SAE, Codes, check_codes_per_row
from jsel.kernels.sae_step import Optimizer, TrainState, init, update

__all__ = [
  "SAE",
  "Codes",
  "Optimizer",
  "SAEFit",
  "TrainState",
  "decode",
  "encode",
  "factor_counts",
  "fit",
  "init",
  "unexplained",
  "update",
]

NEVER = 2**31 - 1  # steps


class SAEFit(NamedTuple):
  """Result of `fit`."""

  sae: SAE
  loss: jax.Array  # [steps] float32, normalised squared error of each batch before its update
  silent: jax.Array  # [latents] int32, steps since the latent was active or started afresh


@rows("x", "valid", out=False)
def fit(
  key: jax.Array,
  x: jax.Array,
  optimizer: Optimizer,
  *,
  latents: int,
  k: int,
  steps: int,
  batch_size: int,
  normalize: bool | jax.Array = True,
  dead_after: int | jax.Array | None = 32,
  precision: Precision = "float32",
  valid: jax.Array | None = None,
  axis_name: AxisName = None,
) -> SAEFit:
  """Trains an autoencoder on the rows of ``x``: `update` in one ``lax.scan``.

  Dead latents start afresh in the first half of the steps; see `update`.
  Batches follow keyed shuffles of the rows, a new one each pass; a batch may
  end one pass and begin the next.

  Sharding: rows may be split over ``axis_name``. A step gathers its batch to
  every device (a sum of ``[batch_size, d]`` over the axis) and each takes the
  same step: it is not data parallel, and the weights are bitwise the same on
  1, 2, 4, ... 512 devices.

  Args:
    key: typed key.
    x: ``[n, d]`` rows of any real dtype. With ``axis_name`` the global n is a
      multiple of 512; without, any n.
    optimizer: ``(init, update)`` as Optax has, e.g. ``optax.adam(1e-3)``. Calls
      with the same two functions share one program.
    latents: number of latents; 4 d is usual.
    k: latents a row.
    steps: steps to take.
    batch_size: rows a step.
    normalize: bring each row to mean 0 and variance 1 first.
    dead_after: steps after which a latent that was not active is dead and, in
      the first half of the steps, starts afresh; None lets the dead rest.
    precision: of the products with whole matrices, as in `update`.
    valid: ``[n]`` bool, False for padded rows, which come after all others;
      all rows count if None.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    A `SAEFit`. Rows of zeros (after normalisation) and rows with a NaN or an
    infinity have no weight.

  Raises:
    ValueError: if shapes do not fit each other, k is not in [1, latents], or
      steps and batch_size are not positive or draw 2**31 rows or more.

  Example:
    >>> import optax
    >>> x = jax.random.normal(jax.random.key(1), (64, 8))
    >>> options = {"latents": 16, "k": 4, "steps": 50, "batch_size": 32}
    >>> train = jax.jit(lambda key, x: fit(key, x, optax.adam(1e-2), **options))
    >>> result = train(jax.random.key(0), x)
    >>> bool(result.loss[-1] < result.loss[0])
    True

  References:
    Gao et al., *Scaling and evaluating sparse autoencoders*, 2024, arXiv 2406.04093.
  """
  if x.ndim != 2 or not x.size:
    raise ValueError(
      f"x must be a matrix [n, d] of at least one row and column, got shape {x.shape}"
    )
  check_valid(valid, x.shape[0])
  if valid is None:
    valid = jnp.ones(x.shape[0], bool)
  check_codes_per_row(k, latents)
  if steps < 1 or batch_size < 1 or steps * batch_size >= 2**31:
    raise ValueError(
      f"steps = {steps} and batch_size = {batch_size} must be positive and draw fewer than 2**31 "
      "rows: fit on fewer, or call update in a loop"
    )
  # The functions and not what holds them, which may have no hash.
  return _fit(
    key,
    jnp.asarray(x),
    jnp.asarray(normalize),
    dead_after,
    valid,
    optimizer=_Functions(optimizer.init, optimizer.update),
    latents=int(latents),
    k=int(k),
    steps=int(steps),
    batch_size=int(batch_size),
    precision=precision,
    axis_name=axis_name,
  )


class _Functions(NamedTuple):
  init: Any
  update: Any


# One program: eagerly, every call would compile the scan again.
@functools.partial(
  jax.jit,
  static_argnames=("optimizer", "latents", "k", "steps", "batch_size", "precision", "axis_name"),
)
def _fit(
  key, x, normalize, dead_after, valid, *,
  optimizer, latents, k, steps, batch_size, precision, axis_name,
):  # fmt: skip
  count = jnp.sum(valid, dtype=jnp.int32)
  count = count if axis_name is None else jax.lax.psum(count, axis_name)
  count = jnp.maximum(count, 1)
  mean = target_mean(normalize, x, valid=valid, axis_name=axis_name)
  weights_key, order_key = jax.random.split(key)
  state = init(weights_key, mean, latents, optimizer, normalize=normalize)

  def batch_rows(t: jax.Array) -> jax.Array:
    positions = t * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    passes, positions = positions // count, positions % count

    def take(number: jax.Array, ids: jax.Array) -> jax.Array:
      drawn = permute(jax.random.fold_in(order_key, number), positions, count)
      return jnp.where(passes == number, drawn, ids)

    return jax.lax.fori_loop(passes[0], passes[-1] + 1, take, jnp.zeros_like(positions))

  def step(state: TrainState, t: jax.Array) -> tuple[TrainState, jax.Array]:
    batch = gather(x, batch_rows(t), axis_name=axis_name)
    # Rows arrive over a collective or not; behind the barrier the step is the same program.
    batch = jax.lax.optimization_barrier(batch)
    # A latent that starts afresh disturbs the others: the second half is for settling.
    limit = None if dead_after is None else jnp.where(t < steps // 2, dead_after, NEVER)
    state = update(state, batch, optimizer, k=k, dead_after=limit, precision=precision)
    return state, state.loss

  state, loss = jax.lax.scan(step, state, jnp.arange(steps, dtype=jnp.int32))
  return SAEFit(state.sae, loss, state.silent)
