"""Methods that choose a subset of a pool in parts, by name."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from jsel.selectors.crds_r import crds_r
from jsel.selectors.crds_w import crds_w
from jsel.selectors.dac import dac
from jsel.selectors.deita import deita
from jsel.selectors.k_center import k_center
from jsel.selectors.km_closest import km_closest
from jsel.selectors.km_random import km_random
from jsel.selectors.kmq import kmq
from jsel.selectors.longest import longest
from jsel.selectors.parts import Method
from jsel.selectors.qdit import qdit
from jsel.selectors.random import random_order
from jsel.selectors.rds import rds
from jsel.selectors.sensitivity import sensitivity
from jsel.selectors.sensitivity_regression import sensitivity_regression

METHODS: dict[str, Callable[..., Method]] = {
  "crds_r": crds_r,
  "crds_w": crds_w,
  "dac": dac,
  "deita": deita,
  "k_center": k_center,
  "km_closest": km_closest,
  "km_random": km_random,
  "kmq": kmq,
  "longest": longest,
  "qdit": qdit,
  "random": random_order,
  "rds": rds,
  "sensitivity": sensitivity,
  "sensitivity_regression": sensitivity_regression,
}


def constants(name: str) -> dict[str, Any]:
  """The constants of a method and their defaults.

  >>> constants("rds")
  {'duplicates': 'next_best'}
  """
  return {p.name: p.default for p in inspect.signature(_factory(name)).parameters.values()}


def make(name: str, **options: Any) -> Method:
  """The method of that name.

  Raises:
    ValueError: if there is none, or it has no such constant, naming the nearest.

  >>> make("kmq", clusters=8).needs
  ('score',)
  """
  build = _factory(name)
  known = constants(name)
  for option in options:
    if option not in known:
      near = difflib.get_close_matches(option, known, 1, 0)
      hint = f": did you mean {near[0]!r}?" if near else ": it has none"
      raise ValueError(f"method {name} has no constant {option!r}{hint}")
  return build(**options)


def _factory(name: str) -> Callable[..., Method]:
  if name not in METHODS:
    near = difflib.get_close_matches(name, METHODS, 1, 0)
    raise ValueError(
      f"no method {name!r}: did you mean {near[0]!r}? There are {', '.join(METHODS)}"
    )
  return METHODS[name]
