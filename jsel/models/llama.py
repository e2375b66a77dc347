"""A Llama-type decoder: SmolLM2, Llama, Mistral, Qwen2 and Qwen3."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jsel.models.initial import scaled_normal
from jsel.models.outputs import compute_dtype
from jsel.models.transformer import Keys, Linear, attention, layer_indices, through


class LlamaConfig(NamedTuple):
  """The numbers that make a Llama."""

  vocabulary: int
  width: int
  layers: int
  heads: int
  groups: int  # heads of keys and values, each for heads / groups queries
  head_width: int
  hidden: int  # width inside a layer's perceptron
  positions: int  # the longest text, in tokens
  epsilon: float  # of the normalisations
  frequencies: tuple[float, ...]  # radians a position, of the head_width / 2 rotations of a head
  tied: bool  # whether the embeddings of the words are the last layer's weights, too
  bias: bool = False  # of queries, keys and values (Qwen2)
  head_norm: bool = False  # whether queries and keys are normalised (Qwen3)


class RMSNorm(nnx.Module):
  """Rows of root mean square 1, and a scale for each of ``shape[:-1]`` layers."""

  def __init__(self, *shape: int, epsilon: float):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(shape))

  def __call__(self, x: jax.Array) -> jax.Array:
    square = jnp.square(x).mean(-1, keepdims=True)
    scale = jnp.expand_dims(self.scale[...], range(x.ndim - 1))
    return x * lax.rsqrt(square + self.epsilon) * scale


class LlamaBlocks(nnx.Module):
  """All layers: attention and a gated perceptron, each of its normalised input and added to it."""

  def __init__(self, config: LlamaConfig, *, dtype: jnp.dtype, stored: jnp.dtype, rngs: nnx.Rngs):
    linear = functools.partial(Linear, layers=config.layers, dtype=dtype, stored=stored, rngs=rngs)
    norm = functools.partial(RMSNorm, config.layers, epsilon=config.epsilon)
    inner = config.heads * config.head_width
    all_heads = config.heads + 2 * config.groups
    self.heads, self.groups, self.dtype = config.heads, config.groups, dtype
    self.attention_norm = norm(config.width)
    self.queries_keys_values = linear(config.width, all_heads * config.head_width, bias=config.bias)
    self.query_norm = norm(config.head_width) if config.head_norm else None
    self.key_norm = norm(config.head_width) if config.head_norm else None
    self.attended = linear(inner, config.width, bias=False)
    self.perceptron_norm = norm(config.width)
    self.gate_and_widen = linear(config.width, 2 * config.hidden, bias=False)
    self.narrow = linear(config.hidden, config.width, bias=False)

  def __call__(
    self, x: jax.Array, rotation: jax.Array, seen: jax.Array, past: Sequence[Keys]
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer, after `through` has taken its arrays out of the stack, and its keys and values."""
    split = self.queries_keys_values(self.attention_norm(x))
    split = split.reshape(*x.shape[:2], self.heads + 2 * self.groups, -1)
    queries, keys, values = jnp.split(split, [self.heads, self.heads + self.groups], axis=2)
    if self.query_norm is not None and self.key_norm is not None:
      queries, keys = self.query_norm(queries), self.key_norm(keys)
    queries, keys = rotated(queries, rotation), rotated(keys, rotation)
    means = attention(queries, [*past, Keys(keys, values, seen)], self.dtype)
    x = x + self.attended(means)
    gate, wide = jnp.split(self.gate_and_widen(self.perceptron_norm(x)), 2, axis=-1)
    return x + self.narrow(jax.nn.silu(gate) * wide), (keys, values)


