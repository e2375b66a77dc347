"""Feeds against a plain Grain loop: the same rows, batch, workers and update.

    python -m benchmarks.feeds --sizes=small_128
    python -m benchmarks.feeds --sizes=small_512
    python -m benchmarks.feeds --sizes=image_64

Writes rows of random bytes as array_record, checks that each feed gives what its plan says, and
then lets all loaders go on in turns, a second or so each, all of them warm: their batches alone,
and with a small update on each. Three plain loops, on the same threads or processes:

    by record    MapDataset.source(records).map(parse).shuffle(seed).repeat().batch(b)
    by batch     MapDataset.range(n).shuffle(seed).repeat().batch(b).map(rows.take)
    known plan   MapDataset.source(ids).repeat().map(rows.take), ids[steps, b] shuffled beforehand

In the first, the usual one, Grain reads record by record; in the second a batch in one call, as the
feeds do. The third is the best that a feed can come to: it waits for nobody to publish anything.
Leaves benchmarks/results/feeds.json, where a size that is measured again replaces itself, and
prints its table.
"""

import contextlib
import functools
import json
import math
import pathlib
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.machine import machine
from jsel import make_mesh, sharding
from jsel.data.candidates import candidate_ids
from jsel.data.device import DevicePrefetch, to_device
from jsel.data.feed import Feed

SIZES = flags.DEFINE_list("sizes", "small_128,small_512,image_64", "Of rows and batch, see CASES.")
REPEATS = flags.DEFINE_integer("repeats", 9, "Turns of each loader.")
SECONDS = flags.DEFINE_float("seconds", 1.0, "Of a turn, about.")
WORKERS = flags.DEFINE_integer("workers", 2, "Threads, or processes of one thread.")
DIR = flags.DEFINE_string("dir", None, "Where the rows are written, a temporary folder if None.")
ROOT = pathlib.Path(__file__).parent.parent
AHEAD = 4  # batches read ahead by threads in all; by each process, half as many
CLASSES = 10


class Case(NamedTuple):
  shape: tuple[int, ...]  # of an example, uint8
  rows: int
  batch: int


CASES = {
  "small_128": Case((28, 28, 1), 60_000, 128),
  "small_512": Case((28, 28, 1), 60_000, 512),
  "image_64": Case((224, 224, 3), 4_000, 64),
}


# ---- Rows: a record is an int32 label and the bytes of the row ----------------------------------


