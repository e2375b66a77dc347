"""What the processes of a selection tell each other on the host, each time all of them.

Where there is one process, nothing is said: what it finds holds.
"""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Found = TypeVar("Found")
TOLD = 1024  # bytes of a mistake's message that the others are told


def is_first() -> bool:
  """Whether this is the process that writes, prints and holds the workdir."""
  return jax.process_index() == 0


def agree(work: Callable[[], Found]) -> Found:
  """What ``work`` gives, once it has ended well in every process.

  Args:
    work: asks nothing of the other processes.

  Raises:
    ValueError: in every process, with the message of the first of them whose ``work`` raised one,
      or could not read or write a file; in that process, its own error.
  """
  if jax.process_count() == 1:
    return work()
  found, mistake = None, None
  try:
    found = work()
  except (ValueError, OSError) as error:
    mistake = error
  text = np.zeros(TOLD, np.uint8)
  said = (str(mistake) or type(mistake).__name__).encode()[:TOLD] if mistake else b""
  text[: len(said)] = np.frombuffer(said, np.uint8)
  told = [bytes(row).rstrip(b"\0") for row in gathered(text)]
  if mistake:
    raise mistake
  if any(told):
    raise ValueError(next(filter(None, told)).decode(errors="ignore"))
  return found  # pyrefly: ignore[bad-return]


def of_first(work: Callable[[], Any]) -> bool:
  """Whether ``work`` gives something true in process 0, which alone does it.

  Raises:
    ValueError: as `agree`.
  """
  found = agree(lambda: bool(work()) if is_first() else False)
  return found if jax.process_count() == 1 else bool(gathered(np.int32(found))[0])


def check_alike(what: str, *facts: Any) -> None:
  """Raises a ValueError in every process unless ``facts``, arrays and others, are equal in all."""
  if jax.process_count() == 1:
    return
  digest = hashlib.sha256()
  for fact in jax.device_get(jax.tree.leaves(facts)):
    digest.update(fact.tobytes() if isinstance(fact, np.ndarray) else repr(fact).encode())
  told = gathered(np.frombuffer(digest.digest(), np.uint8))
  if (told != told[0]).any():
    raise ValueError(
      f"the processes of this selection differ in {what}: give all of them the same files, one"
      " --workdir and the same options, on hosts of one kind"
    )


def gathered(x: Any) -> np.ndarray:
  """``x [...]``, of one shape in every process, of all of them: ``[processes, ...]``."""
  return multihost_utils.process_allgather(x)