def rotated(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Heads ``[b, l, h, d]`` of which columns i and i + d / 2 are turned by ``angles [b, l, d / 2]``.

  Source: Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding*, 2021, arXiv
  2104.09864.
  """
  a, b = jnp.split(x, 2, axis=-1)
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Cache(NamedTuple):
  """Keys and values of tokens that have been read."""

  keys: jax.Array  # [layers, b, l, groups, d] float32
  values: jax.Array  # likewise
  seen: jax.Array  # [b, l] bool, those that count


class Llama(nnx.Module):
  """Token ids to hidden states and logits.

  Args:
    config: its sizes.
    rngs: of the initial parameters.
    dtype: "float32" or "bfloat16" products; sums, normalisations and results are float32.
    stored: "float32" or "bfloat16", of the matrices and the words in memory.
    remat: whether a backward pass works layers out anew, for memory of one layer instead of all.
    frozen: layers, from the first on, that gradients do not go back into, nor into the words.

  Raises:
    ValueError: if the sizes do not go together.

  >>> config = LlamaConfig(100, 16, 2, 4, 2, 4, 32, 64, 1e-5, (1.0, 0.01), tied=True)
  >>> llama = Llama(config, rngs=nnx.Rngs(0))
  >>> tokens = jnp.array([[5, 6, 7, 0]], jnp.int32)
  >>> hidden = llama(tokens, tokens > 0, layers=(0, -1))
  >>> hidden.shape, llama.logits(hidden[-1]).shape
  ((2, 1, 4, 16), (1, 4, 100))

  Source: Touvron et al., *LLaMA: Open and Efficient Foundation Language Models*, 2023, arXiv
  2302.13971; Ainslie et al., *GQA*, 2023, arXiv 2305.13245 (groups of queries).
  """

  def __init__(
    self,
    config: LlamaConfig,
    *,
    rngs: nnx.Rngs,
    dtype: str = "float32",
    stored: str = "float32",
    remat: bool = False,
    frozen: int = 0,
  ):
    if config.heads % config.groups:
      raise ValueError(f"{config.heads} heads of queries do not divide into {config.groups} groups")
    if config.head_width != 2 * len(config.frequencies):
      raise ValueError(
        f"heads of {config.head_width} columns turn by half as many frequencies, got"
        f" {len(config.frequencies)}"
      )
    if not 0 <= frozen <= config.layers:
      raise ValueError(f"frozen={frozen} of {config.layers} layers: freeze 0 to all of them")
    self.config, self.remat, self.frozen = config, remat, frozen
    self.dtype = compute_dtype(dtype)
    held = compute_dtype(stored)
    table = lambda: nnx.Param(
      scaled_normal(rngs.params(), (config.vocabulary, config.width), held, fan="out", gain=1.0)
    )
    self.words = table()
    self.blocks = LlamaBlocks(config, dtype=self.dtype, stored=held, rngs=rngs)
    self.norm = RMSNorm(config.width, epsilon=config.epsilon)
    self.head = None if config.tied else table()

  def __call__(
    self, tokens: jax.Array, mask: jax.Array, *, layers: Sequence[int] = (-1,)
  ) -> jax.Array:
    """Hidden states of tokens, each of which sees those before it.

    Args:
      tokens: ``[b, l]`` int32 ids.
      mask: ``[b, l]`` bool, False for padding on either side, which no token sees or counts.
      layers: which states, static: 0 is the embeddings, i what leaves layer i, -1 the last, and
        that one alone is normalised, as Hugging Face has it.

    Returns:
      ``[len(layers), b, l, width]`` float32; those of padding mean nothing.

    Raises:
      ValueError: if the texts are longer than the model's positions, or a layer is not there.
    """
    wanted = layer_indices(layers, self.config.layers)
    _, kept, _ = self._through(tokens, counted(mask), causal(mask), wanted)
    last = [place for place, layer in enumerate(wanted) if layer == self.config.layers]
    return kept.at[jnp.asarray(last, jnp.int32)].set(self.norm(kept[jnp.asarray(last, jnp.int32)]))

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Of the next token, ``[..., vocabulary]`` float32, from the last layer's states."""
    head = self._words() if self.head is None else self.head[...]
    axes = (((hidden.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(
      hidden.astype(self.dtype), head.astype(self.dtype), axes, preferred_element_type=jnp.float32
    )

  def read(self, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, Cache]:
    """The last layer's states ``[b, l, width]`` and the cache of all layers.

    Args: as of a call.
    """
    x, _, (keys, values) = self._through(tokens, counted(mask), causal(mask), [], cached=True)
    return self.norm(x), Cache(keys, values, mask)

  def read_next(
    self, tokens: jax.Array, positions: jax.Array, caches: Sequence[Cache]
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One more token of each text: its last state and what a cache has to hold of it.

    Args:
      tokens: ``[b]`` int32.
      positions: ``[b]`` int32, tokens of the text before it.
      caches: of what has been read, in any number of parts.

    Returns:
      ``[b, width]``, keys and values ``[layers, b, 1, groups, d]``.
    """
    seen = jnp.ones((len(tokens), 1, 1), bool)
    x, _, (keys, values) = self._through(
      tokens[:, None], positions[:, None], seen, [], caches=caches, cached=True
    )
    return self.norm(x)[:, 0], keys, values

  def _through(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    seen: jax.Array,
    layers: Sequence[int],
    *,
    caches: Sequence[Cache] = (),
    cached: bool = False,
  ) -> tuple[jax.Array, jax.Array, Any]:
    if tokens.shape[1] > self.config.positions:
      raise ValueError(
        f"texts of {tokens.shape[1]} tokens: the model has {self.config.positions} positions, cut"
        " them"
      )
    frequencies = jnp.asarray(self.config.frequencies, jnp.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]

    def step(block: LlamaBlocks, x: jax.Array, past: Any) -> tuple[jax.Array, Any]:
      parts = [
        Keys(layer[0], layer[1], cache.seen[:, None])
        for layer, cache in zip(past, caches, strict=True)
      ]
      x, own = block(x, angles, seen, parts)
      return x, own if cached else None

    past = [(cache.keys, cache.values) for cache in caches]
    x = self._words()[tokens].astype(jnp.float32)
    return through(self.blocks, x, layers, step, past, remat=self.remat, frozen=self.frozen)

  def _words(self) -> jax.Array:
    return lax.stop_gradient(self.words[...]) if self.frozen else self.words[...]


def counted(mask: jax.Array) -> jax.Array:
  """The number of each token in its text, from 0; padding before it has 0."""
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def causal(mask: jax.Array) -> jax.Array:
  """``[b, l, l]``: a token sees itself and the tokens before it."""
  length = mask.shape[1]
  return mask[:, None] & jnp.tri(length, dtype=bool)[None]
