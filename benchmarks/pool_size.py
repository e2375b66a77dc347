"""What a plan costs as the pool grows, from 60 thousand to 100 million rows on one device.

    python -m benchmarks.pool_size --selectors=rs2
    python -m benchmarks.pool_size --selectors=rep_div --sizes=30000000,100000000

For each selector and size, in a process of its own: the plan of half of the pool as a run makes it
(`jsel.training.plan.make_plan`, state donated), the rows of one batch of 1024 found in it, the
bytes of state a row and the memory that all of it took. `rep_div` and `rep_div_plain` plan by a fit
that is made up: random factors, some common and some rare, or random ranks. `rep_div` is timed
twice: as most plans are, and as those few where its exponent has changed. `increment` is no
selector: one int32 column to which 1 is added in place, the least that any plan does.

Every plan before those that are timed is checked: exactly the rows it must have, none of them
padding, and the same that the selector's own count says; a batch has distinct rows of the plan, and
up to a million rows all batches of a plan together have each of its rows once.

Leaves benchmarks/results/pool_size.json, in which a case that is measured again replaces itself,
and pool_size.png, and prints the table: times are medians (least to most), and p of time ~ n**p is
between a size and the one before it.
"""

import concurrent.futures
import json
import math
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.figure import Figure

from benchmarks.machine import machine
from jsel import make_mesh, padded_size, selectors, sharding
from jsel.kernels.nth import TILE, Tiles
from jsel.kernels.reduce import LEAVES
from jsel.selectors import Columns, Pool
from jsel.selectors.factors import SHARE_BITS
from jsel.training.plan import ActivePlan, empty_plan, make_plan, make_plan_ids, plan_specs

NAMES = ("increment", "rs2", "loss", "rep_div_plain", "rep_div")
RESULTS = pathlib.Path(__file__).parent / "results"
RATIO, BATCH_SIZE = 0.5, 1024
TOTAL_STEPS = 2**31 - 1  # so many that the exponent of rep_div changes when told to, and only then
LEAST_REPEATS, MOST_REPEATS, BATCHES = 5, 101, 200
CHECKED_PLANS, CHECKED_WHOLE = 2, 1_000_000
LATENTS, ACTIVE = 256, 8
SHARES = (1366, 900, 600, 430, 300, 250, 150, 100)  # of a row's factors
assert sum(SHARES) == 2**SHARE_BITS


# ---- A fit, and a state as a run of some length has it ------------------------------------------


def hashed(n: int, columns: int, salt: int) -> jax.Array:
  """Random-looking uint32[n, columns], by arithmetic that needs no second array of that size."""
  x = jnp.full((n, columns), salt, jnp.uint32)
  for axis in range(2):
    x = (x ^ jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)) * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA77)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE3D)
    x = x ^ (x >> 16)
  return x


