"""Losses, with the per-row outputs that selectors may ask for."""

import jax
import jax.numpy as jnp
import optax

from jsel.models import Outputs

# The built-in per-row outputs of `classification`.
FEEDBACK = ("loss", "probability", "features", "grad_norm", "correct")


def classification(outputs: Outputs, labels: jax.Array) -> dict[str, jax.Array]:
  """Cross-entropy of every row and what else can be said of it; unused entries cost nothing in jit.

  Args:
    outputs: ``logits [b, classes]`` and ``features [b, f]``.
    labels: ``[b]`` int32.

  Returns:
    ``loss`` (nats), ``probability`` of the label, ``correct`` (0 or 1),
    ``grad_norm`` (of the loss by the last layer's weights and bias), each
    ``[b]`` float32, and ``features [b, f]``.
  """
  logits = outputs.logits
  log_probability = jax.nn.log_softmax(logits)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  error = jnp.exp(log_probability) - jax.nn.one_hot(labels, logits.shape[1], dtype=jnp.float32)
  squares = lambda x: jnp.sum(x.astype(jnp.float32) ** 2, axis=1)
  return {
    "loss": loss,
    "probability": jnp.exp(-loss),
    "correct": (logits.argmax(axis=1) == labels).astype(jnp.float32),
    "features": outputs.features,
    "grad_norm": jnp.sqrt(squares(error) * (squares(outputs.features) + 1)),
  }
