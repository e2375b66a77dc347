"""How a command ends: exit code 2 and one line for the user's mistakes, a traceback for ours."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging

import jsel

USERS_MISTAKE = 2
# What Gloo and JAX's coordination service say of a peer whose connection is closed, or is silent.
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "Read timeout")
_GONE += ("heartbeat",)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def run_main(main: Callable[[list[str]], int], *, default_config: str) -> None:
  """Parses the flags, runs ``main`` and exits with what it returns.

  A ValueError that jsel raised itself, and any flag that does not parse, is the
  user's mistake: one line on stderr and exit code 2; so is a full or read-only disk.
  Ctrl-C before there is anything to save ends with 130. Where another process of the run
  is gone, the line says so and the exit code is 1. Errors from elsewhere keep
  their traceback.
  """
  logging.set_verbosity(logging.WARNING)
  _make_room_for_collectives()
  if not any(a == "--config" or a.startswith("--config=") for a in sys.argv):
    # Not the flag's own default: that is parsed, and a mistake raised, where the flag is defined.
    sys.argv.insert(1, f"--config={default_config}")
  sys.argv = _config_first(sys.argv)
  app.run(lambda argv: sys.exit(_guarded(main, argv)), flags_parser=_parse)


def _make_room_for_collectives() -> None:
  """Gives forced CPU devices four threads each, unless NPROC says how many.

  A collective that waits holds a thread, and a program's collectives wait side
  by side: with XLA's default, a thread a device, devices lock each other out.
  """
  forced = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
  devices = int(os.environ.get("JAX_NUM_CPU_DEVICES") or (forced[1] if forced else 1))
  if devices > 1:
    os.environ.setdefault("NPROC", str(4 * devices))


def repeat_bitwise() -> None:
  """Asks XLA for GPU operations that give the same bits in every run; before JAX has a device."""
  flags_given = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{flags_given} --xla_gpu_deterministic_ops=true".strip()


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (KeyError, AttributeError) as error:  # of a locked config
    near = re.search(r'Did you mean \\?"([^"\\]+)', str(error.args[0]))
    given = next((a for a in argv[1:] if a.split("=")[0].split(".")[-1] in str(error)), "--config")
    remedy = f"did you mean {near[1]!r}?" if near else "see the config's file for its keys"
    _fail(ValueError(f"no such key: {given.split('=')[0]}: {remedy}"))
  except (flags.Error, ValueError, TypeError, OSError) as error:
    _fail(error)


def _config_first(argv: list[str]) -> list[str]:
  """``argv`` with the config's file before its keys, which can only be set once it is read."""
  first, others, left = [], [], iter(argv[1:])
  for argument in left:
    if argument == "--config":
      argument = f"--config={next(left, '')}"
    name, _, path = argument.partition("=")
    (first if name == "--config" else others).append(argument)
    # What follows a colon is for the file.
    if name == "--config" and not Path(path.split(":")[0]).is_file():
      _fail(ValueError(f"there is no config file {path}: correct --config"))
  return [argv[0], *first, *others]


def _guarded(main: Callable[[list[str]], int], argv: list[str]) -> int:
  if len(argv) > 1:
    _fail(ValueError(f"unexpected argument {argv[1]!r}: options are --config.KEY=VALUE"))
  try:
    return main(argv)
  except Exception as error:
    lost = _lost_process(error)
    if lost:
      _leave(lost)
    is_mistake = isinstance(error, (ValueError, FloatingPointError)) and _raised_by_jsel(error)
    is_full = isinstance(error, OSError) and error.errno in _FULL
    if not is_mistake and not is_full:
      raise
    _fail(error)
  except KeyboardInterrupt:
    return 130


def _lost_process(error: BaseException | None) -> str | None:
  """What an error says of a process of the same run that is gone; None if it says nothing."""
  if not jax.distributed.is_initialized():
    return None
  while error:
    for line in str(error).splitlines():
      if any(sign in line for sign in _GONE):
        return line.strip()[:200]
    error = error.__cause__ or error.__context__
  return None


def _leave(lost: str) -> NoReturn:
  """Ends at once: on a usual exit JAX waits for all processes, and one will not come."""
  print(
    f"{Path(sys.argv[0]).name}: error: another process of this run is gone: the same command in"
    f" every process goes on from the last checkpoint ({lost})",
    file=sys.stderr,
  )
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def _raised_by_jsel(error: BaseException) -> bool:
  file = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
  return Path(jsel.__file__).parent in file.parents or file == Path(sys.argv[0]).resolve()


def _fail(error: BaseException) -> NoReturn:
  line = " ".join(str(error).split())
  print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
  sys.exit(USERS_MISTAKE)
