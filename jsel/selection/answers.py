"""Answers of walks over a pool, kept in files so that a stopped run goes on where it was."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jsel.data.numpy_files import BROKEN
from jsel.training import outputs
from jsel.training.resuming import check_resumable

ABOUT = "run.json"


class Walked(NamedTuple):
  """What a walk has found so far."""

  done: int  # rows of the pool
  state: Any  # arrays, as a pytree
  rows: dict[str, np.ndarray]  # what was found of rows, whole; only those that were walked hold


class Answers:
  """A file for each walk of a run, in the order in which they are asked for.

  With several processes, process 0 writes and all read: the folder is one that they share.

  A file has the rows that were walked, the arrays of the state, which are told apart by their
  places in the request's own structure, and what was found of rows. It is whole or not there.

  Args:
    folder: made when there is something to keep.
    about: the run's "config", its "inputs" (hashes) and what else must not change ("versions").
    save_seconds: between two savings of one walk.
    warn: told of a file that is not used, and why.
  """

  def __init__(
    self,
    folder: epath.Path,
    about: Mapping[str, Any],
    *,
    save_seconds: float = 60.0,
    warn: Callable[[str], Any] = print,
  ):
    self._folder, self._about = folder, outputs.json_ready(about)
    self._seconds, self._warn = save_seconds, warn
    self._saved_at = time.monotonic()

  def open(self, *, harmless: tuple[str, ...], overwrite: bool) -> None:
    """Looks at what an earlier run has left.

    Args:
      harmless: keys of the config that may differ.
      overwrite: whether the answers of another run are removed.

    Raises:
      ValueError: if they are of another config or other inputs, and not to be overwritten.
    """
    if not self._folder.exists():
      return
    try:
      kept = json.loads((self._folder / ABOUT).read_text())
      config, inputs, versions = kept["config"], kept["inputs"], kept["versions"]
    except (OSError, ValueError, KeyError, TypeError):
      self._warn(f"{self._folder / ABOUT} is damaged: the walks are done again")
      self.remove()
      return
    try:
      check_same(config, inputs, self._about, harmless=harmless)
    except ValueError:
      if not overwrite:
        raise
      self.remove()
      return
    if versions != self._about["versions"]:
      self._warn(f"{self._folder} is of {versions}, now {self._about['versions']}: begun again")
      self.remove()

  def load(self, number: int, begin: Walked) -> Walked | None:
    """What is kept of walk ``number``; None if nothing is, or it is damaged or of another form.

    Args:
      number: of the walk, from 0.
      begin: the walk before its first row, whose structure the kept one must have.
    """
    path = self._path(number)
    if not path.exists():
      return None
    try:
      with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive.items())
      leaves, structure = jax.tree.flatten(begin.state)
      state = [arrays.pop(f"state.{at}") for at in range(len(leaves))]
      done = int(arrays.pop("done"))
      form = lambda array: (array.shape, array.dtype)
      rows = {name.removeprefix("rows."): array for name, array in arrays.items()}
      if [form(x) for x in state] != [form(np.asarray(x)) for x in leaves] or any(
        form(rows[name]) != form(array) for name, array in begin.rows.items()
      ):
        raise ValueError("of another form")
    except (*BROKEN, KeyError, TypeError) as error:
      self._warn(f"{path} is damaged ({type(error).__name__}): this walk begins again")
      return None
    return Walked(done, jax.tree.unflatten(structure, state), rows)

  def save(self, number: int, walked: Walked) -> None:
    """Keeps a walk, finished or not; in process 0."""
    if jax.process_index():
      return
    if not (self._folder / ABOUT).exists():
      self._folder.mkdir(parents=True, exist_ok=True)
      outputs.write_json(self._folder / ABOUT, self._about)
    state = jax.device_get(jax.tree.leaves(walked.state))
    arrays = {f"state.{at}": leaf for at, leaf in enumerate(state)}
    arrays |= {f"rows.{name}": array for name, array in walked.rows.items()}
    with outputs.whole_file(self._path(number)) as file:
      np.savez(file, allow_pickle=False, done=np.int64(walked.done), **arrays)
    self._saved_at = time.monotonic()

  def is_due(self) -> bool:
    """Whether an unfinished walk is to be saved now."""
    return time.monotonic() - self._saved_at >= self._seconds

  def remove(self) -> None:
    """Deletes all that is kept."""
    if self._folder.exists():
      self._folder.rmtree()

  def _path(self, number: int) -> epath.Path:
    return self._folder / f"walk-{number:03d}.npz"


def check_same(
  config: Mapping[str, Any],
  inputs: Mapping[str, str],
  about: Mapping[str, Any],
  *,
  harmless: tuple[str, ...],
) -> None:
  """Raises a ValueError that names how a run of ``config`` and ``inputs`` differs from this one."""
  remedy = "choose another --workdir, the same values, or --config.overwrite"
  check_resumable(config, about["config"], harmless=harmless, remedy=remedy)
  for name, now in about["inputs"].items():
    if inputs.get(name) != now:
      raise ValueError(
        f"the files of {name} are not what the run in the workdir had: their hash was"
        f" {str(inputs.get(name))[:12]}, now it is {now[:12]}: {remedy}"
      )
