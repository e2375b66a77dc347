"""The subsets' part of BENCHMARKS.md, from benchmarks/results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import (
  sensitivity_error,
  subset_accuracy,
  subset_clusters,
  subset_overlap,
  subset_speed,
  subset_transfer,
)
from benchmarks.glosses import ENCODER
from benchmarks.machine import machines_of


def accuracy(result: dict[str, Any]) -> str:
  """What a classifier learns from each subset."""
  split, chosen, runs = result["split"], result["settings"], result["runs"]
  head = f"one hidden layer of {chosen['hidden']}" if chosen["hidden"] else "no hidden layer"
  seeds = max(len(run["test_accuracy"]) for run in runs)
  parts = [
    "### What a classifier learns from a subset",
    f"`python -m benchmarks.subset_accuracy` ({machines_of(runs)})",
    f"WordNet's noun glosses, {result['classes']} skewed classes, as all-MiniLM-L6-v2 embeds"
    f" them: a pool of {split['pool']:,} rows, {split['test']:,} for the test,"
    f" {split['validation']:,} for the hyperparameters, {split['probe']:,} for a probe that is"
    f" right on {100 * result['probe_accuracy']:.1f} % of the pool and whose log p(label) is the"
    f" quality, its negative the loss; {split['reserved']:,} are held out, of which each seed"
    f" draws 8 queries a class. The same softmax head for all: {head}, AdamW with a rate of"
    f" {chosen['rate']:g} that falls as a cosine and a decay of {chosen['decay']:g}, batches of"
    f" {chosen['batch']}, {chosen['epochs']} epochs of the subset: of {len(result['grid'])}"
    " settings that of the best validation accuracy on random 3.5 %. Test accuracy in percent"
    f" after the last step, {seeds} seeds, mean and 95 % interval (Student's). `classes` are"
    " those that the subset has a row of; `nearest neighbours` is the validation accuracy of"
    " their vote, without training; choosing is the call that ranks for the largest budget,"
    " training that of one head.",
    subset_accuracy.table(runs),
  ]
  if result["not_run"]:
    said = "; ".join(f"{method} ({why})" for method, why in result["not_run"].items())
    parts.append(f"Not run: {said}.")
  parts += [
    "How the rank of a method by its nearest neighbours goes with that by trained accuracy:",
    subset_accuracy.agreement(runs),
  ]
  return "\n\n".join(parts)


def transfer(result: dict[str, Any]) -> str:
  """How much of a subset comes from the source of its queries, an encoder after the other."""
  parts = ["### What queries of one source bring"]
  for encoder, found in result.items():
    command = "" if encoder == ENCODER else f" --encoder={encoder}"
    slice_ = ""
    if (rows := found["rows_a_source"]) is not None:
      command, slice_ = f"{command} --rows={rows}", f"a slice of at most {rows} of each of "
    parts += [
      f"`python -m benchmarks.subset_transfer{command}` ({machines_of(found)})",
      f"Natural Instructions as in BIG-bench, {slice_}{found['sources']} subtasks"
      f" ({found['rows']:,} different inputs of {found['rows_there']:,}), inputs cut at"
      f" {found['cut_at']} tokens ({100 * found['cut']:.0f} % were longer), the definition and"
      f" the target left out. {found['queries']} queries of one subtask, a budget"
      f" of {100 * found['budget']:g} %: the share that comes from that subtask and from all"
      f" subtasks of its corpus ({found['groups']} corpora), mean and 95 % interval over subtasks,"
      f" each the mean of {found['seeds']} draws of queries. crds_r has {found['layers']} hidden"
      f" states of {encoder}, the others the last.",
      subset_transfer.table(found["runs"]),
    ]
  return "\n\n".join(parts)


def sensitivity(result: dict[str, Any]) -> str:
  """How far off the total of a weighted sample is, one pool after the other."""
  parts = ["### How far off a weighted sample's total is"]
  for pool, one in result.items():
    draws = one["results"][0]["sizes"][0]["draws"]
    of = (
      f"The losses of the probe on the {one['rows']:,} rows of the pool above"
      if pool == "wordnet"
      else f"The losses, summed over an answer's tokens, of SmolLM2-135M-Instruct (quantized) on a"
      f" random {one['rows']:,} rows of Natural Instructions, given the input; clusters are of"
      " MiniLM's embeddings of input and answer side by side"
    )
    parts += [
      f"`python -m benchmarks.sensitivity_error --pool={pool}` ({machines_of(one)})",
      f"{of}. Their standard deviation is {one['coefficient_of_variation']:.2f} of their mean."
      f" {draws} draws each. Uniform samples are drawn without replacement, with it beside"
      " `replacement`. `ratio` divides the estimate of a priority sample by that of the sum of p,"
      " which is 1, and is biased by O(1 / s). The losses that are known are queries too, which"
      " uniform sampling does not have.",
      sensitivity_error.table(one["results"]),
    ]
    if "by_tokens" in one:
      sizes = ", ".join(
        f"{run['size']:,}" for run in one["by_tokens"] if run["kind"] == "systematic"
      )
      parts.append(
        "An answer's tokens say much of its summed loss: drawn in proportion to them, without any"
        f" loss known, samples of {sizes} rows have errors that uniform's are"
        f" {sensitivity_error.worth(one['by_tokens'], 'systematic')} times of (`systematic`)."
      )
    parts += [
      "With Lambda the true largest ratio of every cluster, the bound eps (L + 2 Phi) at delta"
      f" {sensitivity_error.DELTA:g}, draws with replacement:",
      sensitivity_error.bound_table(one["bound"]),
    ]
  return "\n\n".join(parts)


def overlap(result: dict[str, Any]) -> str:
  """What subsets have in common."""
  share = result["budget"]
  return "\n\n".join(
    (
      "### What two subsets have in common",
      f"`python -m benchmarks.subset_overlap` ({machines_of(result)})",
      f"Rows in both over rows in either, in percent, at {100 * share:g} % of the same pool; two"
      f" random subsets have {100 * share / (2 - share):.1f}. On the diagonal between seeds, which"
      f" draw other queries; {result['seeds']} seeds.",
      subset_overlap.overlap_table(result["overlaps"]),
      "With one query fewer, of all or of 8 of the largest class alone:",
      subset_overlap.dropped_table(result["dropped"]),
      subset_overlap.balance_table(result["balance"]),
    )
  )


def clusters(result: dict[str, Any]) -> str:
  """The silhouette's curve."""
  results = result["results"]
  best = lambda what: max(results, key=lambda run: np.mean(run[what]))["clusters"]
  return "\n\n".join(
    (
      "### How many clusters",
      f"`python -m benchmarks.subset_clusters` ({machines_of(result)})",
      f"kmq on the same pool, {100 * result['budget']:g} %, {len(results[0]['silhouette'])} seeds;"
      f" silhouettes of {result['sample']:,} rows. Silhouette would pick {best('silhouette'):,}"
      f" clusters, the simplified one {best('simplified'):,}; the best test accuracy has"
      f" {best('test_accuracy'):,}.",
      subset_clusters.table(results),
    )
  )


