"""What a super-batch is made of: consecutive pieces of a shuffle that never ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels.permutation import permute

BLOCK = 2**16  # positions permuted in one call
MAX_ROWS = 2**31 - 512


def candidate_ids(key: jax.Array, first_step: int, steps: int, s: int, n: int) -> np.ndarray:
  """The rows that the steps from ``first_step`` on are offered, ``s`` each.

  Step t has the positions [t s, (t + 1) s) of one long sequence: pass after pass over all rows,
  pass e in the order of the permutation that ``fold_in(key, e)`` names. So each row comes once a
  pass, and what a step is offered depends on the step alone. A step that two passes meet in may be
  offered a row twice, and one of s > n rows is.

  Args:
    key: typed key; the same on every process.
    first_step: of those asked for, from 0.
    steps: how many, at least 1. Ask for many at a time: a call costs some 0.2 ms.
    s: candidates of a step, of all processes together.
    n: rows of the pool, at most 2**31 - 512.

  Returns:
    int32 ``[steps, s]`` on the host, row ids in [0, n).

  Raises:
    ValueError: for numbers out of these ranges.

  >>> ids = candidate_ids(jax.random.key(0), 2, steps=3, s=4, n=6)
  >>> sorted(ids.reshape(-1)[4:10].tolist())  # positions 8 to 20, of which 12 to 17 are pass 2
  [0, 1, 2, 3, 4, 5]
  """
  for name, value, least in (("first_step", first_step, 0), ("steps", steps, 1), ("s", s, 1)):
    if value < least:
      raise ValueError(f"candidates need {name} of at least {least}, got {value}")
  if not 1 <= n <= MAX_ROWS:
    raise ValueError(f"candidates are drawn from 1 to 2**31 - 512 rows, got n = {n}")
  total = steps * s
  if (first_step * s + total - 1) // n >= 2**32:
    raise ValueError(f"{first_step + steps} steps of {s} from {n} rows are more than 2**32 passes")
  size = min(BLOCK, 1 << (min(total, n) - 1).bit_length())
  # Where there is a CPU backend beside an accelerator's: on that, ids would queue behind steps.
  device = _host_device()
  parts = []
  with jax.transfer_guard("allow"):
    words = np.asarray(jax.random.key_data(key))
    local = jax.device_put(jax.random.wrap_key_data(words, impl=jax.random.key_impl(key)), device)
    done = 0
    while done < total:
      number, offset = divmod(first_step * s + done, n)  # Python's integers, which do not overflow
      count = min(size, n - offset, total - done)
      place = jax.device_put((np.uint32(number), np.int32(offset), np.int32(n)), device)
      parts.append((_part(local, *place, size=size), count))
      done += count
    ids = np.concatenate([np.asarray(part)[:count] for part, count in parts])
  return ids.reshape(steps, s)


@functools.partial(jax.jit, static_argnames="size")
def _part(
  key: jax.Array, number: jax.Array, offset: jax.Array, n: jax.Array, *, size: int
) -> jax.Array:
  # Positions beyond n, wrapped around 2**31 or not, give ids that the caller cuts off.
  return permute(jax.random.fold_in(key, number), offset + jnp.arange(size, dtype=jnp.int32), n)


def _host_device() -> jax.Device:
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return jax.local_devices()[0]
