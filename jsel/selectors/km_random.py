"""kM-Random: k-means clusters give rows in proportion to their size, drawn uniformly."""

from jsel.selectors.kmq import Quotas, by_cluster
from jsel.selectors.parts import Method


def km_random(
  *,
  clusters: int = 1024,
  quotas: Quotas = "size",
  iterations: int = 50,
  refinements: int = 1,
) -> Method:
  """`kmq` without its scores; its options.

  Source: Yu et al., *Diversify and Conquer*, 2024, arXiv 2409.11378.

  >>> km_random().needs
  ()
  """
  return by_cluster("km_random", clusters, None, quotas, iterations, refinements)
