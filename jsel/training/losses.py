"""Losses, with the per-row outputs that selectors may ask for."""

import jax
import jax.numpy as jnp
import optax

from jsel.models import Outputs

# The built-in per-row outputs of `classification`.
FEEDBACK = ("loss", "probability", "features", "grad_norm", "correct", "gap")


def classification(
  outputs: Outputs, labels: jax.Array, *, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
  """Cross-entropy of every row and what else can be said of it; unused entries cost nothing in jit.

  Args:
    outputs: ``logits [b, classes]`` and ``features [b, f]``.
    labels: ``[b]`` int32.
    label_smoothing: this share of a row's target is spread evenly over all classes.

  Returns:
    ``loss`` (nats), ``probability`` of the label, ``correct`` (0 or 1),
    ``grad_norm`` (of the loss by the last layer's weights and bias), ``gap``
    (of the log-probabilities of what is predicted and of the label, 0 where they
    are one), each ``[b]`` float32, and ``features [b, f]``.

  Raises:
    ValueError: if ``label_smoothing`` is not in [0, 1).
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
  logits = outputs.logits
  classes = logits.shape[1]
  log_probability = jax.nn.log_softmax(logits)
  of_label = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  loss = of_label
  target = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
  if label_smoothing:
    loss = (1 - label_smoothing) * of_label - label_smoothing * log_probability.mean(axis=1)
    target = (1 - label_smoothing) * target + label_smoothing / classes
  error = jnp.exp(log_probability) - target
  squares = lambda x: jnp.sum(x.astype(jnp.float32) ** 2, axis=1)
  return {
    "loss": loss,
    "probability": jnp.exp(-of_label),
    "correct": (logits.argmax(axis=1) == labels).astype(jnp.float32),
    "gap": log_probability.max(axis=1) + of_label,
    "features": outputs.features,
    "grad_norm": jnp.sqrt(squares(error) * (squares(outputs.features) + 1)),
  }
