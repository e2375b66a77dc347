"""Softmax heads over fixed features, several trained at once: one for each seed."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Params = list[tuple[jax.Array, jax.Array]]


class Settings(NamedTuple):
  """Of the head and of its training by AdamW, at a rate that falls to 0 as a cosine."""

  hidden: int = 0  # width of the one hidden layer; 0: none
  rate: float = 3e-3
  decay: float = 1e-2
  epochs: int = 30  # of the rows that are trained on
  batch: int = 128


def train(
  x: np.ndarray,
  labels: np.ndarray,
  subsets: Sequence[np.ndarray],
  *,
  settings: Settings,
  weights: Sequence[np.ndarray] | None = None,
  steps: int = 0,
) -> Params:
  """One head for each subset, the i-th with seed i.

  Rows come in shuffles one after another, cut into batches that are all full.

  Args:
    x: ``[n, d]`` float32, rows of length 1.
    labels: ``[n]`` int32.
    subsets: ``[m]`` row numbers each.
    settings: see `Settings`.
    weights: ``[m]`` each, of the rows' losses; brought to mean 1.
    steps: 0 is `steps_of` the subsets.

  Returns:
    Weights and biases of each layer, a head in each place of their first axis.
  """
  steps = steps or steps_of(subsets, settings)
  picks = [stream(seed, len(rows), (steps, settings.batch)) for seed, rows in enumerate(subsets)]
  rows = np.stack([subset[pick] for subset, pick in zip(subsets, picks, strict=True)])
  weights = weights or [np.ones(len(subset)) for subset in subsets]
  weight = [w[pick] / w.mean() for w, pick in zip(weights, picks, strict=True)]
  seeds = jnp.arange(len(subsets), dtype=jnp.uint32)
  batches = (jnp.asarray(rows.astype(np.int32)), jnp.asarray(np.stack(weight), jnp.float32))
  sizes = (x.shape[1], *((settings.hidden,) if settings.hidden else ()), int(labels.max()) + 1)
  return _fit(jnp.asarray(x), jnp.asarray(labels), seeds, batches, sizes=sizes, settings=settings)


def steps_of(subsets: Sequence[np.ndarray], settings: Settings) -> int:
  """Batches in the epochs over the mean subset."""
  rows = np.mean([len(subset) for subset in subsets])
  return max(round(settings.epochs * rows / settings.batch), 1)


def stream(seed: int, size: int, shape: tuple[int, ...]) -> np.ndarray:
  """Numbers below ``size`` in shuffles one after another.

  >>> np.sort(stream(0, 3, (2, 3))).tolist()
  [[0, 1, 2], [0, 1, 2]]
  """
  rng, count = np.random.default_rng([2, seed]), int(np.prod(shape))
  shuffles = [rng.permutation(size) for _ in range(-(-count // size))]
  return np.concatenate(shuffles)[:count].reshape(shape)


@functools.partial(jax.jit, static_argnames=("sizes", "settings"))
def _fit(x, labels, seeds, batches, *, sizes: tuple[int, ...], settings: Settings) -> Params:
  schedule = optax.cosine_decay_schedule(settings.rate, batches[0].shape[1])
  matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  optimizer = optax.adamw(schedule, weight_decay=settings.decay, mask=matrices)

  def one(seed, batches):
    params = _initial(jax.random.key(seed), sizes)

    def step(carry, batch):
      params, state = carry
      row, weight = batch
      mean = lambda params: jnp.mean(weight * _losses(logits(params, x[row]), labels[row]))
      updates, state = optimizer.update(jax.grad(mean)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    return lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

  return jax.vmap(one)(seeds, batches)


def _initial(key: jax.Array, sizes: tuple[int, ...]) -> Params:
  params = []
  for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
    last = layer == len(sizes) - 2
    noise = jax.random.normal(jax.random.fold_in(key, layer), (inputs, outputs))
    kernel = jnp.zeros_like(noise) if last else noise * jnp.sqrt(2.0 / inputs)
    params.append((kernel, jnp.zeros(outputs)))
  return params


def logits(params: Params, x: jax.Array) -> jax.Array:
  """``[n, classes]`` of one head; entries of ``x`` are first brought to about 1."""
  x = x * jnp.sqrt(jnp.float32(x.shape[1]))
  for kernel, bias in params[:-1]:
    x = jax.nn.relu(x @ kernel + bias[None])
  kernel, bias = params[-1]
  return x @ kernel + bias[None]


def _losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@jax.jit
def _outputs(params: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  of = jax.vmap(logits, in_axes=(0, None))(params, x)
  return of.argmax(-1), jax.vmap(_losses, in_axes=(0, None))(of, labels)


def losses(params: Params, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """``[heads, n]`` ``-log p(label)``."""
  return np.asarray(_outputs(params, jnp.asarray(x), jnp.asarray(labels))[1])


def accuracies(params: Params, x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each head: the share of rows that it is right on, and the mean of the classes' shares."""
  guesses, _ = _outputs(params, jnp.asarray(x), jnp.asarray(labels))
  right = np.asarray(guesses) == labels
  rows = np.bincount(labels)
  by_class = np.stack([np.bincount(labels, weights=one) for one in right])
  return right.mean(1), (by_class / np.maximum(rows, 1)).sum(1) / (rows > 0).sum()
