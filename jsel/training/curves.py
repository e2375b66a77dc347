"""The picture of a run: curves.png."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pyarrow.parquet
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from jsel.training import outputs
from jsel.training.metrics import read_metrics

# Okabe and Ito's blue and vermilion: told apart by the colour-blind and in print.
_TRAIN, _EVAL, _INK, _FAINT = "#0072b2", "#d55e00", "#222222", "#8a8a8a"
STYLE = {
  "font.family": "DejaVu Sans",
  "font.size": 9.5,
  "text.color": _INK,
  "axes.labelcolor": _INK,
  "axes.edgecolor": "#b0b0b0",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#e8e8e8",
  "grid.linewidth": 0.8,
  "xtick.color": "#555555",
  "ytick.color": "#555555",
  "xtick.labelsize": 8.5,
  "ytick.labelsize": 8.5,
}


def plot_curves(workdir: os.PathLike[str] | str) -> epath.Path:
  """Draws ``workdir/curves.png`` from the files of the run, and returns its path.

  Accuracy and loss against examples seen and against wall time, from
  metrics.jsonl; how often each example was trained on, from exposure.parquet; the
  title from summary.json and config.json. What is missing is left out.

  Raises:
    ValueError: if metrics.jsonl is damaged, naming the line, or another file is no JSON.
  """
  workdir = epath.Path(workdir)
  lines = read_metrics(workdir)
  summary, config = _read_json(workdir / "summary.json"), _read_json(workdir / "config.json")
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(13.2, 6.9), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
      2, 3, left=0.06, right=0.985, top=0.845, bottom=0.085, wspace=0.2, hspace=0.3
    )
    _draw_title(figure, summary, config)
    minutes = max((x or 0 for x in _column(lines, "wall_seconds")), default=0) > 300
    for row, (name, label) in enumerate((("accuracy", "accuracy, %"), ("loss", "loss"))):
      shared = None
      for column, (tag, divisor, axis_label) in enumerate(
        (
          ("examples_seen", 1, "examples seen"),
          (
            "wall_seconds",
            60 if minutes else 1,
            f"wall time, {'minutes' if minutes else 'seconds'}",
          ),
        )
      ):
        axes = figure.add_subplot(grid[row, column], sharey=shared)
        shared = shared or axes
        _draw_metric(axes, lines, name, tag, divisor, summary.get("curves_of", "test"))
        axes.set_xlabel(axis_label)
        if column == 0:
          axes.set_ylabel(label)
          axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.align_ylabels()
    _draw_exposure(figure, grid, workdir / "exposure.parquet")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
  outputs.put(workdir / "curves.png", content.getvalue())
  return workdir / "curves.png"


def _draw_title(figure: Figure, summary: Mapping[str, Any], config: Mapping[str, Any]) -> None:
  model = summary.get("model", config.get("model"))
  model = model.get("name") if isinstance(model, Mapping) else model
  bold = [summary.get("data"), model, summary.get("selector")]
  figure.text(
    0.06, 0.945, " · ".join(str(part) for part in bold if part), fontsize=15, weight="bold"
  )
  facts = []
  if summary.get("ratio") is not None:
    facts.append(f"ratio {summary['ratio']:g}")
  if summary.get("test_accuracy") is not None:
    facts.append(f"test accuracy {100 * summary['test_accuracy']:.2f} %")
  if summary.get("selection_overhead_pct") is not None:
    facts.append(f"selection {summary['selection_overhead_pct']:.2g} % of the time")
  if summary.get("examples_seen") is not None:
    facts.append(f"{summary['examples_seen']:,} examples seen")
  if summary.get("wall_seconds") is not None:
    minutes, seconds = divmod(round(summary["wall_seconds"]), 60)
    facts.append(f"{minutes} min {seconds} s" if minutes else f"{seconds} s")
  if summary.get("seed") is not None:
    facts.append(f"seed {summary['seed']}")
  figure.text(0.06, 0.905, "   ·   ".join(facts), fontsize=10.5, color="#555555")


def _draw_metric(
  axes: Axes,
  lines: Sequence[Mapping[str, Any]],
  name: str,
  against: str,
  divisor: float,
  evaluated_on: str,
) -> None:
  scale = 100 if name == "accuracy" else 1
  x, y = _points(lines, against, f"train/{name}")
  if x.size:
    axes.plot(x / divisor, scale * y, color=_TRAIN, alpha=0.22, linewidth=0.8)
    axes.plot(
      x / divisor,
      scale * _smooth(y),
      color=_TRAIN,
      linewidth=1.7,
      label="train, smoothed" if x.size >= 30 else "train",
    )
  eval_x, eval_y = _points(lines, against, f"eval/{name}")
  if eval_x.size:
    axes.plot(
      eval_x / divisor,
      scale * eval_y,
      color=_EVAL,
      linewidth=1.2,
      marker="o",
      markersize=4.2,
      markeredgecolor="white",
      markeredgewidth=0.7,
      label=evaluated_on,
    )
  if not x.size and not eval_x.size:
    _mark_missing(axes)
    return
  if against == "examples_seen":
    axes.legend(frameon=False, loc="lower right" if name == "accuracy" else "upper right")
  axes.margins(x=0.02)
  axes.set_xlim(left=0)
  if name == "accuracy":
    # The first steps are near chance and would flatten what is worth seeing.
    every = scale * np.concatenate([_smooth(y) if y.size else y, eval_y])
    axes.set_ylim(max(0, np.quantile(every, 0.05) - 5), min(100.5, every.max() + 2))
  else:
    every = np.concatenate([_smooth(y) if y.size else y, eval_y])
    axes.set_ylim(min(0, every.min()), max(1.15 * np.quantile(every, 0.97), 1e-9))


def _draw_exposure(figure: Figure, grid: Any, path: epath.Path) -> None:
  axes = figure.add_subplot(grid[:, 2])
  axes.set_xlabel("times an example was trained on")
  axes.set_ylabel("examples")
  if not path.exists():
    _mark_missing(axes)
    return
  table = pyarrow.parquet.read_table(io.BytesIO(path.read_bytes()), columns=["times_selected"])
  times = table["times_selected"].to_numpy()
  width = max(1, -(-int(times.max(initial=0) + 1) // 48))
  counts = np.bincount(times // width)
  left = width * np.arange(counts.size)
  bars = axes.bar(left + (width - 1) / 2, counts, width=0.86 * width, color=_TRAIN)
  if width == 1 and times.size:
    bars[0].set_color(_FAINT)  # never trained on
  axes.grid(visible=False, axis="x")
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
  never = int((times == 0).sum())
  axes.set_title(
    f"{never:,} of {times.size:,} never ({100 * never / max(times.size, 1):.1f} %), "
    f"mean {times.mean() if times.size else 0:.2f}, most {times.max(initial=0)}",
    fontsize=9.5,
    loc="left",
    color="#555555",
  )


def _mark_missing(axes: Axes) -> None:
  axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_FAINT)
  axes.set_xticks([])
  axes.set_yticks([])


def _read_json(path: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
  except ValueError as error:
    raise ValueError(f"{path} is no JSON ({error}): delete it, it is only for the title") from error


def _column(lines: Sequence[Mapping[str, Any]], tag: str) -> list[Any]:
  return [line.get(tag) for line in lines]


def _points(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
  """The lines that have both ``x`` and ``y``, as two arrays."""
  pairs = [
    (a, b)
    for a, b in zip(_column(lines, x), _column(lines, y), strict=True)
    if a is not None and b is not None
  ]
  values = np.asarray(pairs, np.float64).reshape(-1, 2)
  return values[:, 0], values[:, 1]


def _smooth(y: np.ndarray) -> np.ndarray:
  """Moving average over a fifteenth of the run.

  It narrows towards the start, where the curve is steep; at the end, where what
  is left is noise, it looks back.
  """
  half = y.size // 30
  total = np.concatenate([[0.0], np.cumsum(y)])
  at = np.arange(y.size)
  last = np.minimum(at + np.minimum(half, at), y.size - 1)
  first = at - np.minimum(half, at)
  return (total[last + 1] - total[first]) / (last + 1 - first)