def uniform(n: int, columns: int, salt: int) -> jax.Array:
  return (hashed(n, columns, salt) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def made_up_fit(name: str, n: int) -> Columns | None:
  if name == "rep_div_plain":
    ranks = {"representativeness": uniform(n, 1, 1)[:, 0], "diversity": uniform(n, 1, 2)[:, 0]}
    return Columns(ranks, {"fitted": jnp.bool_(True)})
  if name != "rep_div":
    return None
  # Factor j is then sqrt((j + 1) / 256) - sqrt(j / 256) of all that are active.
  index = (uniform(n, ACTIVE, 3) ** 2 * LATENTS).astype(jnp.int32)
  frequency = np.diff(np.sqrt(np.arange(LATENTS + 1) / LATENTS))
  turn = (hashed(n, 1, 4) % ACTIVE).astype(jnp.int32)
  place = (turn + jnp.arange(ACTIVE, dtype=jnp.int32)[None, :]) % ACTIVE
  return Columns(
    {"factor_index": index, "factor_share": jnp.asarray(SHARES, jnp.int32)[place]},
    {
      "factor_count": jnp.asarray(np.round(n * ACTIVE * frequency), jnp.int32),
      "exponents": jnp.array([1.0, 0.5], jnp.float32),
      "level": jnp.int32(-1),
      "fitted": jnp.bool_(True),
    },
  )


def trained(name: str, state: Columns) -> Columns:
  """``state`` with what training would have put into it."""
  if name != "loss":
    return state
  n = state.rows["loss"].shape[0]
  seen = uniform(n, 1, 5)[:, 0] < 0.9
  losses = jnp.where(seen, -jnp.log1p(-uniform(n, 1, 6)[:, 0]), 0)
  return state._replace(rows={**state.rows, "loss": losses, "seen": seen})


# ---- Plans, one after the other as in a run -----------------------------------------------------


class Plans:
  """Those of one selector over one pool of ``size`` rows, half of it each."""

  def __init__(self, name: str, size: int):
    self.size, self.rows, self.padded = size, round(RATIO * size), padded_size(size)
    self.mesh = make_mesh(jax.devices()[:1])
    self.key = jax.random.key(0)
    self.step = TOTAL_STEPS // 2  # where the exponent of rep_div is halfway
    self._spent_at, self._carried = self.step, 0
    selector = selectors.make(
      name,
      size=size,
      rows=self.rows,
      total_steps=TOTAL_STEPS,
      optimizer=optax.adam,
      axis_name=sharding.row_axes(self.mesh),
    )

    def begin(key: jax.Array) -> tuple[Columns, ActivePlan, Pool]:
      pool = Pool({}, jnp.arange(self.padded, dtype=jnp.int32) < size)
      columns = trained(name, selector.init(key, pool, made_up_fit(name, self.padded)))
      active = empty_plan(self.padded, weighted=selector.weighted, batch_size=BATCH_SIZE)
      return columns, active._replace(start=jnp.int32(self.step)), pool

    columns, active, pool = jax.eval_shape(begin, self.key)
    shardings = of_mesh(columns, active, pool, self.mesh)
    place = lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)
    columns, active, pool = jax.tree.map(place, (columns, active, pool), shardings)
    began = time.perf_counter()
    plan: Any = make_plan(selector, columns, active, mesh=self.mesh, batch_size=BATCH_SIZE)
    self._plan = plan.lower(self.key, np.int32(0), columns, active, pool).compile()
    self.compile_seconds = time.perf_counter() - began
    self._ids = make_plan_ids(mesh=self.mesh, batch_size=BATCH_SIZE, steps=1)
    self.memory = self._plan.memory_analysis()
    check_room(name, size, self.memory)
    begin = jax.jit(begin, out_shardings=shardings)
    self.columns, self.active, self.pool = jax.block_until_ready(begin(self.key))

  def next(self, *, new_exponent: bool = False) -> float:
    """The next plan, at the step where the one before it is spent; the seconds it took."""
    self.step = self._spent_at
    if new_exponent:
      shared = {**self.columns.shared, "level": jnp.int32(-1)}
      self.columns = jax.block_until_ready(self.columns._replace(shared=shared))
    began = time.perf_counter()
    self.columns, self.active = jax.block_until_ready(
      self._plan(self.key, np.int32(self.step), self.columns, self.active, self.pool)
    )
    seconds = time.perf_counter() - began
    steps, self._carried = divmod(self._carried + self.rows, BATCH_SIZE)
    self._spent_at = self.step + steps
    return seconds

  def batch(self, step: int) -> jax.Array:
    """The row ids of a step, int32[1, b]."""
    return jax.block_until_ready(self._ids(self.key, self.active, np.int32(step)))

  def check(self) -> None:
    """Makes some plans; raises if one is not what it must be."""
    for _ in range(CHECKED_PLANS):
      before, carried = np.array(self.columns.rows["planned"]), self._carried
      self.next()
      mask = unpacked(self.active.tiles, self.padded)
      assert int(self.active.count) == mask.sum() == self.rows, (mask.sum(), self.rows)
      assert int(self.active.carried.count) == carried
      assert not mask[self.size :].any(), "a padded row is planned"
      np.testing.assert_array_equal(np.asarray(self.columns.rows["planned"]) - before, mask)
      last = self._spent_at - 1
      steps = range(self.step, last + 1) if self.size <= CHECKED_WHOLE else (self.step, last)
      ids = np.concatenate([np.asarray(self.batch(step))[0] for step in steps])[carried:]
      assert mask[ids].all(), "a batch has rows that are not planned"
      assert len(np.unique(ids)) == len(ids), "a row comes twice"
      assert len(ids) == len(steps) * BATCH_SIZE - carried


