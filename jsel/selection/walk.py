"""Walks over a pool that a method asks for, block by block, on all devices."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsel import sharding
from jsel.selection.pool import Pool
from jsel.selectors.parts import Block, Pass, Take

BLOCK = 65_536  # rows, at the most
BLOCK_BYTES = 2**28


class Stopped(Exception):
  """The walk was asked to stop between two blocks."""


class Walker:
  """Answers a method's requests.

  Args:
    pool: to walk over.
    eligible: ``[n]`` bool, the rows that may be taken.
    mesh: that blocks are split over.
    report: told what is done, rows so far and rows in all.
    stop: asked between blocks whether to raise `Stopped`.
  """

  def __init__(
    self,
    pool: Pool,
    eligible: np.ndarray,
    mesh: Mesh,
    *,
    report: Callable[[str, int, int], Any] = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
  ):
    self._pool, self._eligible, self._mesh = pool, eligible, mesh
    self._report, self._stop = report, stop
    self._rows = block_rows(pool.size, pool.width)
    self._steps: dict[Any, Any] = {}

  def __call__(self, request: Pass | Take) -> Any:
    """The answer of a request (`jsel.selectors.parts`)."""
    return self._take(request.index) if isinstance(request, Take) else self._pass(request)

  def _pass(self, request: Pass) -> tuple[Any, dict[str, np.ndarray]]:
    split, same = sharding.rows_sharding(self._mesh), NamedSharding(self._mesh, P())
    step = self._step(request.update)
    state, shared = jax.device_put((request.state, request.shared), same)
    found: dict[str, np.ndarray] = {}
    for start, x in self._blocks(request.name):
      valid = np.zeros(self._rows, bool)
      valid[: len(x)] = self._eligible[start : start + len(x)]
      padded = np.zeros((self._rows, self._pool.width), np.float32) if len(x) < self._rows else x
      # What may not be taken has no influence, not even where it is no number.
      padded[: len(x)] = np.where(valid[: len(x), None], x, 0)
      block = Block(
        sharding.place(padded, split),
        sharding.place(valid, split),
        jax.device_put(np.int32(start), same),
      )
      state, rows = step(state, shared, block)
      for name, column in jax.device_get(rows).items():
        if name not in found:
          found[name] = np.empty((self._pool.size, *column.shape[1:]), column.dtype)
        found[name][start : start + len(x)] = column[: len(x)]
    return jax.device_get(state), found

  def _take(self, index: np.ndarray) -> np.ndarray:
    order = np.argsort(index, kind="stable")
    wanted = index[order]
    taken = np.empty((len(index), self._pool.width), np.float32)
    for start, x in self._blocks("reading rows"):
      first, last = np.searchsorted(wanted, [start, start + len(x)])
      taken[order[first:last]] = x[wanted[first:last] - start]
    return taken

  def _blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks and where they start; the next one is read while one is worked on."""
    blocks, start = self._pool.blocks(self._rows), 0
    with ThreadPoolExecutor(1) as reader:
      ahead = reader.submit(next, blocks, None)
      while (x := ahead.result()) is not None:
        ahead = reader.submit(next, blocks, None)
        if self._stop():
          raise Stopped
        yield start, x
        start += len(x)
        self._report(name, start, self._pool.size)

  def _step(self, update: Callable[..., Any]) -> Any:
    if update not in self._steps:
      rows = P(sharding.row_axes(self._mesh))
      self._steps[update] = jax.jit(
        jax.shard_map(
          update,
          mesh=self._mesh,
          in_specs=(P(), P(), Block(rows, rows, P())),  # pyrefly: ignore
          out_specs=(P(), rows),
        )
      )
    return self._steps[update]


def block_rows(size: int, width: int) -> int:
  """Rows of a block: a multiple of 512 that depends on the pool alone.

  >>> block_rows(5_000_000, 384), block_rows(1797, 64)
  (65536, 2048)
  """
  most = max(BLOCK_BYTES // (4 * width) // 512 * 512, 512)
  return min(BLOCK, most, sharding.padded_size(size))
