"""Contenders that do the same work in turns, in one process, timed."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Contender(NamedTuple):
  """Who does the work, and how it was told to."""

  name: str
  work: Callable[[], Any]  # its result, complete or on its way
  settings: str
  finish: Callable[[Any], Any] = jax.block_until_ready  # waits for the result


class Times(NamedTuple):
  """Of one contender, in seconds."""

  first: float  # the first call: compiling, or warming up
  turns: list[float]

  def summary(self) -> dict[str, Any]:
    """What a result keeps of them."""
    low, _, high = np.percentile(self.turns, [25, 50, 75])
    return {
      "first_seconds": self.first,
      "seconds": statistics.median(self.turns),
      "least": min(self.turns),
      "quartiles": [float(low), float(high)],
      "turns": len(self.turns),
    }


def take_turns(
  contenders: list[Contender], *, repeats: int, seconds: float, rest: float = 0.0
) -> tuple[dict[str, Times], dict[str, Any]]:
  """Each works once, apart; then all in turns, ``repeats`` times, or while ``seconds`` last.

  With a ``rest``, nothing is done for so many seconds before a turn, until the threads of the one
  before no longer wait for work in a loop, which on two cores takes one of them; then the work is
  done once untimed, since what has rested starts slowly.

  Returns:
    The times by name, and each one's first result.
  """
  firsts, results = {}, {}
  for contender in contenders:
    begin = time.perf_counter()
    results[contender.name] = contender.finish(contender.work())
    firsts[contender.name] = time.perf_counter() - begin
  turns: dict[str, list[float]] = {contender.name: [] for contender in contenders}
  began = time.perf_counter()
  for turn in range(repeats):
    if turn >= min(3, repeats) and time.perf_counter() - began > seconds:
      break
    # Nobody always follows the same one.
    for contender in contenders if turn % 2 else contenders[::-1]:
      if rest:
        time.sleep(rest)
        contender.finish(contender.work())
      begin = time.perf_counter()
      contender.finish(contender.work())
      turns[contender.name].append(time.perf_counter() - begin)
  return {name: Times(firsts[name], turns[name]) for name in turns}, results
