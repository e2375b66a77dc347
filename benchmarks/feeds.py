"""Feeds against a plain Grain loop: the same rows, batch, workers and update.

    python -m benchmarks.feeds --sizes=small_128
    python -m benchmarks.feeds --sizes=small_512
    python -m benchmarks.feeds --sizes=image_64

Prepares rows of random bytes as array_record, checks that each feed gives what its plan says, and
then lets all loaders go on in turns, a second or so each, all of them warm: their batches alone,
and with a small update on each. Three plain loops, on the same threads or processes:

    by record    MapDataset.source(records).map(parse).shuffle(seed).repeat().batch(b)
    by batch     MapDataset.range(n).shuffle(seed).repeat().batch(b).map(take)
    known plan   MapDataset.source(ids).repeat().map(take), ids[steps, b] shuffled beforehand

In the first, the usual one, Grain reads record by record; in the second a batch in one call, as the
feeds do. The third is the best that a feed can come to: it waits for nobody to publish anything.
The CPU time of a row, of all threads and workers, says the same where other work takes the cores.
Leaves benchmarks/results/feeds.json, where a size that is measured again replaces itself, and
prints its table.
"""

import contextlib
import functools
import gc
import json
import math
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks.machine import machine
from jsel import make_mesh, sharding
from jsel.data import array_record, prepare, records
from jsel.data.candidates import candidate_ids
from jsel.data.device import DevicePrefetch, to_device
from jsel.data.feed import Feed
from jsel.data.rows import Rows, RowsDataset

ROOT = pathlib.Path(__file__).parent.parent
AHEAD = 4  # batches read ahead by threads in all; by each process, half as many
CLASSES = 10
SHARDS = 8  # files


class Case(NamedTuple):
  shape: tuple[int, ...]  # of an example, uint8
  rows: int
  batch: int


CASES = {
  "small_128": Case((28, 28, 1), 60_000, 128),
  "small_512": Case((28, 28, 1), 60_000, 512),
  "image_64": Case((224, 224, 3), 4_000, 64),
}


# ---- Rows: random bytes, prepared as array_record -----------------------------------------------


class Noise:
  """Rows that are a function of their ids, to write and to check by."""

  def __init__(self, shape: tuple[int, ...], size: int):
    self.size, self.input_shape, self.input_dtype = size, shape, np.dtype(np.uint8)

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    values = math.prod(self.input_shape)
    bits = [np.random.PCG64(int(row)).random_raw(-(-values // 8)) for row in ids]
    inputs = np.stack([words.astype("<u8").view(np.uint8)[:values] for words in bits])
    return {
      "inputs": inputs.reshape(len(ids), *self.input_shape),
      "labels": (ids % CLASSES).astype(np.int32),
    }


def write(folder: pathlib.Path, case: Case) -> None:
  rows = Noise(case.shape, case.rows)
  dataset = RowsDataset(
    rows, None, rows, classes=CLASSES, name="noise", source="made up", scale=255.0, sha256=""
  )
  how = {"shards": SHARDS, "encoding": "raw", "overwrite": False, "synthetic": True}
  prepare.prepare(dataset._replace(test=Noise(case.shape, SHARDS)), str(folder), **how)


def parse(shape: tuple[int, ...], record: bytes) -> dict[str, np.ndarray]:
  label, row = records.unpack(record)
  return {
    "inputs": np.frombuffer(row, np.uint8).reshape(shape),
    "labels": np.array(label, np.int32),
  }


# ---- Loaders: batches on the devices, without end -----------------------------------------------


class Loader(NamedTuple):
  name: str
  processes: int
  next: Callable[[], dict[str, jax.Array]]


PLAIN = ("by record", "by batch", "known plan")


def take(rows: Rows, ids: np.ndarray) -> dict[str, np.ndarray]:
  return {**rows.take(ids), "ids": ids.astype(np.int32)}


def plain(
  name: str,
  files: list[str],
  rows: Rows,
  case: Case,
  split: Any,
  processes: int,
  threads: int,
  stack: contextlib.ExitStack,
) -> Loader:
  if name == "by record":
    source = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files))
    dataset = source.map(functools.partial(parse, case.shape)).shuffle(seed=0).repeat()
    dataset = dataset.batch(case.batch, drop_remainder=True)
  elif name == "by batch":
    ids = grain.MapDataset.range(case.rows).shuffle(seed=0).repeat()
    dataset = ids.batch(case.batch, drop_remainder=True).map(functools.partial(take, rows))
  else:
    ids = grain.MapDataset.source(next(plans(case))).repeat()
    dataset = ids.map(functools.partial(take, rows))
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=1 if processes else AHEAD)
  )
  if processes:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=AHEAD // 2)
    )
  iterator = iter(dataset)
  stack.callback(iterator.close)

  def moved() -> Iterator[dict[str, jax.Array]]:
    ready = to_device(next(iterator), split)
    while True:
      coming = to_device(next(iterator), split)
      yield ready
      ready = coming

  return Loader(name, processes, functools.partial(next, moved()))


