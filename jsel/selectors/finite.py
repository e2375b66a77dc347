"""Constants of methods that are no numbers."""

import math


def check_finite(name: str, **constants: float | None) -> None:
  """Raises a ValueError that names the first of the ``constants`` of ``name`` that is not finite.

  Comparisons do not find a NaN: what is to be refused below 0 would let it pass.

  >>> check_finite("kmq", temperature=float("nan"))
  Traceback (most recent call last):
    ...
  ValueError: kmq.temperature must be a finite number, got nan: give one, or leave the default
  """
  for constant, value in constants.items():
    if value is not None and not math.isfinite(value):
      raise ValueError(
        f"{name}.{constant} must be a finite number, got {value}: give one, or leave the default"
      )