def speed(result: dict[str, Any]) -> str:
  """Time and memory against the reference's way."""
  projections, errors = result["projections"], result["cosine_errors"]
  return "\n\n".join(
    (
      "### Selection by queries against the way in which research code does it",
      f"`python -m benchmarks.subset_speed` ({machines_of(result)})",
      f"Round robin over {subset_speed.QUERIES} queries, {100 * subset_speed.BUDGET:g} % of random"
      f" unit rows of {subset_speed.WIDTH}; `dictionaries` has all products at once and a"
      " dictionary of each query's. The first call, with compiling.",
      subset_speed.table(result["runs"]),
      f"CRDS-R of {subset_speed.LAYERS} layers of {subset_speed.LAYER_WIDTH:,}, a whole selection"
      f" from {projections['rows']:,} rows: {1000 * projections['jsel']:.2f} ms a row;"
      f" {1000 * projections['signs_anew']:.0f} ms a row for the products alone where signs are"
      " drawn anew for each layer of each row.",
      "The largest error of a cosine of two rows that are whitened to 64 of 1,200 components whose"
      f" variance decays slowly: {errors['jsel']:.1e} exactly decomposed, and"
      f" {min(errors['randomized']):.2f} to {max(errors['randomized']):.2f} by scikit-learn's"
      f" randomised PCA of {len(errors['randomized'])} seeds.",
    )
  )


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
  "subset_accuracy": accuracy,
  "subset_transfer": transfer,
  "sensitivity_error": sensitivity,
  "subset_overlap": overlap,
  "subset_clusters": clusters,
  "subset_speed": speed,
}


def text(folder: Path) -> str:
  """The sections of what was measured; empty if nothing was."""
  paths = {name: folder / f"{name}.json" for name in SECTIONS}
  there = {name: path for name, path in paths.items() if path.exists()}
  return "\n\n".join(SECTIONS[name](json.loads(path.read_text())) for name, path in there.items())
