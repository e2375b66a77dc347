"""The covariance of a pool that comes in parts."""

import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp

from jsel.kernels import moments
from jsel.kernels.rows import AxisName
from jsel.selectors.parts import Block, Pass, Task


def covariance(task: Task) -> Generator[Pass, Any, moments.Moments]:
  """Moments of the rows that may be taken, their covariance among them: one walk."""
  start = moments.init(task.width, covariance=True)
  seen, _ = yield Pass("covariance", start, (), _seer(task.axis_name))
  return jax.tree.map(jnp.asarray, seen)


@functools.cache
def _seer(axis_name: AxisName) -> Callable[..., Any]:
  def update(seen: moments.Moments, shared: Any, block: Block):
    del shared
    return moments.update(seen, block.x, valid=block.valid, axis_name=axis_name), {}

  return update
