"""The picture of a pool and a subset: subset.png."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jsel.kernels import whitening
from jsel.selection.pool import Pool
from jsel.selection.subset import Subset
from jsel.training import outputs
from jsel.training.curves import STYLE

SAMPLE, PICKS = 20_000, 4_000  # points, at the most
KINDS = 8  # that have a colour
BARS = 12
# Okabe and Ito's colours, told apart by the colour-blind and in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#a3a500")
POOL, OTHER = "#9aa0a6", "#555555"
GREYS = LinearSegmentedColormap.from_list("pool", ["#f1f2f3", "#7d848b"])


class Drawing(NamedTuple):
  """What is drawn."""

  sample: np.ndarray  # rows of the pool
  picks: np.ndarray  # places in the subset
  x: np.ndarray  # [sample + picks, d] their embeddings


def rows_to_draw(pool: Pool, subset: Subset, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the pool, and places in the subset, whose embeddings the picture needs."""
  rng = np.random.default_rng(seed)
  draw = lambda n, most: np.sort(rng.choice(n, min(n, most), replace=False))
  return draw(pool.size, SAMPLE), draw(len(subset.index), PICKS)


def draw(
  path: epath.Path,
  pool: Pool,
  subset: Subset,
  drawing: Drawing,
  *,
  title: str,
  balance: Mapping[str, Any],
) -> None:
  """Draws the subset in the pool, and what both consist of.

  Args:
    path: of the picture.
    pool: selected from.
    subset: of it.
    drawing: what of both is drawn.
    title: of the picture.
    balance: `jsel.selection.balance.balance`.
  """
  sample, picks, x = drawing
  finite = np.isfinite(x[: len(sample)]).all(axis=1)
  points = components(x[: len(sample)][finite], x[len(sample) :])
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(13.2, 7.4), facecolor="white")
    FigureCanvasAgg(figure)
    panels = [*list(balance)[:2], "score"]
    grid = figure.add_gridspec(
      len(panels), 2, width_ratios=(1.35, 1), left=0.035, right=0.98, top=0.85, bottom=0.075,
      wspace=0.24, hspace=0.55,
    )  # fmt: skip
    figure.text(0.035, 0.95, title, fontsize=15, weight="bold")
    facts = f"{len(subset.index):,} of {pool.size:,} rows"
    figure.text(0.035, 0.915, facts, fontsize=10.5, color=OTHER)
    _draw_points(figure.add_subplot(grid[:, 0]), points, *kinds(pool, subset), picks)
    for row, name in enumerate(panels):
      axes = figure.add_subplot(grid[row, 1])
      if name == "length":
        length = pool.numbers("length")
        assert length is not None
        _draw_lengths(axes, length, length[subset.index])
      elif name == "score":
        _draw_scores(axes, subset)
      else:
        _draw_shares(axes, name, balance[name])
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
  outputs.put(path, content.getvalue())