def of_mesh(columns: Columns, active: ActivePlan, pool: Pool, mesh: Mesh) -> Any:
  """How a mesh holds a selector's state, its plan and the pool."""
  split, same = sharding.rows_sharding(mesh), sharding.replicated(mesh)
  to_sharding = lambda spec: NamedSharding(mesh, spec)
  plan = jax.tree.map(to_sharding, plan_specs(active, mesh), is_leaf=lambda x: isinstance(x, P))
  columns = Columns(dict.fromkeys(columns.rows, split), dict.fromkeys(columns.shared, same))  # pyrefly: ignore
  return columns, plan, Pool({}, split)  # pyrefly: ignore


def unpacked(tiles: Tiles, n: int) -> np.ndarray:
  """The mask that ``tiles`` are of, ``[n]``, each of whose 512 leaves was padded to whole tiles."""
  bits = np.unpackbits(np.asarray(tiles.words).view(np.uint8), bitorder="little")
  leaves = bits.reshape(LEAVES, -1)
  assert leaves.shape[1] - n // LEAVES < TILE
  assert not leaves[:, n // LEAVES :].any()
  return leaves[:, : n // LEAVES].ravel().astype(bool)


def check_room(name: str, size: int, memory: Any) -> None:
  needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  with open("/proc/meminfo") as file:
    kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
  if needed > 1024 * kib:
    raise ValueError(
      f"{name} on {size:,} rows takes {needed / 2**30:.1f} GiB and {kib / 2**20:.1f} are free:"
      " leave that size out"
    )


# ---- Measurement --------------------------------------------------------------------------------


def measure(name: str, size: int, seconds: float) -> dict[str, Any]:
  """One case, checked and then timed."""
  if name == "increment":
    column = jnp.zeros(padded_size(size), jnp.int32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def increment() -> float:
      nonlocal column
      began = time.perf_counter()
      column = jax.block_until_ready(add(column))
      return time.perf_counter() - began

    plan = repeated(increment, seconds)
    assert int(column[0]) == int(column[-1]) == plan["calls"]
    return {"selector": name, "size": size, "state_bytes": column.nbytes, "plan": plan}

  at_start = memory_of_process("VmRSS")
  plans = Plans(name, size)
  plans.check()
  forget_peak()
  result = {
    "selector": name,
    "size": size,
    "plan_rows": plans.rows,
    "state_bytes": sum(leaf.nbytes for leaf in split_arrays(plans)),
    "temporary_bytes": plans.memory.temp_size_in_bytes,
    "compile_seconds": plans.compile_seconds,
    "plan": repeated(plans.next, seconds),
    "resident_bytes_at_start": at_start,
    "peak_resident_bytes": memory_of_process("VmHWM"),
  }
  first, steps = plans.step, plans._spent_at - plans.step
  places = iter(np.random.default_rng(0).integers(steps, size=BATCHES + 100).tolist())

  def find() -> float:
    began = time.perf_counter()
    plans.batch(first + next(places))
    return time.perf_counter() - began

  result["batch"] = repeated(find, math.inf, most=BATCHES)
  if name == "rep_div":
    result["plan_new_exponent"] = repeated(lambda: plans.next(new_exponent=True), seconds)
    result["peak_resident_bytes_new_exponent"] = memory_of_process("VmHWM")
  return result


def repeated(call: Callable[[], float], seconds: float, most: int = MOST_REPEATS) -> dict[str, Any]:
  """Calls that are warm: median, extremes and quartiles of their seconds, and page faults."""
  warm_up = 1  # beside the plans that were checked
  for _ in range(warm_up):
    call()
  times: list[float] = []
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  while len(times) < LEAST_REPEATS or (len(times) < most and sum(times) < seconds):
    times.append(call())
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
  low, quarter, middle, three_quarters, high = np.percentile(times, (0, 25, 50, 75, 100)).tolist()
  return {
    "seconds": middle,
    "least": low,
    "most": high,
    "quartiles": [quarter, three_quarters],
    "repeats": len(times),
    "calls": warm_up + len(times),
    "page_faults_a_call": faults / len(times),
  }


def split_arrays(plans: Plans) -> list[jax.Array]:
  """What grows with the pool."""
  tree = (plans.columns.rows, plans.active.tiles, plans.active.weight, plans.pool)
  return jax.tree.leaves(tree)


def memory_of_process(what: str) -> int:
  with open("/proc/self/status") as file:
    return next(1024 * int(line.split()[1]) for line in file if line.startswith(what))


def forget_peak() -> None:
  """VmHWM becomes what is resident now."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")


# ---- Table and plot -----------------------------------------------------------------------------


def exponents(results: list[dict[str, Any]], what: str) -> list[float]:
  """p of seconds ~ n**p between each size and the one before it; NaN for the first."""
  n = np.log([result["size"] for result in results])
  t = np.log([result[what]["seconds"] for result in results])
  return [math.nan, *(np.diff(t) / np.diff(n)).tolist()]


def curves(results: list[dict[str, Any]], what: str) -> dict[str, list[dict[str, Any]]]:
  found = {name: [r for r in results if r["selector"] == name and what in r] for name in NAMES}
  return {name: sorted(rows, key=lambda r: r["size"]) for name, rows in found.items() if rows}


def table(results: list[dict[str, Any]]) -> str:
  lines = [
    "| selector | rows | plan ms | ns a row | p | batch of 1024 µs | state B a row |"
    " temporaries B a row | peak GiB |",
    f"|{9 * '---|'}",
  ]
  span = lambda x, unit: (
    f"{unit * x['seconds']:.3g} ({unit * x['least']:.3g} to {unit * x['most']:.3g})"
  )
  for what, suffix in (("plan", ""), ("plan_new_exponent", ", new exponent")):
    for name, rows in curves(results, what).items():
      for result, p in zip(rows, exponents(rows, what), strict=True):
        size, is_plan = result["size"], what == "plan" and "batch" in result
        peak = result.get("peak_resident_bytes" + ("" if what == "plan" else "_new_exponent"))
        cells = [
          name + suffix,
          f"{size:,}",
          span(result[what], 1e3),
          f"{1e9 * result[what]['seconds'] / size:.3g}",
          "" if math.isnan(p) else f"{p:.2f}",
          span(result["batch"], 1e6) if is_plan else "",
          f"{result['state_bytes'] / size:.1f}",
          f"{result['temporary_bytes'] / size:.1f}" if "temporary_bytes" in result else "",
          f"{peak / 2**30:.2f}" if peak else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
  """A row a size and a column a selector, of times, and what the largest pool takes."""
  found = {(r["selector"], r["size"]): r for r in result["results"]}
  sizes = sorted({size for _, size in found})
  kinds = [(name, "plan") for name in NAMES] + [("rep_div", "plan_new_exponent")]
  heads = [name if what == "plan" else f"{name}, new exponent" for name, what in kinds]
  parts = []
  for title, unit in (("rows", lambda size: 1e3), ("nanoseconds a row", lambda size: 1e9 / size)):
    lines = [f"| {title} | {' | '.join(heads)} |", f"|{(len(heads) + 1) * '---|'}"]
    for size in sizes:
      times = [found.get((name, size), {}).get(what) for name, what in kinds]
      cells = ["" if time is None else f"{unit(size) * time['seconds']:.3g}" for time in times]
      lines.append(f"| {size:,} | {' | '.join(cells)} |")
    parts.append("\n".join(lines))
  largest = [found[name, sizes[-1]] for name in NAMES[1:] if (name, sizes[-1]) in found]
  a_row = lambda what: [f"{r[what] / r['size']:.1f}" if what in r else "" for r in largest]
  lines = [f"| at {sizes[-1]:,} | {' | '.join(r['selector'] for r in largest)} |"]
  lines.append(f"|{(len(largest) + 1) * '---|'}")
  lines.append(f"| state, bytes a row | {' | '.join(a_row('state_bytes'))} |")
  lines.append(f"| temporaries, bytes a row | {' | '.join(a_row('temporary_bytes'))} |")
  peak = [f"{r.get('peak_resident_bytes', math.nan) / 2**30:.2f}" for r in largest]
  lines.append(f"| peak of the process, GiB | {' | '.join(peak)} |")
  batch = [f"{1e6 * r['batch']['seconds']:.0f}" for r in largest]
  lines.append(f"| rows of a batch of {BATCH_SIZE:,}, µs | {' | '.join(batch)} |")
  return "\n\n".join([*parts, "\n".join(lines)])


def plot(results: list[dict[str, Any]], path: pathlib.Path) -> None:
  figure = Figure(figsize=(13, 4.4), layout="constrained")
  whole, a_row, batch = figure.subplots(1, 3)
  for what, suffix in (("plan", ""), ("plan_new_exponent", ", new exponent"), ("batch", "")):
    for name, rows in curves(results, what).items():
      n = np.array([r["size"] for r in rows])
      median, least, most = (
        np.array([r[what][k] for r in rows]) for k in ("seconds", "least", "most")
      )
      look = {"color": f"C{NAMES.index(name)}", "label": name + suffix, "marker": "o", "ms": 4}
      look["ls"] = "--" if suffix else "-"
      if what == "batch":
        batch.plot(n, 1e6 * median, **look)
        quartiles = 1e6 * np.array([r[what]["quartiles"] for r in rows]).T
        batch.fill_between(n, *quartiles, color=look["color"], alpha=0.15, lw=0)
        continue
      whole.plot(n, 1e3 * median, **look)
      a_row.plot(n, 1e9 * median / n, **look)
      a_row.fill_between(n, 1e9 * least / n, 1e9 * most / n, color=look["color"], alpha=0.15, lw=0)
  n = np.array(whole.get_xlim())
  for nanoseconds in (1, 10):
    whole.plot(n, 1e-6 * nanoseconds * n, color="0.7", lw=0.8, ls=":", zorder=0)
  for axes, title in (
    (whole, "a plan of half of the pool, ms (dotted: 1 and 10 ns a row)"),
    (a_row, "the same, ns a row"),
  ):
    axes.set(xscale="log", yscale="log", xlabel="rows of the pool", title=title)
    axes.grid(alpha=0.3)
  batch.set(xscale="log", xlabel="rows of the pool", title="rows of a batch of 1024, µs", ylim=0)
  batch.grid(alpha=0.3)
  a_row.legend(fontsize=8)
  figure.savefig(path, dpi=120)


def define_flags() -> None:
  """The flags of the command."""
  flags.DEFINE_list("selectors", ",".join(NAMES), "To measure, of those; none: only the table.")
  sizes = "60000,250000,1000000,4000000,10000000,30000000,100000000"
  flags.DEFINE_list("sizes", sizes, "Rows of the pool.")
  flags.DEFINE_float("seconds", 4.0, "Of the repeats of each case, about.")


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  path = RESULTS / "pool_size.json"
  for name in given.selectors:
    if name not in NAMES:
      raise app.UsageError(f"--selectors has {name!r}, there are {', '.join(NAMES)}")
    for size in map(int, given.sizes):
      # A process each, so that the memory of one is not that of another.
      fresh = multiprocessing.get_context("spawn")
      with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        result = pool.submit(measure, name, size, given.seconds).result()
      result["machine"] = machine()
      kept = json.loads(path.read_text())["results"] if path.exists() else []
      kept = [r for r in kept if (r["selector"], r["size"]) != (name, size)] + [result]
      kept.sort(key=lambda r: (NAMES.index(r["selector"]), r["size"]))
      settings = {"ratio": RATIO, "batch_size": BATCH_SIZE, "latents": LATENTS, "active": ACTIVE}
      values = {"settings": settings, "results": kept}
      path.write_text(json.dumps(values, indent=2) + "\n")
      print(f"{name} {size:,}: {1e3 * result['plan']['seconds']:.3g} ms", flush=True)
  results = json.loads(path.read_text())["results"]
  plot(results, path.with_suffix(".png"))
  print(table(results))


if __name__ == "__main__":
  define_flags()
  app.run(main)
