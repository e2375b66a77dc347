"""Fine-tuning a language model on answers, all of it or its last layers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jsel.models.llama import Llama
from jsel.models.token_loss import token_loss


class Tuning(NamedTuple):
  """What a fine-tuning step changes."""

  trained: Any  # parameters by their path
  opt_state: Any


class Tuner(NamedTuple):
  """A model that is being fine-tuned; made by `make_tuner`."""

  step: Callable[..., tuple[Tuning, jax.Array]]  # donates the tuning it is given
  model: Callable[[Tuning], Llama]


def make_tuner(model: Llama, optimizer: optax.GradientTransformation) -> tuple[Tuner, Tuning]:
  """Steps on the mean loss of answers' tokens, of the layers of ``model`` that are not frozen.

  ``step(tuning, tokens, mask, prompt) -> (tuning, loss)`` takes ``tokens`` and ``mask [b, l]``, and
  in ``prompt [b]`` how many of a row's tokens are not learnt; ``loss [b]`` is the mean of a row's
  others, before the update, NaN where there are none. What is frozen has neither gradients nor an
  optimizer's state.

  Args:
    model: whose ``frozen`` says how many layers stay as they are; the first step may give its
      arrays up.
    optimizer: an Optax transformation.

  Returns:
    The tuner, and what its first step is given.
  """
  graph, state = nnx.split(model)
  shapes = jax.eval_shape(lambda: state)
  trained, rest = divided(nnx.to_pure_dict(state), model.frozen)

  def merged(trained: Any, rest: Any) -> Llama:
    state = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(state, joined(trained, rest))
    return nnx.merge(graph, state)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(tuning: Tuning, rest: Any, tokens: jax.Array, mask: jax.Array, prompt: jax.Array):
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    learnt = mask & (place >= jnp.maximum(prompt, 1)[:, None])

    def mean_loss(trained: Any) -> tuple[jax.Array, jax.Array]:
      loss = jnp.where(learnt, token_loss(merged(trained, rest), tokens, mask), 0)
      count = learnt.astype(jnp.float32)
      return loss.sum() / jnp.maximum(count.sum(), 1), loss.sum(1) / count.sum(1)

    gradients, rows = jax.grad(mean_loss, has_aux=True)(tuning.trained)
    updates, opt_state = optimizer.update(gradients, tuning.opt_state, tuning.trained)
    return Tuning(optax.apply_updates(tuning.trained, updates), opt_state), rows

  tuner = Tuner(
    lambda tuning, *batch: step(tuning, rest, *batch),
    lambda tuning: merged(tuning.trained, rest),
  )
  return tuner, Tuning(trained, optimizer.init(trained))


def divided(whole: dict[str, Any], frozen: int) -> tuple[dict[str, Any], dict[str, Any]]:
  """The parameters of a `Llama` that are trained, and those of ``frozen`` layers and the words."""
  if not frozen:
    return whole, {}
  part = lambda *ends: jax.tree.map(lambda leaf: leaf[slice(*ends)], whole["blocks"])
  trained = {name: leaf for name, leaf in whole.items() if name not in ("blocks", "words")}
  trained["blocks"] = part(frozen, None)
  return trained, {"words": whole["words"], "blocks": part(0, frozen)}


def joined(trained: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
  """What `divided` took apart."""
  if not rest:
    return trained
  blocks = jax.tree.map(lambda *parts: jnp.concatenate(parts), rest["blocks"], trained["blocks"])
  return {**trained, "words": rest["words"], "blocks": blocks}
