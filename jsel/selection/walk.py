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
from jsel.selection import hosts
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

  With several processes each of them has to make the same walks: it reads of every block the rows
  of its own devices (`Pool.blocks` says of what less cannot be read), all stop at the same block,
  and process 0 keeps the answers, where all find them again.

  Args:
    pool: to walk over.
    mesh: that blocks are split over.
    report: told what is done, rows so far (0 at first) and rows in all.
    stop: asked between blocks whether to raise `Stopped`.
    answers: where walks are kept, if anywhere.
  """

  def __init__(
    self,
    pool: Pool,
    mesh: Mesh,
    *,
    report: Callable[[str, int, int], Any] = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
    answers: Answers | None = None,
  ):
    self.pool, self.mesh, self.rows = pool, mesh, block_rows(pool.size, pool.width)
    self.split = sharding.rows_sharding(mesh)
    self.of_processes = sharding.rows_of_processes(self.split, self.rows)
    self.own = self.of_processes[jax.process_index()]  # of a block, the rows that are read here
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
      step: ``(state, rows, start, x) -> state`` of the block that begins at row ``start``, of
        which ``x`` is the part `own`; what it fills of ``rows`` is of the whole block.
      keep: whether a later run is to have what this walk finds.
    """
    number, self._asked = self._asked, self._asked + 1
    answers = self._answers if keep else None
    walked = Walked(0, state, rows)
    kept = answers.load(number, walked) if answers else None
    done, state, rows = kept or walked
    hosts.check_alike(f"the walk {name!r} and how far it is", name, self.pool.size, done, state)
    self._report(name, done, self.pool.size)
    for start, x in self._blocks(done):
      if self._stop():
        if answers:
          answers.save(number, Walked(start, state, rows))
        raise Stopped
      state = step(state, rows, start, x)
      done = min(start + self.rows, self.pool.size)
      if jax.process_count() > 1:
        jax.block_until_ready(state)  # what it exchanges comes before what is agreed on next
      if answers and answers.is_due():
        answers.save(number, Walked(done, state, rows))
      self._report(name, done, self.pool.size)
    state = jax.device_get(state)
    if answers and (kept is None or kept.done < done):
      answers.save(number, Walked(done, state, rows))
    return state, rows

  def whole(self, columns: dict[str, Any], start: int) -> dict[str, np.ndarray]:
    """Columns of the block that begins at row ``start``, from those of the own rows of it."""
    count = min(self.rows, self.pool.size - start)
    if jax.process_count() > 1:
      size = self.own[1] - self.own[0]
      padded = lambda x: np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)])
      place = lambda x: sharding.place_own(padded(x), self.split, self.rows)
      columns = sharding.on_every_host(jax.tree.map(place, columns))
    return {name: column[:count] for name, column in columns.items()}

  def _blocks(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks and where they start; the next one is read while one is worked on."""
    if start == self.pool.size:
      return
    blocks = self.pool.blocks(self.rows, start, own=self.own)
    with ThreadPoolExecutor(1) as reader:
      ahead = reader.submit(next, blocks, None)
      while (x := hosts.agree(ahead.result)) is not None:
        ahead = reader.submit(next, blocks, None)
        yield start, x
        start += self.rows


class Walker:
  """Answers a method's requests.

  Args:
    walks: over the pool.
    eligible: ``[n]`` bool, the rows that may be taken.
    tell: is handed the method's notes.
  """

  def __init__(
    self,
    walks: Walks,
    eligible: np.ndarray,
    *,
    tell: Callable[[Note], Any] = lambda _: None,
  ):
    self._walks, self._eligible, self._tell = walks, eligible, tell

  def __call__(self, request: Pass | Take | Note) -> Any:
    """The answer of a request (`jsel.selectors.parts`)."""
    if isinstance(request, Note):
      return self._tell(request)
    return take(self._walks, request.index) if isinstance(request, Take) else self._pass(request)

  def _pass(self, request: Pass) -> tuple[Any, dict[str, np.ndarray]]:
    walks, same = self._walks, sharding.replicated(self._walks.mesh)
    update = compiled(request.update, walks.mesh)
    hosts.check_alike(f"what {request.name!r} begins with", request.shared)
    shared = replicate(request.shared, same)
    first, end = walks.own
    size, count = walks.pool.size, end - first

    def step(state: Any, found: dict[str, np.ndarray], start: int, x: np.ndarray) -> Any:
      valid = np.zeros(count, bool)
      valid[: len(x)] = self._eligible[start + first : start + first + len(x)]
      padded = np.zeros((count, x.shape[1]), np.float32) if len(x) < count else x
      # What may not be taken has no influence, not even where it is no number.
      padded[: len(x)] = np.where(valid[: len(x), None], x, 0)
      block = Block(
        sharding.place_own(padded, walks.split, walks.rows),
        sharding.place_own(valid, walks.split, walks.rows),
        replicate(np.int32(start), same),
      )
      # One block is worked on at a time: where reading is faster, the whole pool would queue up.
      state = jax.block_until_ready(replicate(state, same))
      state, rows = update(state, shared, block)
      for name, column in sharding.on_every_host(rows).items():
        if name not in found:
          found[name] = np.zeros((size, *column.shape[1:]), column.dtype)
        found[name][start : start + walks.rows] = column[: size - start]
      return state

    return walks(request.name, request.state, {}, step)


def replicate(tree: Any, same: NamedSharding) -> Any:
  """Arrays that every process has, on every device of the mesh."""
  if jax.process_count() == 1:
    return jax.device_put(tree, same)
  is_there = lambda x: isinstance(x, jax.Array) and not x.is_fully_addressable
  return jax.tree.map(lambda x: x if is_there(x) else sharding.place(np.asarray(x), same), tree)


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
    cuts = [np.searchsorted(wanted, [start + a, start + b]) for a, b in walks.of_processes]
    first, last = cuts[jax.process_index()]
    mine = x[wanted[first:last] - start - walks.own[0]]
    if len(cuts) == 1:
      found["taken"][order[first:last]] = mine
      return state
    most = max(int(last - first) for first, last in cuts)
    if most:
      room = 1 << (most - 1).bit_length()  # one of few sizes: each is compiled for
      padded = np.pad(mine, [(0, room - len(mine)), (0, 0)])
      for (first, last), some in zip(cuts, hosts.gathered(padded), strict=True):
        found["taken"][order[first:last]] = some[: last - first]
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
