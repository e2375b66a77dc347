"""DAC: rounds of picks from clusters whose weights follow what the model makes of the last."""

import numpy as np

from jsel.selectors.finite import check_finite
from jsel.selectors.kmq import by_cluster
from jsel.selectors.parts import Method


def dac(*, clusters: int = 1024, iterations: int = 50, refinements: int = 1) -> Method:
  """The first round: clusters have equal weights, rows within one are drawn uniformly.

  `reweigh` gives the weights of the next round from the model's feedback on this one.

  Args:
    clusters: of k-means; at most a row each.
    iterations: of k-means on its sample.
    refinements: times that the centers are moved to the means of the whole pool.

  Raises:
    ValueError: if an option is out of range.

  Source: Yu et al., *Diversify and Conquer*, 2024, arXiv 2409.11378.

  >>> dac().needs
  ()
  """
  return by_cluster("dac", clusters, None, "equal", iterations, refinements)


def reweigh(
  weights: np.ndarray,
  labels: np.ndarray,
  feedback: np.ndarray,
  *,
  temperature: float = 1.0,
  compound: bool = True,
) -> np.ndarray:
  r"""The clusters' weights of the next round.

  .. math:: w_j \propto w_j^{\text{before}} \exp(\bar s_j / \tau)

  with the mean feedback of a cluster's picks. A cluster without picks has the mean of the
  others. The paper's own ``w_j s_j`` is not a weight where feedback is negative.

  Args:
    weights: ``[k]`` of the round before.
    labels: ``[m]`` clusters of the rows that were trained on.
    feedback: ``[m]``, high where the row is not yet learned.
    temperature: tau, above 0.
    compound: whether weights multiply from round to round (the paper) or are of this round
      alone (the authors' code).

  Returns:
    ``[k]`` float64 that sum to 1.

  Raises:
    ValueError: if shapes differ, there is no finite feedback, or the temperature is not above 0.

  >>> reweigh(np.ones(2), np.array([0, 1]), np.log([3.0, 1.0])).round(2).tolist()
  [0.75, 0.25]
  """
  if labels.shape != feedback.shape or labels.ndim != 1:
    raise ValueError(f"labels have shape {labels.shape}, feedback {feedback.shape}: one a row")
  check_finite("reweigh", temperature=temperature)
  if not temperature > 0:
    raise ValueError(f"temperature must be above 0, got {temperature}")
  seen = np.isfinite(feedback) & (labels >= 0)
  if not seen.any():
    raise ValueError("no row has finite feedback: train and score the picks first")
  k = len(weights)
  rows = np.bincount(labels[seen], minlength=k)
  total = np.bincount(labels[seen], weights=feedback[seen].astype(np.float64), minlength=k)
  mean = np.where(rows > 0, total / np.maximum(rows, 1), 0)
  mean = np.where(rows > 0, mean, mean[rows > 0].mean()) / temperature
  new = np.exp(mean - mean.max()) * (np.asarray(weights, np.float64) if compound else 1.0)
  return new / new.sum()
