"""Writes any source as array_record, whose rows are read at random as fast as in order.

    python -m jsel.data.prepare --config.data.name=parquet --out=SET --shards=16 \
        --config.data.train='DIR/train-*.parquet' --config.data.test=DIR/test.parquet
    python -m jsel.data.prepare --config.data.name=image_folder --config.data.dir=DIR \
        --config.data.image_size=224 --encoding=image --out=gs://BUCKET/SET --shards=256
    python -m jsel.data.prepare --synthetic=imagenet --rows=10000 --out=SET --shards=8

SET/train, SET/validation (where the config asks for one) and SET/test appear when they are
complete: on a local disk by a rename, in an object store by info.json, which is put there last.
Train on it with --config.data.name=array_record --config.data.dir=SET. Exit codes as of train.py.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jsel import data
from jsel.data import files, records
from jsel.data.array_record import read_info
from jsel.data.rows import Rows, RowsDataset
from jsel.data.synthetic import SHAPES, SyntheticRows
from jsel.data.write import write_part


def get_config() -> ConfigDict:
  """The defaults, where no --config names a file."""
  from jsel.training.config import base_config

  return base_config()


def define_flags() -> None:
  """The flags of the command."""
  config_flags.DEFINE_config_file("config", None, "Its section data says what to write.")
  flags.DEFINE_string("out", None, "Folder or address of the set to write.")
  flags.DEFINE_integer("shards", 8, "Files of each part.")
  flags.DEFINE_enum(
    "encoding",
    "raw",
    records.ENCODINGS,
    "raw: arrays as they are read; image: the PNG and JPEG files as they are.",
  )
  flags.DEFINE_bool("overwrite", False, "Replace a set that is there.")
  flags.DEFINE_enum(
    "synthetic", None, list(SHAPES), "Write made-up images of such a shape instead of config.data."
  )
  flags.DEFINE_integer("rows", 0, "Train rows of a synthetic set.")
  flags.DEFINE_integer("test_rows", 1000, "Test rows of a synthetic set.")


def prepare(
  dataset: RowsDataset,
  out: str,
  *,
  shards: int,
  encoding: str,
  overwrite: bool,
  synthetic: bool,
) -> None:
  """Writes the parts of ``dataset`` below ``out``; all appear at the end, or none.

  Raises:
    ValueError: if a part is there and not to be replaced, or a row is broken, with its id.
  """
  given = (dataset.train, dataset.validation, dataset.test)
  parts = {part: rows for part, rows in zip(records.PARTS, given, strict=True) if rows is not None}
  for part in records.PARTS:
    check_free(files.join(out, part), overwrite=overwrite)

  def write(part: str, rows: Rows, folder: Path, written: Callable[[Path], None]) -> records.Info:
    return write_part(
      rows,
      folder,
      name=dataset.name,
      part=part,
      source=dataset.source,
      classes=dataset.classes,
      scale=dataset.scale,
      encoding=encoding,
      shards=shards,
      synthetic=synthetic,
      written=written,
      progress=Progress(part, rows.size),
    )

  (to_store if files.is_remote(out) else to_disk)(parts, out, write)


Write = Callable[[str, Rows, Path, Callable[[Path], None]], records.Info]


def check_free(target: str, *, overwrite: bool) -> None:
  """Raises where ``target`` is something that may not be replaced."""
  is_set = files.exists(files.join(target, "info.json"))
  if is_set and not overwrite:
    raise ValueError(f"{target} is there already: choose another --out, or set --overwrite")
  if not is_set and not files.is_remote(target) and files.exists(target):
    raise ValueError(f"{target} is there and is no prepared set: move it away or choose another")


def to_disk(parts: dict[str, Rows], out: str, write: Write) -> None:
  """Writes each part into a folder of another name; all are renamed when all are complete."""
  root = Path(out).expanduser()
  root.mkdir(parents=True, exist_ok=True)
  for path in root.glob(".*.partial"):
    print(f"jsel: {path} is unfinished: delete it, unless it is being written now", flush=True)
  unfinished = {part: root / f".{part}.{os.getpid()}.partial" for part in parts}
  try:
    for part, rows in parts.items():
      unfinished[part].mkdir()
      info = write(part, rows, unfinished[part], lambda path: None)
      write_info(unfinished[part] / "info.json", info)
    for part in records.PARTS:  # all three: a part of the old set is no part of the new one
      old = root / f".{part}.{os.getpid()}.old"
      if (root / part).exists():
        (root / part).rename(old)
      if part in parts:
        unfinished[part].rename(root / part)
      shutil.rmtree(old, ignore_errors=True)
  finally:
    for folder in unfinished.values():
      shutil.rmtree(folder, ignore_errors=True)


def to_store(parts: dict[str, Rows], out: str, write: Write) -> None:
  """Puts each file at its address when it is complete, and every info.json at the end.

  A set that is replaced stops being one first. A file takes room on the local disk until it is put.
  """

  def put(path: Path, part: str) -> None:
    files.put(str(path), files.join(out, part, path.name))
    path.unlink()

  for folder in (files.join(out, part) for part in records.PARTS):
    if files.exists(files.join(folder, "info.json")):
      old = read_info(folder)
      files.remove(files.join(folder, "info.json"))
      for shard in (*old.shards, old.labels):
        files.remove(files.join(folder, shard.file))
  with tempfile.TemporaryDirectory(prefix="jsel-prepare-") as work:
    infos = {
      part: write(part, rows, Path(work), lambda path, part=part: put(path, part))
      for part, rows in parts.items()
    }
    for part, info in infos.items():
      path = Path(work) / "info.json"
      write_info(path, info)
      put(path, part)


def write_info(path: Path, info: records.Info) -> None:
  """Writes info.json, which is on the disk when this returns."""
  with path.open("w") as file:
    json.dump(records.to_json(info), file, indent=2, allow_nan=False)
    file.write("\n")
    file.flush()
    os.fsync(file.fileno())


class Progress:
  """Tells how many rows are written: in one line on a terminal, else every ten seconds."""

  def __init__(self, part: str, total: int):
    self._part, self._total = part, total
    self._began = self._told = time.monotonic()

  def __call__(self, done: int) -> None:
    now, is_terminal = time.monotonic(), sys.stdout.isatty()
    if done < self._total and now - self._told < (0.2 if is_terminal else 10):
      return
    self._told = now
    rate = done / max(now - self._began, 1e-9)
    text = f"jsel: {self._part}: {done:,} of {self._total:,} rows, {rate:,.0f} a second"
    is_last = done == self._total
    print(f"\r{text}" if is_terminal else text, end="\n" if is_last or not is_terminal else "")
    sys.stdout.flush()


def asked_for(given: Any) -> RowsDataset:
  """The data set that the flags ``given`` name.

  Raises:
    ValueError: if flags do not fit each other, or as of `jsel.data.open_rows`.
  """
  if not given.synthetic:
    if given.rows:
      raise ValueError(f"--rows={given.rows} is for --synthetic: a source has the rows that it has")
    return data.open_rows(given.config.data)
  if given.rows < 1 or given.test_rows < 1:
    raise ValueError(f"--rows={given.rows} and --test_rows={given.test_rows} must be at least 1")
  train = SyntheticRows(given.synthetic, given.rows)
  return RowsDataset(
    train,
    None,
    SyntheticRows(given.synthetic, given.test_rows, first=given.rows),
    classes=train.classes,
    name=f"synthetic-{given.synthetic}",
    source=f"made up by jsel.data.prepare in the shape of {given.synthetic}, no photographs",
    scale=255.0,
    sha256="",
  )


def main(argv: list[str]) -> int:
  """The command."""
  del argv
  given = flags.FLAGS
  if not given.out:
    raise ValueError("--out is missing: where to write the set")
  dataset = asked_for(given)
  print(f"jsel: {dataset.name}: {dataset.train!r}", flush=True)
  prepare(
    dataset,
    given.out,
    shards=given.shards,
    encoding=given.encoding,
    overwrite=given.overwrite,
    synthetic=bool(given.synthetic),
  )
  use = f"--config.data.name=array_record --config.data.dir={given.out}"
  print(f"jsel: done, use it with {use}", flush=True)
  return 0


if __name__ == "__main__":
  from jsel.training.command import run_main

  define_flags()
  run_main(main, default_config=__file__)
