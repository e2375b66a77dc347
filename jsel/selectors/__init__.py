"""Selectors, by name: each a factory of pure functions that compose kernels."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from jsel.selectors.base import (
  Batch,
  Candidates,
  Columns,
  Picks,
  Plan,
  Pool,
  Selector,
  with_fit,
)
from jsel.selectors.dac_rounds import dac_rounds
from jsel.selectors.full import full
from jsel.selectors.infobatch import infobatch
from jsel.selectors.loss import loss
from jsel.selectors.random import random
from jsel.selectors.rep_div import rep_div
from jsel.selectors.rep_div_plain import rep_div_plain
from jsel.selectors.rs2 import rs2

SELECTORS: dict[str, Callable[..., Selector]] = {
  "dac_rounds": dac_rounds,
  "full": full,
  "infobatch": infobatch,
  "loss": loss,
  "random": random,
  "rep_div": rep_div,
  "rep_div_plain": rep_div_plain,
  "rs2": rs2,
}
# What a run knows and a method may need; everything else in a factory's signature is a constant.
CONTEXT = ("size", "rows", "total_steps", "optimizer", "axis_name")

__all__ = [
  "SELECTORS",
  "Batch",
  "Candidates",
  "Columns",
  "Picks",
  "Plan",
  "Pool",
  "Selector",
  "constants",
  "make",
  "plan_rows",
  "with_fit",
]


def factory(name: str) -> Callable[..., Selector]:
  """The selector of that name.

  Raises:
    ValueError: if there is none, naming the nearest.
  """
  if name not in SELECTORS:
    near = difflib.get_close_matches(name, SELECTORS, 1, 0)
    raise ValueError(
      f"no selector {name!r}: did you mean {near[0]!r}? There are {', '.join(SELECTORS)}"
    )
  return SELECTORS[name]


def constants(name: str) -> dict[str, Any]:
  """The constants of a selector and their defaults.

  >>> constants("loss")
  {'epsilon': 0.1, 'decay': 0.8}
  """
  parameters = inspect.signature(factory(name)).parameters.values()
  return {p.name: p.default for p in parameters if p.name not in CONTEXT}


def plan_rows(name: str, *, size: int, ratio: float | None) -> int:
  """How many of ``size`` examples the selector plans an epoch, ``round(ratio * size)``.

  The default of ``ratio`` is 1 for ``full`` and 0.5 for the others.
  ``infobatch`` has none: its plans start at ``size`` and shrink.

  Raises:
    ValueError: if the selector takes no such ratio, or it is not in (0, 1].

  >>> plan_rows("rs2", size=1000, ratio=0.3)
  300
  """
  if "rows" not in inspect.signature(factory(name)).parameters:
    if ratio is not None:
      raise ValueError(
        f"selector.ratio={ratio} has no meaning for {name}, which has"
        f" {', '.join(constants(name))}: leave the ratio None"
      )
    return size
  if ratio is None:
    ratio = 1.0 if name == "full" else 0.5
  if not 0 < ratio <= 1:
    raise ValueError(f"selector.ratio must be in (0, 1], got {ratio}")
  if name == "full" and ratio != 1:
    raise ValueError(f"selector.ratio={ratio} with full, which takes all: choose rs2 for a part")
  rows = round(ratio * size)
  if rows < 1:
    raise ValueError(f"selector.ratio={ratio} of {size} examples is less than one: raise it")
  return rows


def make(name: str, **options: Any) -> Selector:
  """Builds a selector from what the run knows (`CONTEXT`) and its own constants.

  Args:
    name: a key of `SELECTORS`.
    **options: constants of the selector, and all of `CONTEXT`, of which it
      takes what it needs.

  Raises:
    ValueError: if the name or a constant is unknown, or out of its range.

  >>> make("rs2", size=1000, rows=300, total_steps=10, optimizer=None, axis_name=None).most
  300
  """
  build = factory(name)
  known = inspect.signature(build).parameters
  for option in options:
    if option not in known and option not in CONTEXT:
      near = difflib.get_close_matches(option, constants(name), 1, 0)
      hint = f": did you mean {near[0]!r}?" if near else ": it has none"
      raise ValueError(f"selector {name} has no constant {option!r}{hint}")
  return build(**{option: value for option, value in options.items() if option in known})
