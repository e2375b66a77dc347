"""How far off the total loss is that a weighted sample estimates, against uniform sampling.

    python -m benchmarks.sensitivity_error --pool=wordnet
    python -m benchmarks.sensitivity_error --pool=natural_instructions

The losses are those of a probe on WordNet's noun glosses, as in benchmarks/subset_accuracy.py, or
of a language model on answers, as in benchmarks/instruction_losses.py. For samples of 100 to 10,000
rows, 400 draws each: the root mean square of (estimate - total) / total, and the mean error in its
own standard errors, which is within 4 for an unbiased estimate. Sensitivity sampling is told the
loss of a random share of the rows and finds its centers among them; uniform sampling weighs each
row n / s. Then how often the estimate misses the bound eps (L + 2 Phi) that holds with probability
1 - delta, with Lambda the true largest ratio.

Leaves its part of benchmarks/results/sensitivity_error.json.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import glosses, instruction_losses
from benchmarks.kernels.cases import RESULTS
from benchmarks.machine import machine
from jsel.kernels import kmeans
from jsel.selectors.sensitivity import DRAWS, bounds, nearest, probabilities, slopes_of

PATH = RESULTS / "sensitivity_error.json"
SIZES = (100, 300, 1000, 3000, 10_000)
FLOOR = 0.05
# Shares of the rows whose losses are known, and clusters.
DESIGNS = {
  "wordnet": ((1.0, 256), (0.05, 256), (0.01, 256), (0.05, 64)),
  "natural_instructions": ((1.0, 1024), (1.0, 256), (0.05, 256)),
}
DELTA = 0.1
# "ratio" is "priority" with the estimate over that of the sum of p, which is known to be 1.
KINDS = ("priority", "ratio", "systematic", "replacement")


class Design(NamedTuple):
  """What rows are drawn by."""

  p: np.ndarray  # [n] float64, sums to 1
  labels: np.ndarray  # [n] int32
  slack: float  # Phi: the sum of Lambda times the distance
  correlation: float  # of the bound and the loss


def design(
  x: np.ndarray,
  loss: np.ndarray,
  *,
  known: float,
  clusters: int,
  quantile: float,
  power: int = 2,
  seed: int = 0,
) -> Design:
  """That of `jsel.selectors.sensitivity`, with what its bound is made of.

  Args:
    x: ``[n, d]`` float32.
    loss: ``[n]``, at least 0.
    known: share of the rows whose loss it is told.
    clusters: of k-means.
    quantile: of the ratios that a cluster's Lambda is; 1 bounds all that are known.
    power: of the distance.
    seed: of the rows that are known and of k-means.
  """
  n = len(x)
  rows = np.random.default_rng([4, seed]).permutation(n)[: round(known * n)]
  told = np.full(n, np.nan)
  told[rows] = loss[rows]
  every = jnp.asarray(x)
  centers = kmeans.plus_plus(jax.random.key(seed), every, clusters)
  centers = kmeans.fit(every, centers, max_iters=50).centers
  labels, distance2 = (np.asarray(found) for found in kmeans.assign(every, centers))
  center = nearest(labels, np.where(np.isfinite(told), distance2, np.nan))
  labels, distance2 = (np.asarray(found) for found in kmeans.assign(every, every[center]))
  distance = distance2.astype(np.float64) ** (power / 2)
  slopes = slopes_of(labels, distance, told, told[center], slope=-1.0, quantile=quantile)
  bound = bounds(labels, distance, told[center], slopes[labels])
  p = probabilities(bound, np.ones(n, bool), FLOOR)
  slack = float((bound - told[center][labels]).sum())
  return Design(p, labels, slack, float(np.corrcoef(bound, loss)[0, 1]))


def estimates(
  found: Design, loss: np.ndarray, size: int, draws: int, *, kind: str, uniform: bool = False
) -> np.ndarray:
  """``[draws]`` estimates of the total by samples of ``kind``, each of a seed of its own.

  Uniform samples are drawn with replacement where ``kind`` is, else without.
  """
  n = len(loss)
  totals = []
  for seed in range(draws):
    if uniform:
      rng = np.random.default_rng([5, seed])
      picks = rng.choice(n, size, replace=kind == "replacement")
      totals.append(n / size * loss[picks].sum())
      continue
    index, weight = drawn(jax.random.key(seed), found, size, kind)
    total = np.dot(weight, loss[index])
    totals.append(total / np.dot(weight, found.p[index]) if kind == "ratio" else total)
  return np.array(totals)


def drawn(key: jax.Array, found: Design, size: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
  """Rows of a sample and what their losses are to be multiplied by, float64."""
  draw = DRAWS["priority" if kind == "ratio" else kind]
  ranking = draw(key, found.p, found.labels, size)
  return ranking.index, np.asarray(ranking.weight, np.float64)


def errors(totals: np.ndarray, truth: float) -> dict[str, float]:
  """Relative root mean square, and the mean error in standard errors."""
  off = totals / truth - 1
  standard = off.std(ddof=1) / np.sqrt(len(off))
  return {"rms": float(np.sqrt((off**2).mean())), "bias_sigmas": float(off.mean() / standard)}


def compare(
  found: Design, loss: np.ndarray, sizes: Sequence[int], draws: int
) -> list[dict[str, Any]]:
  """A result for each size and kind of draw."""
  results = []
  for size in sizes:
    for kind in KINDS:
      own = errors(estimates(found, loss, size, draws, kind=kind), loss.sum())
      bar = errors(estimates(found, loss, size, draws, kind=kind, uniform=True), loss.sum())
      results.append(
        {"size": size, "kind": kind, "draws": draws, "sensitivity": own, "uniform": bar}
      )
  return results


def epsilon(size: int, delta: float, floor: float) -> float:
  """The least eps with ``(1 - floor) size >= (2 + 2 eps / 3) log(2 / delta) / eps^2`` (Bernstein).

  >>> round(epsilon(1000, 0.1, 0.05), 3)
  0.080
  """
  log = np.log(2 / delta) / (1 - floor)
  return float((log / 3 + np.sqrt((log / 3) ** 2 + 2 * log * size)) / size)


def misses(
  found: Design, loss: np.ndarray, sizes: Sequence[int], draws: int
) -> list[dict[str, Any]]:
  """How often draws with replacement miss the bound, which `DELTA` of them may."""
  results = []
  for size in sizes:
    eps = epsilon(size, DELTA, FLOOR)
    off = np.abs(estimates(found, loss, size, draws, kind="replacement") - loss.sum())
    missed = float((off > eps * (loss.sum() + 2 * found.slack)).mean())
    relative = eps * (1 + 2 * found.slack / loss.sum())
    results.append(
      {
        **{"size": size, "draws": draws, "eps": eps, "of_total": float(relative)},
        **{"delta": DELTA, "missed": missed, "largest": float(off.max() / loss.sum())},
      }
    )
  return results


def by_tokens(tokens: np.ndarray) -> Design:
  """Rows drawn in proportion to the tokens of their answers, which no loss is needed for."""
  p = probabilities(tokens.astype(np.float64), np.ones(len(tokens), bool), FLOOR)
  return Design(p, np.zeros(len(tokens), np.int32), 0.0, 0.0)


def table(results: list[dict[str, Any]]) -> str:
  """A row a design, size and kind of draw, as Markdown."""
  lines = [
    "| losses known | clusters | correlation of bound and loss | draws | rows drawn"
    " | uniform, RMS | sensitivity, RMS | uniform over sensitivity | bias in standard errors |",
    f"|{9 * '---|'}",
  ]
  for one in results:
    for run in one["sizes"]:
      own, bar = run["sensitivity"], run["uniform"]
      lines.append(
        f"| {100 * one['known']:g} % | {one['clusters']} | {one['correlation']:.2f}"
        f" | {run['kind']} | {run['size']:,} | {100 * bar['rms']:.2f} % | {100 * own['rms']:.2f} %"
        f" | {bar['rms'] / own['rms']:.2f} | {own['bias_sigmas']:+.1f} |"
      )
  return "\n".join(lines)


def worth(sizes: list[dict[str, Any]], kind: str) -> str:
  """Uniform sampling's error over that of a kind of draws, size after size."""
  ratio = lambda run: run["uniform"]["rms"] / run["sensitivity"]["rms"]
  return ", ".join(f"{ratio(run):.2f}" for run in sizes if run["kind"] == kind)


