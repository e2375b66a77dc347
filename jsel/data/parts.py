"""The train, validation and test part of a source, and what is held out where one is not given."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from jsel.data.digest import combined
from jsel.data.rows import Rows, SubsetRows, read_labels
from jsel.data.split import stratified


class Source(Rows, Protocol):
  """Rows that know their labels and a hash without reading all inputs."""

  def labels(self) -> np.ndarray:
    """All labels, ``[n]`` int32."""
    ...

  def sha256(self) -> str:
    """Hash of the data, in hexadecimal; what goes into it the class says."""
    ...


class Parts(NamedTuple):
  """The parts of a data set."""

  train: Source
  validation: Source | None
  test: Source


def open_parts(config: ConfigDict, open_part: Callable[[str], Source | None]) -> Parts:
  """Opens the parts that ``config`` names and holds out of train what it does not.

  Args:
    config: ``test_fraction`` of each class of train is held out where there is no test part, then
      ``validation_fraction`` of the rest, both chosen by ``split_seed``.
    open_part: gives the rows of "train", "validation" or "test"; None where the config names none.

  Raises:
    ValueError: if there are no train or test rows, or rows of two parts differ in shape or dtype.
  """
  train = open_part("train")
  if train is None:
    raise ValueError("there are no train rows: --config.data.train names no file")
  validation, test = open_part("validation"), open_part("test")
  for name, part in (("validation", validation), ("test", test)):
    if part and (part.input_shape, part.input_dtype) != (train.input_shape, train.input_dtype):
      raise ValueError(
        f"rows of config.data.{name} are {part.input_dtype}{part.input_shape}, those of"
        f" config.data.train {train.input_dtype}{train.input_shape}: make them alike"
      )
  if test is None:
    if not config.get("test_fraction"):
      raise ValueError(
        "there are no test rows: set --config.data.test to a file or --config.data.test_fraction"
      )
    train, test = hold_out_rows(train, config.test_fraction, seed=config.get("split_seed", 0))
  return with_validation(Parts(train, validation, test), config)


def with_validation(parts: Parts, config: ConfigDict) -> Parts:
  """``parts`` with ``config.validation_fraction`` of each class held out of train, if any.

  Raises:
    ValueError: if there is a validation part already.
  """
  fraction = config.get("validation_fraction", 0)
  if not fraction:
    return parts
  if parts.validation is not None:
    raise ValueError(
      f"config.data.validation names rows and config.data.validation_fraction={fraction} asks to"
      " hold out others: set one of them"
    )
  train, held = hold_out_rows(parts.train, fraction, seed=config.get("split_seed", 0))
  return Parts(train, held, parts.test)


def hold_out_rows(rows: Source, fraction: float, *, seed: int) -> tuple[SubsetRows, SubsetRows]:
  """``rows`` cut in two by `stratified`: ``(kept, held)``; reads all labels."""
  kept, held = stratified(read_labels(rows), fraction, seed=seed)
  return SubsetRows(rows, kept), SubsetRows(rows, held)


def count_classes(parts: Parts, given: int) -> int:
  """``given``, or the largest label + 1 where that is 0; reads all labels then.

  Raises:
    ValueError: if there would be more classes than rows.
  """
  if given:
    return given
  labels = [read_labels(part) for part in parts if part]
  classes = max(int(part.max()) for part in labels) + 1
  rows = sum(map(len, labels))
  if classes > rows:
    raise ValueError(
      f"labels go up to {classes - 1} with {rows} rows: number the classes from 0 without gaps, "
      "or set --config.data.classes"
    )
  return classes


def parts_sha256(parts: Parts) -> str:
  """The hashes of the parts as one."""
  return combined(*(part.sha256() if part else "none" for part in parts))
