"""What a benchmark of a kernel consists of, and how all of them are run, kept and shown."""

import functools
import json
import os
import pathlib
import timeit
from collections.abc import Callable
from typing import Any, NamedTuple

# Peers choose their code by the processor that is there.
os.environ.pop("OPENBLAS_CORETYPE", None)

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.machine import machine
from benchmarks.turns import Contender, take_turns
from jsel import native

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REST = 0.3  # seconds before a turn
PEERS = ("torch", "faiss-cpu", "scikit-learn", "scipy")


class Work(NamedTuple):
  """One job, ready to be done."""

  jsel: Contender
  peers: list[Contender]
  error: Callable[[str, Any], float]  # of a contender's result, against float64
  memory: int | None = None  # bytes of temporaries of jsel's program
  # Of the products that jsel cannot do without: additions and multiplications, by operand.
  operations: dict[str, float] | None = None


class Case(NamedTuple):
  """A row of the table."""

  make: Callable[..., Work]  # make(**sizes)
  sizes: dict[str, Any]
  smoke: dict[str, Any]  # sizes that take no time
  most_error: float  # of jsel's result
  must_reach: float  # time of the best peer / time of jsel


def temporaries(function: Callable[..., Any], *arguments: Any) -> int:
  """Bytes that the compiled program of ``function`` needs beside arguments and results.

  What kernels in C++ allocate is added, though they need not hold it while XLA holds the most.
  """
  compiled = jax.jit(function).lower(*arguments).compile()
  analysis = compiled.memory_analysis()
  assert analysis is not None
  native.most_held()
  jax.block_until_ready(compiled(*arguments))
  return analysis.temp_size_in_bytes + native.most_held()


@functools.cache
def product_rate(operand: str, size: int) -> float:
  """Operations a second of a square product of such operands added in float32, at its best."""
  a = jnp.ones((size, size), operand)
  precision = jax.lax.Precision.HIGHEST if operand == "float32" else None
  product = jax.jit(
    lambda a, b: jax.lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)
  )
  work = lambda: jax.block_until_ready(product(a, a))
  work()
  return 2 * size**3 / min(timeit.repeat(work, number=1, repeat=10))


def peer(module: str, make: Callable[[], list[Contender]]) -> list[Contender]:
  """The contenders of ``make``, or none where ``module`` is not installed."""
  try:
    __import__(module)
  except ModuleNotFoundError:
    return []
  return make()


def measure(case: Case, *, smoke: bool, repeats: int, seconds: float) -> dict[str, Any]:
  """All contenders of a case: first whether they are right, then their times.

  Raises:
    AssertionError: if jsel's result is not as exact as it has to be.
  """
  sizes = case.smoke if smoke else case.sizes
  work = case.make(**sizes)
  limits = {"repeats": repeats, "seconds": seconds, "rest": 0.0 if smoke else REST}
  times, results = take_turns([work.jsel, *work.peers], **limits)
  errors = {name: float(work.error(name, result)) for name, result in results.items()}
  error = errors[work.jsel.name]
  assert error <= case.most_error, f"{work.jsel.name}: error {error:.3g} > {case.most_error:g}"
  contenders: dict[str, dict[str, Any]] = {
    contender.name: {
      "settings": contender.settings,
      "error": errors[contender.name],
      **times[contender.name].summary(),
    }
    for contender in (work.jsel, *work.peers)
  }
  own = contenders[work.jsel.name]
  ratio = lambda what: {
    contender.name: contenders[contender.name][what] / own[what] for contender in work.peers
  }
  operations = work.operations or {}
  rates = {operand: product_rate(operand, 128 if smoke else 2048) for operand in operations}
  floor = sum(count / rates[operand] for operand, count in operations.items())
  return {
    "sizes": sizes,
    "operations": operations,
    "product_rates": rates,
    "products_seconds": floor or None,
    "must_reach": case.must_reach,
    "most_error": case.most_error,
    "temporary_bytes": work.memory,
    "jsel": work.jsel.name,
    "contenders": contenders,
    "ratios_by_median": ratio("seconds"),
    "ratios_by_least": ratio("least"),
  }


def table(results: dict[str, dict[str, Any]]) -> str:
  """A row a case, as Markdown."""
  lines = [
    "| case | jsel ms, median (least) | its products alone | best peer | its ms"
    " | ratio by median | by least | must reach | error | temporaries MiB |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for name, result in results.items():
    own = result["contenders"][result["jsel"]]
    span = lambda times: f"{1e3 * times['seconds']:.3g} ({1e3 * times['least']:.3g})"
    memory = result["temporary_bytes"]
    floor = result["products_seconds"]
    products = "" if floor is None else f"{1e3 * floor:.3g}"
    cells = [name, span(own), products, "none installed", "", "", "", f"{result['must_reach']:g}"]
    by_median, by_least = result["ratios_by_median"], result["ratios_by_least"]
    if by_median:
      best = min(by_median, key=lambda peer: by_median[peer])
      cells[3:5] = best, span(result["contenders"][best])
      cells[5:7] = f"{by_median[best]:.2f}", f"{min(by_least.values()):.2f}"
    cells += [f"{own['error']:.1e}", "" if memory is None else f"{memory / 2**20:.1f}"]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def run(name: str, cases: dict[str, Case]) -> None:
  """The command of a table: measures, keeps the results in kernels_NAME.json, and prints them."""
  flags.DEFINE_bool("smoke", False, "Small sizes, and nothing is kept: whether all of it works.")
  flags.DEFINE_integer("repeats", 15, "Turns of each contender, at most.")
  flags.DEFINE_float("seconds", 60.0, "Of the turns of a case, about; three turns at least.")
  flags.DEFINE_string("only", "", "The cases whose name has this in it.")

  def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    path = RESULTS / f"kernels_{name}.json"
    kept = json.loads(path.read_text()) if path.exists() and not given.smoke else {"cases": {}}
    limits = {"repeats": 2, "seconds": 1.0} if given.smoke else {}
    limits = {"repeats": given.repeats, "seconds": given.seconds, **limits}
    for title, case in cases.items():
      if given.only not in title:
        continue
      result = measure(case, smoke=given.smoke, **limits)
      kept["cases"][title] = {**result, "machine": machine(PEERS)}
      print(table({title: result}).splitlines()[-1], flush=True)
      if not given.smoke:
        path.write_text(json.dumps(kept, indent=2) + "\n")
    print(table(kept["cases"]))

  app.run(main)