def bound_table(results: list[dict[str, Any]]) -> str:
  """A row a size, as Markdown."""
  lines = ["| rows drawn | draws | eps | bound of the total | largest error | missed | allowed |"]
  lines.append(f"|{7 * '---|'}")
  for run in results:
    lines.append(
      f"| {run['size']:,} | {run['draws']:,} | {run['eps']:.3f} | {100 * run['of_total']:.1f} % |"
      f" {100 * run['largest']:.1f} % | {100 * run['missed']:.2f} % | {100 * run['delta']:g} % |"
    )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  given = flags.FLAGS
  result: dict[str, Any]
  if given.pool == "wordnet":
    rows, parts, _, losses, right = glosses.probed_wordnet(given.cache)
    x, loss = rows.x[parts.pool], losses.astype(np.float64)
    result = {"probe_accuracy": right}
  else:
    x, loss, tokens = instruction_losses.scored(given.folder, given.cache)
    sizes = compare(by_tokens(tokens), loss, SIZES, given.draws)
    result = {"by_tokens": sizes, "mean_tokens": float(tokens.mean())}
  results = []
  for known, clusters in DESIGNS[given.pool]:
    found = design(x, loss, known=known, clusters=clusters, quantile=0.95)
    about = {"known": known, "clusters": clusters, "correlation": found.correlation}
    results.append({**about, "sizes": compare(found, loss, SIZES, given.draws)})
    print("\n".join(table(results[-1:]).splitlines()[2:]), flush=True)
  true = design(x, loss, known=1.0, clusters=256, quantile=1.0)
  bound = misses(true, loss, SIZES, 2000)
  result |= {
    **{"rows": len(x), "mean_loss": float(loss.mean())},
    "coefficient_of_variation": float(loss.std() / loss.mean()),
    **{"results": results, "bound": bound, "machine": machine()},
  }
  kept = json.loads(PATH.read_text()) if PATH.exists() else {}
  PATH.write_text(json.dumps(kept | {given.pool: result}, indent=2) + "\n")
  print(bound_table(bound))


if __name__ == "__main__":
  flags.DEFINE_enum("pool", "wordnet", list(DESIGNS), "Whose losses.")
  flags.DEFINE_string(
    "folder", "", "natural_instructions/ of BIG-bench; of the user's cache if empty."
  )
  flags.DEFINE_string("cache", glosses.CACHE, "Folder of embeddings, outside of the repository.")
  flags.DEFINE_integer("draws", 400, "For each size and kind, at least 100.")
  app.run(main)
