"""Training steps of a TopK sparse autoencoder."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jsel import native
from jsel.kernels import precision as products
from jsel.kernels.precision import Precision
from jsel.kernels.sae_gradients import descend
from jsel.kernels.sae_model import SAE, check_codes_per_row, to_target


class Optimizer(Protocol):
  """What training asks of an optimizer; Optax's have it."""

  @property
  def init(self) -> Any: ...  # weights -> state

  @property
  def update(self) -> Any: ...  # (gradients, state, weights) -> (updates to add, state)


class TrainState(NamedTuple):
  """An autoencoder in training."""

  sae: SAE
  optimizer: Any  # state of the optimizer over (encoder, encoder_bias, decoder, bias)
  silent: jax.Array  # [latents] int32, steps since the latent was active or started afresh
  step: jax.Array  # [] int32, steps taken
  loss: jax.Array  # [] float32, normalised squared error of the last batch before its update


def init(
  key: jax.Array,
  mean: jax.Array,
  latents: int,
  optimizer: Optimizer,
  *,
  normalize: bool | jax.Array = True,
) -> TrainState:
  """An autoencoder of random unit decoder rows, its encoder equal to them.

  Args:
    key: typed key.
    mean: ``[d]``, mean of the rows as the encoder sees them (normalised if
      ``normalize``); the first value of ``bias``.
    latents: number of latents.
    optimizer: ``(init, update)`` as Optax has.
    normalize: whether each row is brought to mean 0 and variance 1 first.

  Returns:
    A `TrainState`.

  Raises:
    ValueError: if ``mean`` is not a vector, or latents below 1.

  Example:
    >>> import optax
    >>> state = init(jax.random.key(0), jnp.zeros(4), 16, optax.adam(1e-3))
    >>> state.sae.decoder.shape
    (16, 4)
  """
  if mean.ndim != 1:
    raise ValueError(f"mean must be [d], got shape {mean.shape}")
  if latents < 1:
    raise ValueError(f"latents must be at least 1, got {latents}")
  decoder = _unit(jax.random.normal(key, (latents, mean.shape[0]), jnp.float32))
  # A copy: whoever donates the state to its update cannot donate one buffer twice.
  encoder = jnp.copy(decoder)
  weights = (encoder, jnp.zeros(latents, jnp.float32), decoder, mean.astype(jnp.float32))
  return TrainState(
    SAE(*weights, jnp.asarray(normalize)),
    optimizer.init(weights),
    jnp.zeros(latents, jnp.int32),
    jnp.int32(0),
    jnp.float32(0),
  )


def update(
  state: TrainState,
  batch: jax.Array,
  optimizer: Optimizer,
  *,
  k: int,
  dead_after: int | jax.Array | None = 32,
  precision: Precision = "float32",
) -> TrainState:
  r"""One training step on a batch.

  .. math:: L = \mathrm{mean}_i |x'_i - \hat x_i|^2 / |x'_i|^2

  The gradient of a decoder row has no part along it, and rows are brought back
  to unit length. Latents that were active in none of the last ``dead_after``
  steps are dead; up to latents / 16 of them a step start afresh as what the
  reconstruction misses of rows of the batch, drawn in proportion to their loss.
  (An auxiliary loss as in Gao et al. revived next to none in trials of 400
  steps.) What the optimizer keeps of them stays; momentum has faded by then.

  Nothing is exchanged: for the same batch each device takes the same step.

  Args:
    state: of `init`, or of the step before.
    batch: ``[b, d]`` rows of any real dtype. Rows of zeros (after
      normalisation: constant rows too) or with a NaN or an infinity have no
      weight: pad with zeros.
    optimizer: as given to `init`.
    k: latents a row.
    dead_after: steps after which a latent is dead; None lets the dead rest.
    precision: of the products with whole matrices. With less than float32 the
      choice of latents flips here and there.

  Returns:
    The next `TrainState`.

  Raises:
    ValueError: if the batch is not ``[b, d]``, or k is not in [1, latents].

  Example:
    >>> import optax
    >>> optimizer = optax.adam(1e-3)
    >>> state = init(jax.random.key(0), jnp.zeros(4), 16, optimizer)
    >>> step = jax.jit(lambda state, batch: update(state, batch, optimizer, k=2))
    >>> step(state, jnp.eye(4)).step.item()
    1

  References:
    Gao et al., *Scaling and evaluating sparse autoencoders*, 2024, arXiv 2406.04093.
    Bricken et al., *Towards monosemanticity*, 2023 (resampling of dead latents).
  """
  latents, width = state.sae.decoder.shape
  if batch.ndim != 2 or batch.shape[1] != width:
    raise ValueError(f"batch must be [b, {width}] for this autoencoder, got shape {batch.shape}")
  check_codes_per_row(k, latents)
  products.check(precision)
  target = to_target(state.sae.normalize, batch)
  power = jnp.mean(target**2, axis=1)
  present = power > 0
  row_weight = jnp.where(present, 1 / jnp.where(present, power, 1), 0)
  row_weight = row_weight / jnp.maximum(jnp.sum(present, dtype=jnp.float32), 1)

  weights = (state.sae.encoder, state.sae.encoder_bias, state.sae.decoder, state.sae.bias)
  main, error, active, gradients = descend(weights, target, row_weight, k, precision)
  # Optax's own arithmetic mixes dtypes, which a user's or a test's strict setting would refuse.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, weights)
  encoder, encoder_bias, decoder, bias = jax.tree.map(jnp.add, weights, updates)
  decoder = _unit(decoder)
  silent = jnp.where(active, 0, state.silent + 1)
  if dead_after is not None:
    share = row_weight * jnp.mean(error**2, axis=1)
    dead, chosen = _revive(silent >= dead_after, share, max(latents // 16, 1))
    rows = _unit(error[chosen])
    encoder = encoder.at[dead].set(rows, mode="drop")
    encoder_bias = encoder_bias.at[dead].set(0, mode="drop")
    decoder = decoder.at[dead].set(rows, mode="drop")
    silent = silent.at[dead].set(0, mode="drop")
  return TrainState(
    SAE(encoder, encoder_bias, decoder, bias, state.sae.normalize),
    optimizer_state,
    silent,
    state.step + 1,
    main,
  )


def _revive(dead: jax.Array, share: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
  """Ids of ``most`` dead latents, and for each a row drawn in proportion to its share.

  Batches are shuffled, so that equal steps along the running sum are a sample.
  """
  found, ids = jax.lax.top_k(dead.astype(jnp.int32), most)
  running = jnp.cumsum(share)
  points = (jnp.arange(most, dtype=jnp.float32) + 0.5) * (running[-1] / most)
  rows = jnp.minimum(jnp.searchsorted(running, points).astype(jnp.int32), share.shape[0] - 1)
  return jnp.where((found > 0) & (running[-1] > 0), ids, dead.shape[0]), rows


def _unit(x: jax.Array) -> jax.Array:
  # XLA on CPU would merge an optimizer with the sums of its squares, and write its constants out.
  return native.on_cpu("unit_rows", _unit_in_place, _unit_by_sums, x)


def _unit_in_place(x: jax.Array) -> jax.Array:
  shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
  return native.call("unit_rows", shape, x, aliases={0: 0})


def _unit_by_sums(x: jax.Array) -> jax.Array:
  length = jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))
  return x / jnp.maximum(length, jnp.finfo(jnp.float32).tiny)
