"""What encoders and decoders share: products, attention, and the way through stacked layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jsel.models.initial import scaled_normal

HIDDEN = -1e30  # the score of a key that may not be seen; finite, so that a row of them has no NaN


class Linear(nnx.Module):
  """Linear layers of one shape, a kernel and a bias for each of ``layers``; float32 results.

  A product of bfloat16 numbers is accumulated in float32, which is what makes it fast: with results
  in bfloat16 XLA does not use the matrix units of a CPU (jax 0.10.2).
  """

  def __init__(
    self,
    fan_in: int,
    fan_out: int,
    *,
    layers: int,
    dtype: jnp.dtype,
    bias: bool,
    rngs: nnx.Rngs,
    stored: jnp.dtype = jnp.float32,  # pyrefly: ignore
  ):
    self.dtype = dtype
    # The initialiser takes the layers for a window, whose size would count in the fan.
    gain = float(layers)
    shape = (layers, fan_in, fan_out)
    self.kernel = nnx.Param(scaled_normal(rngs.params(), shape, stored, gain=gain))
    self.bias = nnx.Param(jnp.zeros((layers, fan_out))) if bias else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """``x @ kernel + bias`` of one layer, whose arrays `through` has taken out of the stack."""
    y = product(x, self.kernel[...], self.dtype)
    return y if self.bias is None else y + jnp.expand_dims(self.bias[...], range(x.ndim - 1))


def product(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """``x[..., k] @ kernel[k, n]`` of numbers rounded to ``dtype``, in float32."""
  axes = (((x.ndim - 1,), (0,)), ((), ()))
  return lax.dot_general(
    x.astype(dtype), kernel.astype(dtype), axes, preferred_element_type=jnp.float32
  )


class Keys(NamedTuple):
  """What queries attend to."""

  keys: jax.Array  # [b, k, groups, d]; each is for heads / groups queries
  values: jax.Array  # [b, k, groups, d]
  seen: jax.Array  # [b, q or 1, k] bool, the keys that a query may see


def attention(queries: jax.Array, parts: Sequence[Keys], dtype: jnp.dtype) -> jax.Array:
  """Means of values, weighted by the softmax of the scaled products of queries and keys.

  Args:
    queries: ``[b, q, heads, d]``.
    parts: keys in one part or several, as if they were one: a cache needs no copy to join the new.
    dtype: of the products.

  Returns:
    ``[b, q, heads * d]`` float32.
  """
  b, length, heads, d = queries.shape
  groups = parts[0].keys.shape[2]
  queries = queries.reshape(b, length, groups, heads // groups, d) / math.sqrt(d)
  dot = lambda formula, x, y: jnp.einsum(
    formula, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32
  )
  scores = [
    jnp.where(part.seen[:, None, None], dot("bqghd,bkgd->bghqk", queries, part.keys), HIDDEN)
    for part in parts
  ]
  weights = jax.nn.softmax(jnp.concatenate(scores, -1), axis=-1)
  ends = np.cumsum([part.keys.shape[1] for part in parts])[:-1]
  means = [
    dot("bghqk,bkgd->bqghd", weight, part.values)
    for weight, part in zip(jnp.split(weights, ends, -1), parts, strict=True)
  ]
  return sum(means[1:], means[0]).reshape(b, length, heads * d)


def layer_indices(layers: Sequence[int], count: int) -> list[int]:
  """``layers`` counted from 0, the embeddings, to ``count``, the last layer's output.

  Raises:
    ValueError: if there is no such layer, or none is asked for.

  >>> layer_indices((-1, 0), 6)
  [6, 0]
  """
  if not layers:
    raise ValueError(f"layers is empty: name some of 0 (embeddings) to {count}, or -1 for the last")
  for layer in layers:
    if not -count - 1 <= layer <= count:
      raise ValueError(
        f"there is no layer {layer}: the model has 0 (embeddings) to {count}, or -1 (the last)"
        f" to {-count - 1}"
      )
  return [layer % (count + 1) for layer in layers]


def through(
  blocks: nnx.Module,
  x: jax.Array,
  layers: Sequence[int],
  step: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
  per_layer: Any = None,
  *,
  remat: bool = False,
  frozen: int = 0,
) -> tuple[jax.Array, jax.Array, Any]:
  """Takes ``x`` through stacked layers in a scan, so that one layer is compiled and not all.

  Args:
    blocks: a module whose parameters all have the layers as first axis.
    x: ``[b, l, d]``, what the first layer reads.
    layers: which states to keep, if any: 0 is ``x``, i what leaves layer i.
    step: ``(block, x, item) -> (x, item)`` with the block of one layer.
    per_layer: arrays with the layers as first axis, whose items ``step`` is given.
    remat: whether a backward pass works out anew what happens inside a layer, and keeps what enters
      it alone.
    frozen: layers, from the first on, that gradients do not go back into.

  Returns:
    ``x`` after the last layer, the kept states ``[len(layers), b, l, d]``, and the items stacked.
  """
  graph, stack = nnx.split(blocks)
  count = jax.tree.leaves(stack)[0].shape[0]
  slots = [[i for i, layer in enumerate(layers) if layer == at] for at in range(count + 1)]
  width = max(1, max(len(slot) for slot in slots))
  # A state that nobody asked for is written past the end, which drops it.
  table = jnp.asarray([slot + [len(layers)] * (width - len(slot)) for slot in slots], jnp.int32)
  kept = jnp.zeros((len(layers), *x.shape), x.dtype)
  # Into nothing, a scatter could not be differentiated.
  put = lambda kept, x, slots: kept.at[slots].set(x[None], mode="drop") if layers else kept

  def body(carry, layer):
    x, kept = carry
    state, slots, item = layer
    x, item = step(nnx.merge(graph, state), x, item)
    return (x, put(kept, x, slots)), item

  kept = put(kept, x, table[0])
  body = jax.checkpoint(body, prevent_cse=False) if remat else body
  inputs = (stack, table[1:], per_layer)
  if not frozen:
    (x, kept), items = lax.scan(body, (x, kept), inputs)
    return x, kept, items
  # Two scans: the backward pass of one alone would go through all of its layers.
  part = lambda *ends: jax.tree.map(lambda leaf: leaf[slice(*ends)], inputs)
  below, first = lax.scan(body, (x, kept), part(0, frozen))
  (x, kept), then = lax.scan(body, lax.stop_gradient(below), part(frozen, count))
  return x, kept, jax.tree.map(lambda *parts: jnp.concatenate(parts), first, then)