def example(row: int, shape: tuple[int, ...]) -> np.ndarray:
  return np.frombuffer(np.random.Philox(row).random_raw(-(-math.prod(shape) // 8)), np.uint8)[
    : math.prod(shape)
  ].reshape(shape)


def write(path: pathlib.Path, case: Case) -> None:
  writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
  for row in range(case.rows):
    writer.write(struct.pack("<i", row % CLASSES) + example(row, case.shape).tobytes())
  writer.close()


class Records:
  """As `jsel.data.rows.Rows`."""

  def __init__(self, path: str, shape: tuple[int, ...]):
    self._source = ArrayRecordDataSource(path)
    self.size, self.input_shape, self.input_dtype = len(self._source), shape, np.dtype(np.uint8)

  def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
    records = self._source.__getitems__(ids.tolist())
    inputs = np.empty((len(ids), *self.input_shape), np.uint8)
    for i, record in enumerate(records):
      inputs[i] = np.frombuffer(record, np.uint8, offset=4).reshape(self.input_shape)
    labels = np.frombuffer(b"".join(record[:4] for record in records), "<i4").astype(np.int32)
    return {"inputs": inputs, "labels": labels}


def parse(shape: tuple[int, ...], record: bytes) -> dict[str, np.ndarray]:
  return {
    "inputs": np.frombuffer(record, np.uint8, offset=4).reshape(shape),
    "labels": np.frombuffer(record, "<i4", count=1)[0].astype(np.int32),
  }


# ---- Loaders: batches on the devices, without end -----------------------------------------------


class Loader(NamedTuple):
  name: str
  processes: int
  next: Callable[[], dict[str, jax.Array]]


PLAIN = ("by record", "by batch", "known plan")


def plain(
  name: str, path: str, case: Case, split: Any, processes: int, stack: contextlib.ExitStack
) -> Loader:
  rows = Records(path, case.shape)
  if name == "by record":
    records = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(path))
    dataset = records.map(functools.partial(parse, case.shape)).shuffle(seed=0).repeat()
    dataset = dataset.batch(case.batch, drop_remainder=True)
  elif name == "by batch":
    ids = grain.MapDataset.range(case.rows).shuffle(seed=0).repeat()
    dataset = ids.batch(case.batch, drop_remainder=True).map(rows.take)
  else:
    dataset = grain.MapDataset.source(next(plans(case))).repeat().map(rows.take)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=1 if processes else WORKERS.value, prefetch_buffer_size=1 if processes else AHEAD
    )
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
  rows: Records,
  split: Any,
  processes: int,
  stack: contextlib.ExitStack,
) -> Loader:
  """``blocks`` are published one ahead of the one that is read."""
  feed = stack.enter_context(
    Feed(
      rows,
      start=0,
      workers=processes,
      threads=1 if processes else WORKERS.value,
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
  count = 0
  seen = 0
  steps = min(case.rows // case.batch, 64) + 3
  while count < steps:
    for ids in next(blocks)[: steps - count]:
      batch = jax.device_get(loader.next())
      np.testing.assert_array_equal(batch["ids"], ids)
      np.testing.assert_array_equal(batch["labels"], ids % CLASSES)
      looked_at = range(0, len(ids), 1 if seen < 4_000 else 16)
      for i in looked_at:
        np.testing.assert_array_equal(batch["inputs"][i], example(int(ids[i]), case.shape))
      seen += len(looked_at)
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


def turn(loader: Loader, steps: int, update: Any, params: Any) -> tuple[float, Any]:
  """Batches a second over ``steps`` steps, when what had gathered while others ran is used up."""
  begin = 0.0
  for i in range(4 * AHEAD + steps):
    if i == 4 * AHEAD:
      jax.block_until_ready(params)
      begin = time.perf_counter()
    batch = loader.next()
    if update:
      params = update(params, batch)
    else:
      jax.block_until_ready(batch)
  jax.block_until_ready(params)
  return steps / (time.perf_counter() - begin), params


def measure(name: str, folder: pathlib.Path) -> list[dict[str, Any]]:
  case = CASES[name]
  path = folder / f"{name}.array_record"
  if not path.exists():
    write(path, case)
  rows = Records(str(path), case.shape)
  split = sharding.rows_sharding(make_mesh())
  results = []
  with contextlib.ExitStack() as stack:
    loaders = []
    for processes in (0, WORKERS.value):
      for kind in PLAIN:
        loaders.append(plain(kind, str(path), case, split, processes, stack))
      for feed, blocks in (("planned", plans), ("super-batch", super_batches)):
        loader = fed(feed, blocks(case), rows, split, processes, stack)
        checked = check(loader, blocks(case), case)
        print(f"{name}: {feed}, {processes} processes: {checked} batches are as planned")
        loaders.append(loader)
    params, update = make_update(case)
    for what in (None, update):
      rates: dict[int, list[float]] = {i: [] for i in range(len(loaders))}
      steps = []
      for loader in loaders:
        speed, params = turn(loader, 16, what, params)
        steps.append(max(16, int(SECONDS.value * speed)))
      order = np.random.default_rng(0)
      for _ in range(REPEATS.value):
        for i in order.permutation(len(loaders)).tolist():
          rate, params = turn(loaders[i], steps[i], what, params)
          rates[i].append(rate * case.batch)
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
            "threads": 0 if loader.processes else WORKERS.value,
            "update": what is not None,
            "steps_a_turn": steps[i],
            "rows_per_second": rates[i],
            **ratios,
          }
        )
  return results


def main(argv: list[str]) -> None:
  del argv
  path = ROOT / "benchmarks" / "results" / "feeds.json"
  kept = json.loads(path.read_text())["results"] if path.exists() else []
  kept = [result for result in kept if result["size"] not in SIZES.value]
  with tempfile.TemporaryDirectory() as temporary:
    for name in SIZES.value:
      kept += measure(name, pathlib.Path(DIR.value or temporary))
  about = {**machine(), "grain": grain.__version__}
  cases = {name: case._asdict() for name, case in CASES.items()}
  path.write_text(json.dumps({"machine": about, "cases": cases, "results": kept}, indent=2) + "\n")
  head = " | ".join(["rows, batch", "workers", "update", "loader", "rows/s", *PLAIN])
  print(
    f"rows/s: median; ratios to the plain loops: median (25 to 75 %)\n| {head} |\n|{8 * '---|'}"
  )
  for result in kept:
    workers = f"{result['threads']} threads" if result["threads"] else f"{WORKERS.value} processes"
    cells = [result["size"], workers, "yes" if result["update"] else "no", result["loader"]]
    cells.append(f"{np.median(result['rows_per_second']):,.0f}")
    for base in PLAIN:
      low, middle, high = np.percentile(result[f"ratio_to_{base}".replace(" ", "_")], (25, 50, 75))
      cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
  app.run(main)