def fed(
  name: str,
  blocks: Iterator[np.ndarray],
  rows: Rows,
  split: Any,
  processes: int,
  threads: int,
  stack: contextlib.ExitStack,
) -> Loader:
  """``blocks`` are published one ahead of the one that is read."""
  feed = stack.enter_context(
    Feed(
      rows,
      start=0,
      workers=processes,
      threads=threads,
      ahead=AHEAD // 2 if processes else AHEAD,
    )
  )
  batches = DevicePrefetch(feed, split, ahead=2)
  borders = [0]

  def following() -> dict[str, jax.Array]:
    if batches.step >= borders[-1]:
      borders[:] = [feed.published]
      feed.publish(feed.published, next(blocks))
    return next(batches)

  feed.publish(0, next(blocks))
  return Loader(name, processes, following)


def plans(case: Case) -> Iterator[np.ndarray]:
  """A shuffle an epoch, as a selector of everything would plan it."""
  generator = np.random.default_rng(0)
  steps = case.rows // case.batch
  while True:
    order = generator.permutation(case.rows).astype(np.int32)
    yield order[: steps * case.batch].reshape(steps, case.batch)


def super_batches(case: Case) -> Iterator[np.ndarray]:
  step, steps = 0, 64
  while True:
    yield candidate_ids(jax.random.key(0), step, steps, case.batch, case.rows)
    step += steps


# ---- Checks and measurement ---------------------------------------------------------------------


def check(loader: Loader, blocks: Iterator[np.ndarray], case: Case) -> int:
  """The first batches are what the plan says, beyond its end; returns how many."""
  noise, count = Noise(case.shape, case.rows), 0
  steps = min(case.rows // case.batch, 64) + 3
  while count < steps:
    for ids in next(blocks)[: steps - count]:
      batch = jax.device_get(loader.next())
      np.testing.assert_array_equal(batch["ids"], ids)
      np.testing.assert_array_equal(batch["labels"], ids % CLASSES)
      np.testing.assert_array_equal(batch["inputs"], noise.take(ids)["inputs"])
      count += 1
  return count


def make_update(case: Case) -> tuple[Any, Callable[[Any, dict[str, jax.Array]], Any]]:
  """Two layers on at most 28 x 28 pixels, by gradient descent."""
  stride = case.shape[0] // 28
  width = math.prod((28, 28, case.shape[2]))
  keys = jax.random.split(jax.random.key(0))
  params = (
    jax.random.normal(keys[0], (width, 256)) / math.sqrt(width),
    jax.random.normal(keys[1], (256, CLASSES)) / 16,
  )

  def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    x = batch["inputs"][:, ::stride, ::stride].reshape(case.batch, width)
    hidden = jax.nn.relu((x.astype(jnp.float32) / 127.5 - 1) @ params[0])
    log_p = jax.nn.log_softmax(hidden @ params[1])
    return -jnp.take_along_axis(log_p, batch["labels"][:, None], axis=1).mean()

  @functools.partial(jax.jit, donate_argnums=0)
  def update(params: Any, batch: dict[str, jax.Array]) -> Any:
    return jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params, batch))

  return params, update


def cpu_seconds() -> float:
  """Of this process and its workers, so far; other loaders' wait while one has its turn."""
  total = time.process_time()
  for worker in multiprocessing.active_children():
    fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
  return total


def turn(loader: Loader, steps: int, update: Any, params: Any) -> tuple[tuple[float, float], Any]:
  """Batches a second and CPU seconds a batch, when what gathered while others ran is used up."""
  begin = begin_cpu = 0.0
  for i in range(4 * AHEAD + steps):
    if i == 4 * AHEAD:
      jax.block_until_ready(params)
      begin, begin_cpu = time.perf_counter(), cpu_seconds()
    batch = loader.next()
    if update:
      params = update(params, batch)
    else:
      jax.block_until_ready(batch)
  jax.block_until_ready(params)
  speed = steps / (time.perf_counter() - begin)
  return (speed, (cpu_seconds() - begin_cpu) / steps), params


