"""Rows sent from the devices that hold them to those that want them, in rounds of fixed size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jsel.kernels import bits
from jsel.kernels.rows import AxisName, axis_size

SECOND_ROUND = 0.01  # of exchanges of random rows may need one


@functools.cache
def capacity(wanted: int, devices: int) -> int:
  """Rows that a device sends to each other one in a round of `exchange`.

  Of ``wanted`` random rows, a device holds binomially many, wanted / devices in
  the mean. This is the least number that no pair of devices exceeds in 99 of 100
  exchanges (by a sum over the pairs).

  >>> capacity(128, 8), capacity(1024, 8), capacity(16, 256)
  (31, 168, 4)
  """
  if devices == 1:
    return wanted
  count = np.arange(wanted + 1)
  log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(count[1:], 1)))])
  ways = log_factorial[-1] - log_factorial - log_factorial[::-1]
  here, elsewhere = np.log(1 / devices), np.log(1 - 1 / devices)
  exactly = np.exp(ways + count * here + count[::-1] * elsewhere)
  more_than = np.append(np.cumsum(exactly[::-1])[::-1][1:], 0.0)
  return max(int(np.argmax(devices**2 * more_than <= SECOND_ROUND)), 1)


def exchange(x: jax.Array, index: jax.Array, axis_name: AxisName) -> jax.Array:
  """The rows ``x[index]``, of which each device gets its b / D consecutive ones.

  Every device knows ``index`` whole, so each works out what it has to send, in
  which order its own rows arrive and how many rounds there are, without a word.
  A round is an all-to-all of `capacity` rows a pair. Rounds after the first,
  which an uneven ``index`` needs, run in a loop: whatever the distribution, the
  result is exact and the memory that of one round.

  Args:
    x: ``[n / D, ...]`` the rows of this device, of any real dtype or bool.
    index: ``int32[b]`` global row ids, the same on every device; b is a multiple
      of D. Outside of [0, n) the row is zeros.
    axis_name: mesh axis (or axes) that the rows are split over.
  """
  devices, me = axis_size(axis_name), jax.lax.axis_index(axis_name)
  size, wanted = x.shape[0], index.shape[0] // devices
  places = capacity(wanted, devices)
  everyone = jnp.arange(devices, dtype=jnp.int32)
  valid = (index >= 0) & (index < size * devices)
  owner = jnp.where(valid, index // size, devices).reshape(devices, wanted)

  # To send: position k of this list is the k-th row of mine that anybody wants, in the order of
  # the destinations, whose own start at `starts`.
  mine = (owner == me).ravel()
  until = jnp.cumsum(mine, dtype=jnp.int32)
  listed = jnp.where(mine, until - 1, index.shape[0])
  local = jnp.zeros_like(until).at[listed].set(index - me * size, mode="drop")
  per_pair = (owner[:, None, :] == everyone[None, :, None]).sum(2, dtype=jnp.int32)
  my_counts = jnp.take(per_pair, me, axis=1)
  starts = jnp.cumsum(my_counts, dtype=jnp.int32) - my_counts

  # To receive: row i of mine is the `rank`-th that its owner sends me.
  from_whom = jnp.take(owner, me, axis=0)
  among = from_whom[None, :] == everyone[:, None]
  rank = jnp.where(among, jnp.cumsum(among, axis=1, dtype=jnp.int32) - 1, 0).sum(0, dtype=jnp.int32)

  def receive(round_: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The rows that arrive in a round, and which of mine are among them."""
    first = round_ * places
    slot = (starts + first)[:, None] + jnp.arange(places, dtype=jnp.int32)[None]
    # A slot that nobody waits for carries any row.
    row = jnp.take(local, slot.ravel(), mode="clip")
    sent = bits.to_integers(jnp.take(x, row, axis=0, mode="clip"))
    received = jax.lax.all_to_all(sent, axis_name, 0, 0, tiled=True)
    place = rank - first
    here = (place >= 0) & (place < places) & (from_whom < devices)
    rows = jnp.take(received, from_whom * places + place, axis=0, mode="clip")
    return rows, here.reshape(-1, *(1,) * (x.ndim - 1))

  rows, here = receive(0)
  rows = jnp.where(here, rows, jnp.zeros((), rows.dtype))
  if places < wanted:
    rounds = (per_pair.max() + places - 1) // places

    def another(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      round_, rows = carry
      more, here = receive(round_)
      return round_ + 1, jnp.where(here, more, rows)

    # The first stands outside of the loop, in which the CPU would do it on one thread.
    _, rows = jax.lax.while_loop(lambda carry: carry[0] < rounds, another, (jnp.int32(1), rows))
  return bits.from_integers(rows, x.dtype)
