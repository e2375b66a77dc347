"""How many rows a run plans and how many steps it takes."""

from typing import NamedTuple

from ml_collections import ConfigDict

from jsel import selectors


class Budget(NamedTuple):
  """Rows and steps of a run."""

  epoch_rows: int  # rows that the selector plans for an epoch, ratio * n
  plan_rows: int  # rows in a plan
  steps_per_epoch: int
  steps_per_plan: int
  total_steps: int


def make_budget(config: ConfigDict, size: int) -> Budget:
  """The budget of ``config`` on a pool of ``size`` rows.

  Raises:
    ValueError: if the numbers are out of range or contradict each other.
  """
  name, batch_size = config.selector.name, config.batch_size
  refresh_steps, fit_step = config.selector.refresh_steps, config.selector.fit_step
  epoch_rows = selectors.plan_rows(name, size=size, ratio=config.selector.ratio)
  for key in ("refresh_steps", "fit_step"):
    if config.selector[key] < 0:
      raise ValueError(f"selector.{key} must not be negative, got {config.selector[key]}")
  if refresh_steps and name in ("random", "infobatch"):
    raise ValueError(
      f"selector.refresh_steps={refresh_steps} with {name}, which plans a whole epoch: set it to 0"
    )
  plan_rows = refresh_steps * batch_size or epoch_rows
  if plan_rows > size:
    raise ValueError(
      f"selector.refresh_steps={refresh_steps} plans {plan_rows} rows of {size}: choose at most"
      f" {size // batch_size}"
    )
  if config.steps is not None and config.steps < 1:
    raise ValueError(f"steps must be at least 1, got {config.steps}")
  if config.epochs <= 0:
    raise ValueError(f"epochs must be positive, got {config.epochs}")
  for key in ("log_every", "eval_every", "checkpoint_every", "eval_batch_size"):
    if config[key] is not None and config[key] < 1:
      raise ValueError(f"{key} must be at least 1, got {config[key]}")
  total_steps = config.steps or max(round(config.epochs * epoch_rows / batch_size), 1)
  if fit_step >= total_steps:
    raise ValueError(f"selector.fit_step={fit_step} is past the last step, {total_steps - 1}")
  return Budget(
    epoch_rows,
    plan_rows,
    max(epoch_rows // batch_size, 1),
    max(plan_rows // batch_size, 1),
    total_steps,
  )
