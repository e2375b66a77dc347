"""What a selection will take, before it is begun: rows, bytes, memory and time."""

import math
import resource
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jsel.selection.pool import Pool
from jsel.selection.walk import block_rows
from jsel.selectors.parts import Cost
from jsel.training.amounts import clock, readable

BLOCKS = 5  # in memory at a time: read ahead, worked on, masked, on the devices, in transit
COLUMNS = 256  # of the product by which its rate is measured
PROGRAMS = 2**28  # bytes that compiling takes
COMPILING = 2.0  # seconds a walk


class Plan(NamedTuple):
  """Estimates, and the rates that they are made from."""

  rows: int
  width: int
  files: int
  block_rows: int
  walks: float  # with the one that checks rows
  read_bytes: float  # of embeddings as float32, of all walks
  flops: float
  peak_bytes: float
  seconds: float
  read_rate: float  # bytes of embeddings a second
  product_rate: float  # floating point operations a second


def make_plan(pool: Pool, cost: Cost) -> Plan:
  """Estimates from what a method says of itself, and rates measured on the pool's first block.

  Reading goes on while a block is worked on, but on the same processors: the times are added.

  Args:
    pool: to select from.
    cost: `jsel.selectors.parts.Method.cost`.
  """
  rows = block_rows(pool.size, pool.width)
  began = time.perf_counter()
  block = next(pool.blocks(rows))
  read_rate = block.nbytes / (time.perf_counter() - began)
  product_rate = measured_products(block)
  walks = cost.passes + 1
  read_bytes = walks * 4.0 * pool.size * pool.width
  held = BLOCKS * 4.0 * rows * pool.width + cost.held_bytes + 3.0 * pool.size + PROGRAMS
  return Plan(
    rows=pool.size,
    width=pool.width,
    files=len(pool.parts),
    block_rows=rows,
    walks=walks,
    read_bytes=read_bytes,
    flops=cost.flops,
    peak_bytes=peak_resident_bytes() + held,
    seconds=read_bytes / read_rate + cost.flops / product_rate + COMPILING * walks,
    read_rate=read_rate,
    product_rate=product_rate,
  )


def measured_products(block: np.ndarray) -> float:
  """Operations a second of a product with ``block`` whose largest are found, as methods do."""
  other = jnp.ones((block.shape[1], COLUMNS), jnp.float32)
  highest = jax.lax.Precision.HIGHEST
  product = jax.jit(lambda x, y: jnp.argmax(jnp.matmul(x, y, precision=highest), axis=1))
  x = jnp.asarray(block)
  jax.block_until_ready(product(x, other))
  seconds = []
  for _ in range(3):
    began = time.perf_counter()
    jax.block_until_ready(product(x, other))
    seconds.append(time.perf_counter() - began)
  return 2.0 * block.size * COLUMNS / min(seconds)


def peak_resident_bytes() -> int:
  """The most memory that this process has had, with what files back."""
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def lines(plan: Plan, method: str, *, picture: bool) -> list[str]:
  """The plan for people; with what a ``picture`` reads afterwards, which is no part of it."""
  walk = plan.read_bytes / plan.walks / plan.read_rate
  drawn = f"subset.png: one walk more, about {clock(walk)}; --config.picture=False saves it"
  return [
    f"{plan.rows:,} rows of {plan.width} columns in {plan.files} files,"
    f" {readable(4.0 * plan.rows * plan.width)} as float32, in blocks of {plan.block_rows:,} rows",
    f"{method}: about {clock(plan.seconds)} and {readable(plan.peak_bytes)} of memory:"
    f" {plan.walks:g} walks that read {readable(plan.read_bytes)} at"
    f" {readable(plan.read_rate)}/s, {plan.flops:.3g} operations at {plan.product_rate:.3g}/s",
    *([drawn] if picture else []),
  ]


def check_time(plan: Plan, method: str, *, slow_minutes: float, allow_slow: bool) -> None:
  """Raises a ValueError if the plan takes longer than ``slow_minutes`` and that is not allowed.

  ``slow_minutes`` that are not finite, or below 0, are one too, whatever is allowed.
  """
  # No time is longer than a NaN: the run would not be stopped.
  if not (math.isfinite(slow_minutes) and slow_minutes >= 0):
    raise ValueError(
      f"--config.slow_minutes={slow_minutes:g}: give a number of minutes of at least 0, or set"
      " --config.allow_slow=True for any time"
    )
  if plan.seconds > 60 * slow_minutes and not allow_slow:
    raise ValueError(
      f"method {method} would take about {clock(plan.seconds)} (hours:minutes:seconds) here, more"
      f" than --config.slow_minutes={slow_minutes:g}: set --config.allow_slow=True, a smaller"
      " budget, or another method"
    )
