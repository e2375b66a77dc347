"""The files that a run leaves behind, each whole or not there."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
from etils import epath
from ml_collections import ConfigDict

import jsel
from jsel.data import files

_EXPOSURE = {
  "index": np.int32,
  "times_selected": np.int32,
  "first_step": np.int32,
  "last_step": np.int32,
  "last_loss": np.float32,
}


def is_remote(path: os.PathLike[str] | str) -> bool:
  """Whether ``path`` is in an object store.

  >>> is_remote("gs://bucket/run"), is_remote("runs/digits")
  (True, False)
  """
  return "://" in str(path)


def put(path: os.PathLike[str] | str, content: bytes) -> None:
  """Writes ``content`` so that ``path`` has all of it or is what it was before.

  Locally under a temporary name, then renamed; an object store does so by itself.
  """
  if is_remote(path):
    epath.Path(path).write_bytes(content)
    return
  with whole_file(path) as file:
    file.write(content)


@contextlib.contextmanager
def whole_file(path: os.PathLike[str] | str) -> Iterator[IO[bytes]]:
  """A file to write; where the block ends well, ``path`` has what was written, else what it had."""
  path = epath.Path(path)
  folder = Path(tempfile.gettempdir()) if is_remote(path) else path.parent
  temporary = Path(folder / f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # the rename must not reach the disk before the content
    if is_remote(path):
      files.put(str(temporary), str(path))
      temporary.unlink()
    else:
      os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def check_workdir(path: os.PathLike[str] | str) -> epath.Path:
  """Makes the directory ``path``, tries to write in it, and returns it absolute.

  Raises:
    ValueError: if it cannot be made or written.
  """
  workdir = epath.Path(path)
  workdir = workdir if is_remote(workdir) else workdir.expanduser().absolute()
  # Two hosts may give their processes the same number.
  probe = workdir / f".probe.{jax.process_index()}.{os.getpid()}"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b"")
    probe.unlink()
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise ValueError(
      f"cannot write to workdir {workdir}: {reason}. Choose another --workdir"
    ) from error
  return workdir


_HELD: dict[str, int] = {}


def hold(workdir: os.PathLike[str] | str) -> None:
  """Keeps other processes from running in ``workdir`` until this one ends, however it ends.

  The lock is of the folder itself, so that nothing is left behind. Object stores and
  file systems that lock no folders (NFS) are not guarded.

  Raises:
    ValueError: if another process holds it.
  """
  if is_remote(workdir) or str(workdir) in _HELD:
    return
  folder = os.open(workdir, os.O_RDONLY)
  try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(folder)
    raise ValueError(
      f"another run is at work in {workdir}: wait for it, stop it, or choose another --workdir"
    ) from error
  except OSError:
    os.close(folder)
    return
  _HELD[str(workdir)] = folder


# What tells the workdirs of the two commands apart.
KINDS = {
  "a training run": ("checkpoints", "metrics.jsonl"),
  "a subset of python -m jsel.select": ("subset.parquet", "progress"),
}


def check_holds_no(kind: str, workdir: epath.Path) -> None:
  """Raises a ValueError if ``workdir`` is that of the other command, whose files are named alike.

  Args:
    kind: a key of `KINDS`.
    workdir: a folder.
  """
  for name in KINDS[kind]:
    if (workdir / name).exists():
      raise ValueError(f"{workdir} holds {kind} ({name}): choose another --workdir")


def json_ready(value: Any, name: str = "value") -> Any:
  """``value`` as JSON holds it: NumPy and JAX scalars as numbers, NaN and infinities as None.

  Raises:
    ValueError: if there is something that JSON cannot hold, naming it.

  >>> json_ready({"loss": np.float32("nan"), "shape": (3, np.int64(4))})
  {'loss': None, 'shape': [3, 4]}
  """
  if isinstance(value, Mapping):
    return {str(key): json_ready(item, f"{name}.{key}") for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [json_ready(item, f"{name}[{at}]") for at, item in enumerate(value)]
  if isinstance(value, (jax.Array, np.ndarray, np.generic)):
    value = np.asarray(value)
    # bfloat16 is no float to NumPy: its item() would be a scalar of ml_dtypes.
    is_float = jax.dtypes.issubdtype(value.dtype, np.floating)
    return json_ready((value.astype(np.float64) if is_float else value).tolist(), name)
  if isinstance(value, (os.PathLike, np.dtype)):
    return str(value)
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  raise ValueError(f"{name} is a {type(value).__name__}, which JSON cannot hold: {value!r}")


def config_dict(config: ConfigDict) -> dict[str, Any]:
  """The resolved ``config`` as JSON holds it.

  >>> config_dict(ConfigDict({"model": {"widths": (8, 4)}}))
  {'model': {'widths': [8, 4]}}
  """
  return json_ready(config.to_dict(), "config")


def write_json(path: os.PathLike[str] | str, values: Mapping[str, Any]) -> None:
  """Writes ``values`` to ``path`` as indented JSON, whole or not at all (`json_ready`, `put`)."""
  text = json.dumps(json_ready(values), indent=2, ensure_ascii=False, allow_nan=False)
  put(path, f"{text}\n".encode())


def write_exposure(path: os.PathLike[str] | str, columns: Mapping[str, np.ndarray]) -> None:
  """Writes what happened to every example, a row each, as parquet.

  Args:
    path: of exposure.parquet.
    columns: ``[n]`` each: "index", "times_selected", "first_step", "last_step"
      (stored as int32), "last_loss" (float32), and the scores of the selector. In
      rows with ``times_selected`` 0 the steps become -1 and the loss NaN.

  Raises:
    ValueError: if a column is missing, is not 1-D or has another length.
  """
  missing = [name for name in _EXPOSURE if name not in columns]
  if missing:
    raise ValueError(f"exposure lacks the columns {missing}: it has {list(columns)}")
  arrays = {name: np.asarray(columns[name]) for name in [*_EXPOSURE, *columns]}
  for name, array in arrays.items():
    if array.shape != (arrays["index"].size,):
      raise ValueError(
        f"column {name} of exposure has shape {array.shape}, need ({arrays['index'].size},)"
      )
  never = arrays["times_selected"] == 0
  arrays["first_step"] = np.where(never, -1, arrays["first_step"])
  arrays["last_step"] = np.where(never, -1, arrays["last_step"])
  arrays["last_loss"] = np.where(never, np.nan, arrays["last_loss"].astype(np.float32))
  for name, array in arrays.items():
    is_float = jax.dtypes.issubdtype(
      array.dtype, np.floating
    )  # bfloat16 is one, and no parquet type
    arrays[name] = array.astype(_EXPOSURE.get(name, np.float32 if is_float else array.dtype))
  buffer = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
  put(path, buffer.getvalue())


def manifest(
  *, data: Mapping[str, Any], seed: int, started: datetime.datetime | None = None
) -> dict[str, Any]:
  """Where a run comes from: what must be the same for it to come out the same.

  Args:
    data: "name", "source" and "sha256" of the data.
    seed: of the run.
    started: now if None.

  Returns:
    A dict for manifest.json. Lists what JAX sees, so it starts the backend.
  """
  devices = jax.devices()
  started = started or datetime.datetime.now(datetime.UTC)
  return {
    "started": started.astimezone(datetime.UTC).isoformat(timespec="seconds"),
    "versions": {"python": platform.python_version(), "jsel": jsel.__version__}
    | {
      name: _version(package)
      for name, package in (
        ("jax", "jax"),
        ("jaxlib", "jaxlib"),
        ("flax", "flax"),
        ("optax", "optax"),
        ("orbax", "orbax-checkpoint"),
        ("numpy", "numpy"),
      )
    },
    "git": _git(Path(jsel.__file__).parents[1]),
    "devices": {
      "platform": devices[0].platform,
      "kind": devices[0].device_kind,
      "count": len(devices),
      "processes": jax.process_count(),
    },
    "host": {
      "system": platform.platform(),
      "cpus": os.cpu_count(),
      # It pins the CPU thread pool, and with it the order of CPU sums.
      "NPROC": os.environ.get("NPROC"),
    },
    "data": json_ready({name: data.get(name) for name in ("name", "source", "sha256")} | {**data}),
    "seed": int(seed),
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git(checkout: Path) -> dict[str, Any] | None:
  """Commit of ``checkout`` and whether it was changed since; None if it is no checkout of git."""

  def git(*command: str) -> str:
    run = subprocess.run(
      ["git", "-C", str(checkout), *command], capture_output=True, text=True, timeout=10, check=True
    )
    return run.stdout.strip()

  try:
    if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
      return None  # jsel is installed below somebody else's checkout
    return {
      "commit": git("rev-parse", "HEAD"),
      "clean": not git("status", "--porcelain", "--untracked-files=no"),
    }
  except (OSError, subprocess.SubprocessError):
    return None
