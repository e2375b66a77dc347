"""Every example: the reference that the others are held against."""

from jsel.selectors.base import Selector
from jsel.selectors.rs2 import rs2


def full(*, size: int, rows: int, axis_name: str | tuple[str, ...] | None = None) -> Selector:
  """All ``size`` examples, reshuffled each pass; `rs2` at ratio 1.

  Args:
    size: examples in the pool, without padding.
    rows: examples in a plan: ``size``, or fewer where plans are cut shorter
      than a pass.
    axis_name: mesh axis (or axes) that rows are split over.

  >>> full(size=100, rows=100).most
  100
  """
  return rs2(size=size, rows=rows, axis_name=axis_name)._replace(scope=("pool",), pick=None)
