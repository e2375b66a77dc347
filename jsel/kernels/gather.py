"""Rows of a sharded pool by global index."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jsel.kernels import bits
from jsel.kernels.exchange import capacity, exchange
from jsel.kernels.rows import AxisName, axis_size, row_count, rows

Method = Literal["auto", "reduce_scatter", "all_to_all"]
WORTHWHILE = 2**20  # bytes that a device need not move


@rows("x", out=False)
def gather(
  x: jax.Array,
  index: jax.Array,
  *,
  split: bool = False,
  method: Method = "auto",
  axis_name: AxisName = None,
) -> jax.Array:
  """The rows ``x[index]``, wherever they are, bit by bit: NaN and -0.0 arrive as they were.

  Sharding: rows of ``x`` may be split over ``axis_name``, ``index`` is the same
  on every device. Bitwise the same on any device count, by any method. Each
  device takes those rows that it holds and zeros for the others; as integers of
  the same bits they are summed by one all-reduce of the ``b`` rows. With
  ``split`` there are two ways:

  - ``reduce_scatter`` is one reduce-scatter of the ``b`` rows: every device
    holds and moves D times what it gets.
  - ``all_to_all`` sends a row from where it is to where it is wanted, in rounds
    of c rows for every pair of devices (`jsel.kernels.exchange`); c D rows leave
    a device and as many arrive, and it holds both. c is what 99 of 100 draws of
    random ids need, so that the others take a second round: for 1,024 ids on 8
    devices 31, which makes 248 rows instead of 1,024; for 8,192 it is 168 and
    makes 1,344; for 4,096 on 256 devices 4, so 1,024. The worst ids, all of
    them on one device, take b / D / c rounds: b rows in all, in the same memory.
  - ``auto`` is ``all_to_all`` where a round moves at least 2**20 bytes less.
    An interconnect of 100 GB/s needs ten microseconds for them, and so, about,
    does an accelerator to work out who sends what. (The CPU gains from a third.)

  Args:
    x: ``[n, ...]`` rows of any real dtype or bool.
    index: ``int32[b]`` global row ids. Outside of [0, n) the row is zeros.
    split: give each device its b / D consecutive rows only, instead of all.
      This is for use inside a ``jax.shard_map`` of one's own, with
      ``out_specs`` that split the rows; it is no option of ``jsel.shard``.
    method: how rows are moved with ``split``.
    axis_name: mesh axis (or axes) that the rows are split over, inside
      ``jax.shard_map`` or ``jax.pmap``; None on one device.

  Returns:
    ``[b, ...]`` of the dtype of ``x``, or ``[b / D, ...]`` with ``split``.

  Raises:
    ValueError: if ``index`` is not int32 of one axis, or, with ``split``, does
      not divide among the devices; if there is no such ``method``, or one is
      named without ``split``.

  Example:
    >>> gather(jnp.array([[1, 2], [3, 4]]), jnp.array([1, -1])).tolist()
    [[3, 4], [0, 0]]
  """
  if index.ndim != 1 or index.dtype != jnp.int32:
    raise ValueError(f"index must be int32 [b], got {index.dtype} {index.shape}")
  if not x.ndim or jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise ValueError(f"x must be rows of a real dtype or bool, got {x.dtype} {x.shape}")
  if method not in ("auto", "reduce_scatter", "all_to_all"):
    raise ValueError(f"method must be auto, reduce_scatter or all_to_all, got {method!r}")
  if method != "auto" and not split:
    raise ValueError(f"method={method!r} is of gather with split=True: leave it out, or split")
  row_count(x.shape[0], axis_name)  # not too many
  x = jnp.asarray(x)  # in 32 bits, where JAX has no more
  devices = axis_size(axis_name)
  if split and index.shape[0] % devices:
    raise ValueError(
      f"{index.shape[0]} rows do not split over {devices} devices: take a multiple, or split=False"
    )
  if split and devices > 1:
    if method == "auto":
      method = choose(index.shape[0], math.prod(x.shape[1:]) * x.dtype.itemsize, devices)
    if method == "all_to_all":
      return exchange(x, index, axis_name)
  count = x.shape[0]
  if not count:
    return jnp.zeros((index.shape[0], *x.shape[1:]), x.dtype)
  local = index if axis_name is None else index - jax.lax.axis_index(axis_name) * count
  here = (local >= 0) & (local < count)
  taken = jnp.take(x, jnp.clip(local, 0, count - 1), axis=0, mode="clip")
  # In integers: the CPU selects among bfloat16 as float32, which quiets a NaN.
  taken = bits.to_integers(taken)
  taken = jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), taken, jnp.zeros((), taken.dtype))
  if axis_name is not None and not (split and devices == 1):
    # Every backend can sum words of 8 or 32 bits over devices.
    word = jnp.uint8 if taken.dtype.itemsize < 4 else jnp.uint32
    words = jax.lax.bitcast_convert_type(taken, word)
    if split:
      words = jax.lax.psum_scatter(words, axis_name, scatter_dimension=0, tiled=True)
    else:
      words = jax.lax.psum(words, axis_name)
    taken = jax.lax.bitcast_convert_type(words, taken.dtype)
  return bits.from_integers(taken, x.dtype)


def choose(rows: int, row_bytes: int, devices: int) -> Method:
  """The method of ``auto`` for ``rows`` ids of rows of ``row_bytes`` each.

  >>> choose(1024, 224 * 224 * 3, 8), choose(1024, 4, 8)
  ('all_to_all', 'reduce_scatter')
  """
  moved = devices * capacity(rows // devices, devices)
  return "all_to_all" if (rows - moved) * row_bytes >= WORTHWHILE else "reduce_scatter"
