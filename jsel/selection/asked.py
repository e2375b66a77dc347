"""What a config asks for, read from its files."""

import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jsel.data import files
from jsel.data.digest import files_sha256
from jsel.selection.checks import check_budget
from jsel.selection.constraints import read_amounts, read_ids
from jsel.selection.reader import Reader
from jsel.selection.screen import check_options
from jsel.selectors import methods

TASK = re.compile(r"([\w-]+)=(.+)")
INPUTS = ("pool", "queries", "exclude", "must_include", "must_exclude")


def query_files(text: str) -> dict[str, str]:
  """The files of each task; one without a name where no task is named.

  Raises:
    ValueError: if some are named and others are not.

  >>> query_files("math=a.npy, code=b.npy,math=c.npy")
  {'math': 'a.npy,c.npy', 'code': 'b.npy'}
  >>> query_files("a.npy,b.npy")
  {'': 'a.npy,b.npy'}
  """
  pieces = [piece.strip() for piece in text.split(",")]
  named = [TASK.fullmatch(piece) for piece in pieces]
  if not any(named):
    return {"": text} if text else {}
  found: dict[str, str] = {}
  for piece, match in zip(pieces, named, strict=True):
    if not match:
      raise ValueError(f"--config.queries has {piece!r} without a task: name every file or none")
    name, path = match.groups()
    found[name] = f"{found[name]},{path}" if name in found else path
  return found


def input_hashes(config: ConfigDict) -> dict[str, str]:
  """SHA-256 of the files of each input that is given (`jsel.data.digest.files_sha256`).

  Raises:
    ValueError: if there is no such file.
  """
  found = {}
  for key in INPUTS:
    patterns = ",".join(query_files(config[key]).values()) if key == "queries" else config[key]
    if patterns:
      found[key] = files_sha256(files.expand(patterns, remedy=f"correct --config.{key}"))
  return found


def check(config: ConfigDict) -> None:
  """Raises a ValueError for what can be told before any file is read or text is encoded."""
  chosen = methods.make(config.method.name, **_constants(config))
  if "queries" in chosen.needs and not config.queries:
    raise ValueError(f"method {config.method.name} needs queries: set --config.queries")
  check_options(config)
  check_budget(config.budget, config.budget_unit, chosen.weighted)
  for key in ("caps", "floors", "task_quotas"):
    if config[key]:
      read_amounts(config[key], key)


def arguments(config: ConfigDict, reader: Reader) -> dict[str, Any]:
  """What `jsel.selection.select` is called with beside the pool, the method and the budget.

  Args:
    config: of the selection.
    reader: that has opened the pool, and opens the queries.

  Raises:
    ValueError: if a file or an option is not as it should be.
  """
  names = {"embedding": config.columns.embedding}
  queries = {}
  for task, patterns in query_files(config.queries).items():
    asked = reader.open(patterns, names, key="queries")
    queries[task] = np.concatenate(list(asked.blocks(4096)))
  quotas = read_amounts(config.task_quotas, "task_quotas") if config.task_quotas else None
  if quotas is not None and list(queries) in ([], [""]):
    raise ValueError("--config.task_quotas needs tasks: --config.queries=NAME=FILE,NAME=FILE")
  return {
    "unit": config.budget_unit,
    "queries": queries or None,
    "task_quotas": quotas,
    "caps": read_amounts(config.caps, "caps") if config.caps else None,
    "floors": read_amounts(config.floors, "floors") if config.floors else None,
    "must_include": read_ids(config.must_include, "must_include") if config.must_include else (),
    "must_exclude": read_ids(config.must_exclude, "must_exclude") if config.must_exclude else (),
    "on_nonfinite": config.on_nonfinite,
    "seed": config.seed,
    **_constants(config),
  }


def _constants(config: ConfigDict) -> dict[str, Any]:
  name = config.method.name
  return config.method[name].to_dict() if name in config.method else {}
