"""Walks over a pool that a method asks for, block by block, on all devices."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jsel import sharding
from jsel.selection.answers import Answers, Walked
from jsel.selection.pool import Pool
from jsel.selectors.parts import Block, Note, Pass, Take

BLOCK = 65_536  # rows, at the most
BLOCK_BYTES = 2**28
KEPT_BYTES = 2**28  # of rows that were read: more are read again sooner than written


class Stopped(Exception):
  """The walk was asked to stop between two blocks."""


class Walks:
  """Walks over ``pool``, one after another; those of an earlier run are not walked again.

  Args:
    pool: to walk over.
    report: told what is done, rows so far (0 at first) and rows in all.
    stop: asked between blocks whether to raise `Stopped`.
    answers: where walks are kept, if anywhere.
  """

  def __init__(
    self,
    pool: Pool,
    *,
    report: Callable[[str, int, int], Any] = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
    answers: Answers | None = None,
  ):
    self.pool, self.rows = pool, block_rows(pool.size, pool.width)
    self._report, self._stop, self._answers = report, stop, answers
    self._asked = 0

  def __call__(
    self,
    name: str,
    state: Any,
    rows: dict[str, np.ndarray],
    step: Callable[[Any, dict[str, np.ndarray], int, np.ndarray], Any],
    *,
    keep: bool = True,
  ) -> tuple[Any, dict[str, np.ndarray]]:
    """The state after the last block, and what was found of rows.

    Args:
      name: of what the walk does.
      state: before the first block.
      rows: to be filled by ``step``, which may add to them.
      step: ``(state, rows, start, x) -> state`` of the block ``x`` that begins at row ``start``.
      keep: whether a later run is to have what this walk finds.
    """
    number, self._asked = self._asked, self._asked + 1
    answers = self._answers if keep else None
    walked = Walked(0, state, rows)
    kept = answers.load(number, walked) if answers else None
    done, state, rows = kept or walked
    self._report(name, done, self.pool.size)
    for start, x in self._blocks(done):
      if self._stop():
        if answers:
          answers.save(number, Walked(start, state, rows))
        raise Stopped
      state = step(state, rows, start, x)
      done = start + len(x)
      if answers and answers.is_due():
        answers.save(number, Walked(done, state, rows))
      self._report(name, done, self.pool.size)
    state = jax.device_get(state)
    if answers and (kept is None or kept.done < done):
      answers.save(number, Walked(done, state, rows))
    return state, rows

  def _blocks(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks and where they start; the next one is read while one is worked on."""
    if start == self.pool.size:
      return
    blocks = self.pool.blocks(self.rows, start)
    with ThreadPoolExecutor(1) as reader:
      ahead = reader.submit(next, blocks, None)
      while (x := ahead.result()) is not None:
        ahead = reader.submit(next, blocks, None)
        yield start, x
        start += len(x)


class Walker:
  """Answers a method's requests.

  Args:
    walks: over the pool.
    eligible: ``[n]`` bool, the rows that may be taken.
    mesh: that blocks are split over.
    tell: is handed the method's notes.
  """

  def __init__(
    self,
    walks: Walks,
    eligible: np.ndarray,
    mesh: Mesh,
    *,
    tell: Callable[[Note], Any] = lambda _: None,
  ):
    self._walks, self._eligible, self._mesh, self._tell = walks, eligible, mesh, tell

  def __call__(self, request: Pass | Take | Note) -> Any:
    """The answer of a request (`jsel.selectors.parts`)."""
    if isinstance(request, Note):
      return self._tell(request)
    return take(self._walks, request.index) if isinstance(request, Take) else self._pass(request)

  def _pass(self, request: Pass) -> tuple[Any, dict[str, np.ndarray]]:
    split, same = sharding.rows_sharding(self._mesh), NamedSharding(self._mesh, P())
    update = compiled(request.update, self._mesh)
    shared = jax.device_put(request.shared, same)
    size, count = self._walks.pool.size, self._walks.rows

    def step(state: Any, found: dict[str, np.ndarray], start: int, x: np.ndarray) -> Any:
      valid = np.zeros(count, bool)
      valid[: len(x)] = self._eligible[start : start + len(x)]
      padded = np.zeros((count, x.shape[1]), np.float32) if len(x) < count else x
      # What may not be taken has no influence, not even where it is no number.
      padded[: len(x)] = np.where(valid[: len(x), None], x, 0)
      block = Block(
        sharding.place(padded, split),
        sharding.place(valid, split),
        jax.device_put(np.int32(start), same),
      )
      # One block is worked on at a time: where reading is faster, the whole pool would queue up.
      jax.block_until_ready(state)
      state, rows = update(jax.device_put(state, same), shared, block)
      for name, column in jax.device_get(rows).items():
        if name not in found:
          found[name] = np.zeros((size, *column.shape[1:]), column.dtype)
        found[name][start : start + len(x)] = column[: len(x)]
      return state

    return self._walks(request.name, request.state, {}, step)


@functools.lru_cache(maxsize=64)
def compiled(update: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """`Pass.update` over ``mesh``; kept, so that a later selection compiles nothing again."""
  rows = P(sharding.row_axes(mesh))
  return jax.jit(
    jax.shard_map(
      update,
      mesh=mesh,
      in_specs=(P(), P(), Block(rows, rows, P())),  # pyrefly: ignore
      out_specs=(P(), rows),
    )
  )


def take(walks: Walks, index: np.ndarray) -> np.ndarray:
  """The rows ``index`` of the pool, in any order, float32 ``[m, d]``."""
  order = np.argsort(index, kind="stable")
  wanted = index[order]

  def step(state: tuple[()], found: dict[str, np.ndarray], start: int, x: np.ndarray) -> Any:
    first, last = np.searchsorted(wanted, [start, start + len(x)])
    found["taken"][order[first:last]] = x[wanted[first:last] - start]
    return state

  taken = np.zeros((len(index), walks.pool.width), np.float32)
  keep = taken.nbytes <= KEPT_BYTES
  return walks("reading rows", (), {"taken": taken}, step, keep=keep)[1]["taken"]


def block_rows(size: int, width: int) -> int:
  """Rows of a block: a multiple of 512 that depends on the pool alone.

  >>> block_rows(5_000_000, 384), block_rows(1797, 64)
  (65536, 2048)
  """
  most = max(BLOCK_BYTES // (4 * width) // 512 * 512, 512)
  return min(BLOCK, most, sharding.padded_size(size))