def components(sample: np.ndarray, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Both in the two directions in which ``sample`` varies most, ``[.., 2]`` each."""
  rank = min(2, sample.shape[1], len(sample) - 1)
  if rank < 1:
    return np.zeros((len(sample), 2)), np.zeros((len(picks), 2))
  fit = jax.tree.map(np.asarray, whitening.fit(sample, rank=rank))
  flat = lambda x: np.pad((x - fit.mean) @ fit.components.T, [(0, 0), (0, 2 - rank)])
  return flat(sample), flat(picks)


def kinds(pool: Pool, subset: Subset) -> tuple[str, np.ndarray]:
  """By what picks are coloured, and its value for each: the first that has a few values."""
  columns: dict[str, np.ndarray] = {}
  if subset.task is not None:
    columns["task"] = np.array([*subset.tasks, "(none)"])[subset.task]
  for name in ("source", "group"):
    if name in pool.columns:
      values = pool.columns[name].take(subset.index).to_pylist()
      columns[name] = np.array([str(value) for value in values])
  for name in ("query", "cluster"):
    if getattr(subset, name) is not None:
      columns[name] = np.array([str(value) for value in getattr(subset, name)])
  few = [name for name, column in columns.items() if 2 <= len(np.unique(column)) <= KINDS]
  name = next(iter(few or columns), "")
  return name, columns.get(name, np.full(len(subset.index), "picked"))


def _draw_points(
  axes: Axes,
  points: tuple[np.ndarray, np.ndarray],
  name: str,
  values: np.ndarray,
  picks: np.ndarray,
) -> None:
  of_pool, of_picks = points
  # What the few rows far out would squeeze together is worth more than they are.
  low, high = np.quantile(np.concatenate(points), [0.001, 0.999], axis=0)
  margin = 0.05 * np.maximum(high - low, 1e-6)
  low, high = low - margin, high + margin
  axes.hexbin(
    *of_pool.T,
    gridsize=46,
    extent=(low[0], high[0], low[1], high[1]),
    mincnt=1,
    bins="log",
    cmap=GREYS,
    linewidths=0.2,
  )
  found, counts = np.unique(values, return_counts=True)
  top = found[np.argsort(-counts, kind="stable")][:KINDS]
  drawn = f", {len(picks):,} of them" if len(picks) < len(values) else ""
  values = values[picks]
  size = float(np.clip(3000 / max(len(picks), 1), 5, 36))
  look = {"s": size, "linewidths": 0.35, "edgecolors": "white", "alpha": 0.9}
  # The most frequent first, that they do not cover the others.
  for colour, value in zip(COLOURS, top, strict=False):
    axes.scatter(*of_picks[values == value].T, color=colour, label=value, **look)
  rest = ~np.isin(values, top)
  if rest.any():
    axes.scatter(*of_picks[rest].T, color=OTHER, label=f"{len(found) - KINDS} others", **look)
  axes.set_xlim(low[0], high[0])
  axes.set_ylim(low[1], high[1])
  axes.set_xticks([])
  axes.set_yticks([])
  axes.grid(visible=False)
  axes.set_xlabel("first principal component of the pool (grey, darker where denser)")
  axes.set_ylabel("second")
  axes.legend(
    frameon=False,
    loc="lower right",
    bbox_to_anchor=(1.01, 0.995),
    ncols=5,
    columnspacing=0.9,
    handletextpad=0.1,
    borderpad=0.1,
    fontsize=8.5,
    markerscale=float(np.sqrt(36 / size)),
  )
  axes.set_title(f"picks{drawn}, by {name}" if name else f"picks{drawn}", loc="left", color=OTHER)


def _draw_lengths(axes: Axes, pool: np.ndarray, subset: np.ndarray) -> None:
  low, high = pool.min(), max(np.quantile(pool, 0.995), pool.min() + 1)
  # Bins of whole numbers: else some hold two lengths and others one.
  width = max(np.ceil((high - low) / 40), 1)
  edges = np.arange(low, high + 2 * width, width) - 0.5
  for values, colour, label, filled in (
    (pool, POOL, "pool", True),
    (subset, COLOURS[1], "subset", False),
  ):
    weights = np.full(len(values), 1 / len(values))
    axes.hist(
      np.clip(values, edges[0], edges[-1] - 0.5),
      edges,
      weights=weights,
      color=colour,
      label=f"{label}, median {np.median(values):,.0f}",
      histtype="stepfilled" if filled else "step",
      alpha=0.55 if filled else 1,
      linewidth=1.6,
    )
  axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  axes.set_title("length", loc="left", color=OTHER)
  axes.legend(frameon=False, fontsize=8.5)


def _draw_shares(axes: Axes, name: str, counts: Mapping[str, Mapping[str, int]]) -> None:
  total = {which: sum(row[which] for row in counts.values()) for which in ("pool", "subset")}
  share = {
    value: tuple(row[which] / max(total[which], 1) for which in ("pool", "subset"))
    for value, row in counts.items()
  }
  shown = sorted(share, key=lambda value: -max(share[value]))[:BARS]
  at = np.arange(len(shown))
  for offset, which, colour in ((-0.2, 0, POOL), (0.2, 1, COLOURS[1])):
    heights = [share[value][which] for value in shown]
    axes.bar(at + offset, heights, 0.38, color=colour, label=("pool", "subset")[which])
  long = max(len(value) for value in shown) > 60 // len(shown)
  labels = [value if len(value) < 19 else f"{value[:17]}…" for value in shown]
  axes.set_xticks(at, labels, rotation=30 if long else 0, ha="right" if long else "center")
  axes.grid(visible=False, axis="x")
  axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  more = f", {len(shown)} of {len(counts)}" if len(shown) < len(counts) else ""
  axes.set_title(f"{name}{more}", loc="left", color=OTHER)
  axes.legend(frameon=False, fontsize=8.5)


def _draw_scores(axes: Axes, subset: Subset) -> None:
  score = subset.score
  rank = np.arange(len(score))
  axes.plot(rank, score, ".", color=COLOURS[0], markersize=2, rasterized=True)
  axes.set_xlabel("rank")
  axes.set_title("score, what the method ranks by", loc="left", color=OTHER)