def measure(
  name: str, case: Case, folder: pathlib.Path, *, workers: int, repeats: int, seconds: float
) -> list[dict[str, Any]]:
  """All loaders of a size, on ``workers`` threads and on as many processes of one thread."""
  folder = folder / f"{math.prod(case.shape)}x{case.rows}"
  if not folder.exists():
    write(folder, case)
  rows = array_record.open_rows(ConfigDict({"dir": str(folder)})).train
  files = sorted(str(path) for path in folder.glob("train/*.array_record"))
  split = sharding.rows_sharding(make_mesh())
  results = []
  with contextlib.ExitStack() as stack:
    loaders = []
    for processes, threads in ((0, workers), (workers, 1)):
      for kind in PLAIN:
        loaders.append(plain(kind, files, rows, case, split, processes, threads, stack))
      for feed, blocks in (("planned", plans), ("super-batch", super_batches)):
        loader = fed(feed, blocks(case), rows, split, processes, threads, stack)
        checked = check(loader, blocks(case), case)
        print(f"{name}: {feed}, {processes} processes: {checked} batches are as planned")
        loaders.append(loader)
    params, update = make_update(case)
    for what in (None, update):
      rates: dict[int, list[float]] = {i: [] for i in range(len(loaders))}
      costs: dict[int, list[float]] = {i: [] for i in range(len(loaders))}
      steps = []
      for loader in loaders:
        (speed, _), params = turn(loader, 16, what, params)
        steps.append(max(16, int(seconds * speed)))
      order = np.random.default_rng(0)
      for _ in range(repeats):
        for i in order.permutation(len(loaders)).tolist():
          (speed, cost), params = turn(loaders[i], steps[i], what, params)
          rates[i].append(speed * case.batch)
          costs[i].append(cost / case.batch * 1e6)
      for i, loader in enumerate(loaders):
        ratios = {
          f"ratio_to_{base.name}".replace(" ", "_"): np.divide(rates[i], rates[j]).tolist()
          for j, base in enumerate(loaders)
          if base.name in PLAIN and base.processes == loader.processes
        }
        results.append(
          {
            "size": name,
            "loader": loader.name,
            "processes": loader.processes,
            "threads": 0 if loader.processes else workers,
            "update": what is not None,
            "steps_a_turn": steps[i],
            "load_average": os.getloadavg()[0],  # of the machine, this among it
            "rows_per_second": rates[i],
            "cpu_microseconds_per_row": costs[i],
            **ratios,
          }
        )
  gc.collect()  # which is when JAX drops the shared memory that it has borrowed
  return results


def table(result: dict[str, Any]) -> str:
  """A row a feed, as Markdown: medians, and quartiles of the ratios to the plain loops."""
  heads = ["size", "feed", "readers", "with an update", "rows/s"]
  heads += [f"to {base}" for base in PLAIN] + ["CPU µs a row"]
  lines = [f"| {' | '.join(heads)} |", f"|{len(heads) * '---|'}"]
  for found in result["results"]:
    if found["loader"] in PLAIN:
      continue
    threads, processes = found["threads"], found["processes"]
    cells = [found["size"], found["loader"]]
    cells.append(f"{threads} threads" if threads else f"{processes} processes")
    cells += ["yes" if found["update"] else "no", f"{np.median(found['rows_per_second']):,.0f}"]
    for base in PLAIN:
      low, middle, high = np.percentile(found[f"ratio_to_{base}".replace(" ", "_")], (25, 50, 75))
      cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    cells.append(f"{np.median(found['cpu_microseconds_per_row']):.1f}")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  path = ROOT / "benchmarks" / "results" / "feeds.json"
  kept = json.loads(path.read_text())["results"] if path.exists() else []
  kept = [result for result in kept if result["size"] not in given.sizes]
  limits = {"workers": given.workers, "repeats": given.repeats, "seconds": given.seconds}
  with tempfile.TemporaryDirectory() as temporary:
    for name in given.sizes:
      kept += measure(name, CASES[name], pathlib.Path(given.dir or temporary), **limits)
  about = {**machine(), "grain": grain.__version__}
  cases = {name: case._asdict() for name, case in CASES.items()}
  result = {"machine": about, "cases": cases, "results": kept}
  path.write_text(json.dumps(result, indent=2) + "\n")
  print(table(result))


if __name__ == "__main__":
  flags.DEFINE_list("sizes", list(CASES), "Of rows and batch, see CASES.")
  flags.DEFINE_integer("repeats", 7, "Turns of each loader.")
  flags.DEFINE_float("seconds", 0.6, "Of a turn, about.")
  flags.DEFINE_integer("workers", 2, "Threads, or processes of one thread.")
  flags.DEFINE_string("dir", None, "Where the rows are written, a temporary folder if None.")
  app.run(main)
