"""The optimizer that a config section describes, as an Optax transformation."""

import jax
import optax
from ml_collections import ConfigDict


def make_optimizer(
  config: ConfigDict, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The transformation and its learning-rate schedule, both counted in steps.

  Weight decay leaves vectors (biases, BatchNorm scales) alone.

  Raises:
    ValueError: if a name is unknown or a value out of its range.
  """
  if config.learning_rate <= 0:
    raise ValueError(f"optimizer.learning_rate must be positive, got {config.learning_rate}")
  if not 0 <= config.warmup_steps < total_steps:
    raise ValueError(
      f"optimizer.warmup_steps must be in [0, {total_steps}), the steps of the run, got"
      f" {config.warmup_steps}"
    )
  decay_steps = total_steps - config.warmup_steps
  if config.schedule == "cosine":
    schedule = optax.cosine_decay_schedule(config.learning_rate, decay_steps)
  elif config.schedule == "constant":
    schedule = optax.constant_schedule(config.learning_rate)
  else:
    raise ValueError(f"optimizer.schedule must be 'cosine' or 'constant', got {config.schedule!r}")
  if config.warmup_steps:
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    schedule = optax.join_schedules([warmup, schedule], [config.warmup_steps])
  is_matrix = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  if config.name == "adamw":
    rule = optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_matrix)
  elif config.name == "sgd":
    rule = optax.chain(
      optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
      optax.sgd(schedule, momentum=config.momentum, nesterov=True),
    )
  else:
    raise ValueError(f"optimizer.name must be 'adamw' or 'sgd', got {config.name!r}")
  if config.clip_norm < 0:
    raise ValueError(f"optimizer.clip_norm must not be negative, got {config.clip_norm}")
  clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  return optax.chain(*clip, rule), schedule
