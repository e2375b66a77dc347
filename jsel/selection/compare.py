"""What subsets have in common, and what one would teach, without training."""

from collections.abc import Mapping

import numpy as np

BLOCK = 2**24  # similarities at a time


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """Rows in both over rows in either; 1 for two empty sets.

  Two random subsets of a share s have s / (2 - s).

  >>> jaccard(np.array([1, 2, 3]), np.array([3, 4]))
  0.25
  """
  both = len(np.intersect1d(a, b))
  either = len(np.union1d(a, b))
  return both / either if either else 1.0


def overlaps(subsets: Mapping[str, np.ndarray]) -> np.ndarray:
  """`jaccard` of every two of ``subsets``, ids or rows of one pool by name: ``[m, m]``.

  >>> overlaps({"a": np.array([1, 2]), "b": np.array([2, 3, 4])}).tolist()
  [[1.0, 0.25], [0.25, 1.0]]
  """
  return np.array([[jaccard(a, b) for b in subsets.values()] for a in subsets.values()])


def neighbours_accuracy(
  subset: np.ndarray,
  subset_labels: np.ndarray,
  asked: np.ndarray,
  asked_labels: np.ndarray,
  *,
  neighbours: int = 10,
  temperature: float = 0.1,
) -> float:
  """Which part of ``asked`` the nearest rows of a subset label right: what it teaches, untrained.

  A vote of the most similar rows, each of weight ``exp(similarity / temperature)``; of equal votes
  the lowest label wins.

  Args:
    subset: ``[m, d]`` rows of length 1.
    subset_labels: ``[m]`` integers of at least 0.
    asked: ``[q, d]`` rows of length 1 that are in no subset.
    asked_labels: ``[q]``.
    neighbours: that vote, at most; all where the subset has fewer.
    temperature: above 0.

  Raises:
    ValueError: if shapes do not fit, or there is nothing to ask or to be asked.

  >>> x = np.eye(2)
  >>> neighbours_accuracy(x, np.array([0, 1]), x, np.array([0, 0]), neighbours=1)
  0.5
  """
  if subset.ndim != 2 or asked.ndim != 2 or subset.shape[1] != asked.shape[1]:
    raise ValueError(f"subset is {subset.shape}, asked {asked.shape}: give rows of one width")
  for name, x, labels in (("subset", subset, subset_labels), ("asked", asked, asked_labels)):
    if not len(x) or labels.shape != (len(x),):
      raise ValueError(f"{name} has {len(x)} rows and labels {labels.shape}: give a label a row")
  if neighbours < 1 or not temperature > 0:
    raise ValueError(f"neighbours={neighbours} and temperature={temperature} must be above 0")
  k, classes = min(neighbours, len(subset)), int(subset_labels.max()) + 1
  right, step = 0, max(BLOCK // len(subset), 1)
  for start in range(0, len(asked), step):
    similarity = asked[start : start + step] @ subset.T
    near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    vote = np.exp(np.take_along_axis(similarity, near, axis=1) / temperature)
    votes = np.zeros((len(similarity), classes))
    for place in range(k):
      np.add.at(votes, (np.arange(len(votes)), subset_labels[near[:, place]]), vote[:, place])
    right += int((votes.argmax(1) == asked_labels[start : start + step]).sum())
  return right / len(asked)
