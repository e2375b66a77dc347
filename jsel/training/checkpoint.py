"""Checkpoints: everything that a resume needs, on whatever mesh the resume has."""

import concurrent.futures
import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jsel.training import digests, outputs

# Orbax tells every stage of every save at INFO, and errors that its threads meet with a traceback,
# which `Checkpoints.wait` raises too; its other warnings and errors pass.
absl_logging.get_absl_logger().addFilter(
  lambda record: (
    "orbax" not in record.pathname or (record.levelno >= logging.WARNING and not record.exc_info)
  )
)

_SCALARS = (bool, int, float, str)


class Checkpoints:
  """The checkpoints of a run: ``directory/STEP/``, the newest ``keep`` of them.

  A save returns when the state is copied to the host and goes on in the
  background: the caller may donate the state right after. A step becomes visible
  when it is complete and not before, so that a process may be killed at any time.
  Orbax does not check what it reads, so every local step has digests of its files:
  on opening, the newest steps that are damaged are set aside with a warning that
  names the file, as long as a whole one is before them.

  Leaves are `jax.Array` of any dtype and size (PRNG keys too), or Python numbers
  and strings; they are stored by name, whatever containers hold them.

  Args:
    directory: where the steps lie, made if missing; local, or ``gs://`` and the like.
    keep: how many of the newest steps stay.

  Raises:
    ValueError: if ``keep`` is less than 1, or all steps are damaged (naming a file).

  Example:
    >>> import tempfile
    >>> state = {"w": jax.numpy.ones(3), "key": jax.random.key(0)}
    >>> with Checkpoints(tempfile.mkdtemp(), keep=2) as checkpoints:
    ...   checkpoints.save(7, state, {"data": "digits"})
    ...   checkpoints.wait()
    ...   step = checkpoints.latest()
    ...   restored, metadata = checkpoints.restore(step, abstract(state))
    >>> step, restored["w"].tolist(), metadata
    (7, [1.0, 1.0, 1.0], {'data': 'digits'})
  """

  def __init__(self, directory: os.PathLike[str] | str, *, keep: int):
    if keep < 1:
      raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
    self.directory = epath.Path(directory)
    if "://" not in str(directory):
      self.directory = self.directory.absolute()  # Orbax refuses relative paths
    self.directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      _set_incomplete_aside(self.directory)
      if not outputs.is_remote(self.directory):  # object stores check what they keep themselves
        _set_damaged_aside(self.directory)
    if jax.process_count() > 1:  # the others must not count those before
      multihost_utils.sync_global_devices("jsel_checkpoints_set_aside")
    self._saved: int | None = None
    self._sealer = concurrent.futures.ThreadPoolExecutor(1, "seal")
    self._sealed: concurrent.futures.Future[None] | None = None
    policies = ocp.training
    self._checkpointer = policies.Checkpointer(
      self.directory,
      # When to save is the loop's decision: `save` forces it.
      save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
    """Starts to save ``state`` as ``step``, after the save before has ended.

    A step that is there already is left as it is: the same step of the same run
    holds the same state.

    Args:
      step: the number of the step.
      state: a pytree with at least one array.
      metadata: JSON: numbers, strings, lists and dicts with string keys.

    Raises:
      ValueError: if a leaf or the metadata cannot be stored, or the save before failed.
    """
    # The step that is being saved just now is not complete for one process and is for another.
    if step == self._saved or step in self._steps():
      return
    leaves = _by_name(state)
    arrays = {n: x for n, x in leaves.items() if isinstance(x, jax.Array) and x.size}
    try:
      about = {
        "leaves": {name: _describe(name, leaf) for name, leaf in leaves.items()},
        "scalars": {name: x for name, x in leaves.items() if isinstance(x, _SCALARS)},
        "metadata": json.loads(json.dumps(dict(metadata))),
      }
    except TypeError as error:
      raise ValueError(f"the metadata of a checkpoint must be JSON: {error}") from error
    self.wait()
    try:
      response = self._checkpointer.save_async(step, arrays, force=True, custom_metadata=about)
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
      raise self._cannot_write(error) from error
    self._sealed = self._sealer.submit(self._seal, step, response)
    self._saved = step

  def metadata(self, step: int) -> dict[str, Any]:
    """The metadata of ``step``, which is complete."""
    path = self.directory / str(step) / "_CHECKPOINT_METADATA"
    return json.loads(path.read_text())["custom_metadata"]["metadata"]

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return max(self._steps(), default=None)

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
    """The state and the metadata of ``step``, each array placed as ``abstract_state`` says.

    Args:
      step: a step that is complete.
      abstract_state: the state's structure with `jax.ShapeDtypeStruct` leaves that
        have shardings of the mesh in use, which need not be the mesh that saved
        (`abstract` makes it of a state); Python numbers and strings stand for
        their type.

    Returns:
      ``(state, metadata)``.

    Raises:
      ValueError: if there is no such step, if the state differs from the saved one
        (naming the leaf), or if the files cannot be read (naming the path).
    """
    if step not in self._steps():
      raise ValueError(
        f"no checkpoint of step {step} in {self.directory}: there are {self._steps()}"
      )
    path = self.directory / str(step)
    wanted = _by_name(abstract_state)
    about = json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    _check_same(
      path, about["leaves"], {name: _describe(name, leaf) for name, leaf in wanted.items()}
    )
    unplaced = [name for name, x in wanted.items() if getattr(x, "sharding", ...) is None]
    if unplaced:
      raise ValueError(
        f"leaf {unplaced[0]} of the state to restore has no sharding: give its "
        "jax.ShapeDtypeStruct one of the mesh in use"
      )
    in_files = {n: x for n, x in wanted.items() if not isinstance(x, _SCALARS) and 0 not in x.shape}
    try:
      arrays = self._checkpointer.load(step, abstract(in_files))
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
      reason = str(error).splitlines()[0][:200] if str(error) else ""
      raise ValueError(
        f"checkpoint {path} cannot be read: move it away to resume from the step before it "
        f"({type(error).__name__}: {reason})"
      ) from error
    stored = cast(dict[str, jax.Array], arrays)
    empty = lambda x: jax.device_put(jax.numpy.empty(x.shape, x.dtype), x.sharding)
    leaves = [
      about["scalars"][n] if n in about["scalars"] else stored[n] if n in stored else empty(x)
      for n, x in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), about["metadata"]

  def wait(self) -> None:
    """Returns when everything that was saved is complete.

    Raises:
      ValueError: if it could not be written.
    """
    sealed, self._sealed = self._sealed, None
    try:
      if sealed:
        sealed.result()
      self._checkpointer.wait()
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
      raise self._cannot_write(error) from error

  def close(self) -> None:
    """Waits, then releases threads and files."""
    try:
      self.wait()
    except ValueError:
      with contextlib.suppress(Exception):  # Orbax raises again what the save met
        self._checkpointer.close()
      raise
    else:
      self._checkpointer.close()
    finally:
      self._sealer.shutdown()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _seal(self, step: int, response: Any) -> None:
    response.result()
    if jax.process_index() == 0 and not outputs.is_remote(self.directory):
      digests.seal(Path(self.directory / str(step)))

  def _cannot_write(self, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0][:200] if str(error) else ""
    return ValueError(
      f"a checkpoint cannot be written to {self.directory}: the same command goes on from the one"
      f" before once there is space ({type(error).__name__}: {reason})"
    )

  def _steps(self) -> list[int]:
    saving = self._checkpointer.is_saving_in_progress()
    steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
    # Orbax counts a step from the start of its save.
    return [s for s in steps if not saving or _is_complete(self.directory / str(s))]


def abstract(state: Any) -> Any:
  """``state`` with its arrays replaced by their shape, dtype and sharding.

  >>> abstract({"w": jax.numpy.ones(3), "n": 2})["w"].shape
  (3,)
  """
  to_struct = lambda x: (
    x if isinstance(x, _SCALARS) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  )
  return jax.tree.map(to_struct, state)


def _by_name(state: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(state)
  named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
  if len(named) < len(leaves):
    raise ValueError("two leaves of the state have one name: a key of a dict may not contain a dot")
  return named


def _describe(name: str, leaf: Any) -> str:
  if isinstance(leaf, _SCALARS):
    return type(leaf).__name__
  if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
    return f"{leaf.dtype}{list(leaf.shape)}"
  raise ValueError(
    f"leaf {name} of the state is a {type(leaf).__name__}: a checkpoint holds jax.Array, "
    "Python numbers and strings"
  )


def _check_same(path: epath.Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
  missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
  changed = sorted(name for name in saved.keys() & wanted.keys() if saved[name] != wanted[name])
  some = lambda names: ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
  differences = [f"it lacks {some(missing)}"] if missing else []
  differences += [f"it has {some(extra)} besides"] if extra else []
  differences += [f"{n} is {saved[n]} there and {wanted[n]} here" for n in changed[:3]]
  if differences:
    raise ValueError(
      f"checkpoint {path} is of another state: {'; '.join(differences)}. "
      "Use the config that it was saved with, or another workdir"
    )


def _is_complete(path: epath.Path) -> bool:
  """Whether ``path`` is a step that was saved to its end."""
  try:
    about = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    return "leaves" in about["custom_metadata"] and bool(about["commit_timestamp_nsecs"])
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _set_incomplete_aside(directory: epath.Path) -> None:
  """Renames steps that are not whole, e.g. half a copy: Orbax would count them among the newest."""
  steps = [p for p in directory.iterdir() if p.name.isdigit()]
  # One that has digests was complete: it is damaged, which `_set_damaged_aside` tells apart.
  incomplete = [p for p in steps if not _is_complete(p) and not (p / digests.NAME).exists()]
  for path in incomplete:
    aside = directory / f"{path.name}.incomplete"
    absl_logging.warning("checkpoint %s is incomplete and ignored: now %s", path, aside.name)
    if aside.exists():
      aside.rmtree()
    path.rename(aside)


def _set_damaged_aside(directory: epath.Path) -> None:
  """Renames the newest steps that are not as they were written, if a whole one is before them."""
  steps = sorted((int(p.name) for p in directory.iterdir() if p.name.isdigit()), reverse=True)
  damaged: list[tuple[Path, str]] = []
  for step in steps:
    path = Path(directory / str(step))
    damage = digests.find_damage(path)
    if damage is None:
      break
    if damage == f"{digests.NAME} is missing":
      # A process killed after its save and before the digests: complete all the same.
      absl_logging.warning("checkpoint %s has no %s: read unchecked", path, digests.NAME)
      break
    damaged.append((path, damage))
  else:
    if damaged:
      path, damage = damaged[0]
      raise ValueError(
        f"checkpoint {path} is damaged and none before it is whole: {damage}. Restore it from a"
        f" copy, or move {directory} away to begin anew"
      )
  for path, damage in damaged:
    aside = epath.Path(directory / f"{path.name}.damaged")
    absl_logging.warning("checkpoint %s is damaged and ignored: %s", path, damage)
    if aside.exists():
      aside.rmtree()
    path.rename(aside)
