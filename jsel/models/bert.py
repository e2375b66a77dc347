"""A BERT-type text encoder: all-MiniLM-L6-v2, and others of its form."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jsel.models.initial import scaled_normal
from jsel.models.outputs import compute_dtype
from jsel.models.transformer import Keys, Linear, attention, layer_indices, through

ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}


class BertConfig(NamedTuple):
  """The numbers that make a BERT."""

  vocabulary: int
  width: int
  layers: int
  heads: int
  hidden: int  # width between the two products of a layer's perceptron
  positions: int  # the longest text, in tokens
  token_types: int
  epsilon: float  # of the normalisations
  activation: str


class Norm(nnx.Module):
  """Layer normalisation with a scale and a bias for each of ``shape[:-1]`` layers."""

  def __init__(self, *shape: int, epsilon: float):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(shape))
    self.bias = nnx.Param(jnp.zeros(shape))

  def __call__(self, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + self.epsilon)
    return normed * self.scale[...][None, None] + self.bias[...][None, None]


class BertBlocks(nnx.Module):
  """All layers: attention and a perceptron, each added to its input and then normalised."""

  def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    width, layers = config.width, config.layers
    linear = functools.partial(Linear, layers=layers, dtype=dtype, bias=True, rngs=rngs)
    norm = functools.partial(Norm, layers, width, epsilon=config.epsilon)
    self.heads, self.dtype = config.heads, dtype
    self.activation = config.activation
    self.queries_keys_values = linear(width, 3 * width)
    self.attended = linear(width, width)
    self.attended_norm = norm()
    self.widen = linear(width, config.hidden)
    self.narrow = linear(config.hidden, width)
    self.narrow_norm = norm()

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """One layer, after `through` has taken its arrays out of the stack."""
    b, length, width = x.shape
    split = self.queries_keys_values(x).reshape(b, length, 3, self.heads, width // self.heads)
    own = Keys(split[:, :, 1], split[:, :, 2], mask[:, None])
    means = attention(split[:, :, 0], [own], self.dtype)
    x = self.attended_norm(x + self.attended(means))
    return self.narrow_norm(x + self.narrow(ACTIVATIONS[self.activation](self.widen(x))))


class Bert(nnx.Module):
  """Token ids to hidden states.

  Args:
    config: its sizes.
    rngs: of the initial parameters.
    dtype: "float32" or "bfloat16" products; sums, normalisations and results are float32.

  >>> config = BertConfig(100, 16, 2, 4, 32, 64, 2, 1e-12, "gelu")
  >>> bert = Bert(config, rngs=nnx.Rngs(0))
  >>> tokens = jnp.array([[5, 6, 7, 0]], jnp.int32)
  >>> bert(tokens, tokens > 0, layers=(0, -1)).shape
  (2, 1, 4, 16)

  Source: Devlin, Chang, Lee, Toutanova, *BERT: Pre-training of Deep Bidirectional Transformers for
  Language Understanding*, 2018, arXiv 1810.04805.
  """

  def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, dtype: str = "float32"):
    if config.activation not in ACTIVATIONS:
      raise ValueError(
        f"the activation {config.activation!r} is none of {', '.join(ACTIVATIONS)}: this encoder"
        " cannot be run"
      )
    if config.width % config.heads:
      raise ValueError(f"a width of {config.width} does not divide into {config.heads} heads")
    table = lambda rows: nnx.Param(scaled_normal(rngs.params(), (rows, config.width), fan="out"))
    self.config = config
    self.words = table(config.vocabulary)
    self.positions = table(config.positions)
    self.token_types = table(config.token_types)
    self.norm = Norm(config.width, epsilon=config.epsilon)
    self.blocks = BertBlocks(config, dtype=compute_dtype(dtype), rngs=rngs)

  def __call__(
    self, tokens: jax.Array, mask: jax.Array, *, layers: Sequence[int] = (-1,)
  ) -> jax.Array:
    """Hidden states of the tokens, all of one segment.

    Args:
      tokens: ``[b, l]`` int32 ids.
      mask: ``[b, l]`` bool, False for padding, which no token sees.
      layers: which states, static: 0 is the embeddings, i what leaves layer i, -1 the last.

    Returns:
      ``[len(layers), b, l, width]`` float32; those of padding mean nothing.

    Raises:
      ValueError: if the texts are longer than the model's positions, or a layer is not there.
    """
    kept = layer_indices(layers, self.config.layers)
    step = lambda block, x, item: (block(x, mask), item)
    return through(self.blocks, self.embedded(tokens), kept, step)[1]

  def embedded(self, tokens: jax.Array) -> jax.Array:
    """What the first layer reads of ``tokens`` ``[b, l]``: ``[b, l, width]`` float32.

    Raises:
      ValueError: if the texts are longer than the model's positions.
    """
    length = tokens.shape[1]
    if length > self.config.positions:
      raise ValueError(
        f"texts of {length} tokens: the model has {self.config.positions} positions, cut them"
      )
    x = self.words[...][tokens] + (self.positions[...][:length] + self.token_types[...][:1])[None]
    return self.norm(x)
