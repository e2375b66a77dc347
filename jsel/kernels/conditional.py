"""Work that is done under a condition."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def changed_if(condition: jax.Array, change: Callable[[Any], Any], x: Any) -> Any:
  """``change(x)`` where ``condition`` holds, else ``x``: a loop of one turn at most.

  A ``lax.cond`` would have XLA on CPU run the rest of a training step on other threads, which costs
  it 8 % of a small one.

  >>> changed_if(jnp.bool_(True), lambda x: 2 * x, jnp.int32(3)).item()
  6
  """
  once = lambda loop: (jnp.bool_(False), change(loop[1]))
  return jax.lax.while_loop(lambda loop: loop[0], once, (condition, x))[1]
