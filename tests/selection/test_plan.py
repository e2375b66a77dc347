"""What a selection says before it begins, and while it goes."""

import io

import numpy as np
import pytest

from jsel.selection import plan, select
from jsel.selection.display import Display
from jsel.selection.pool import ArrayPart, Pool
from jsel.selectors.parts import Cost


def test_a_plan_adds_what_the_method_says_and_the_walk_that_checks(pool):
  made = plan.make_plan(Pool([ArrayPart(pool)]), Cost(2.0, 1e9, 5e6))
  assert (made.rows, made.width, made.files, made.block_rows, made.walks) == (1500, 36, 1, 1536, 3)
  assert made.read_bytes == 3 * pool.nbytes
  least = 1e9 / made.product_rate + made.read_bytes / made.read_rate
  assert made.seconds == pytest.approx(least + 3 * plan.COMPILING)
  assert made.peak_bytes > 5e6 + 5 * 1536 * 36 * 4
  more = plan.make_plan(Pool([ArrayPart(pool)]), Cost(2.0, 1e9, 9e9))
  assert more.peak_bytes - made.peak_bytes > 8e9


def test_a_slow_plan_is_refused_before_a_row_is_checked(pool, columns):
  walked = []

  def approve(made):
    slow = made._replace(seconds=7300.0)
    plan.check_time(slow, "km_closest", slow_minutes=60, allow_slow=True)
    plan.check_time(slow, "km_closest", slow_minutes=122, allow_slow=False)
    plan.check_time(slow, "km_closest", slow_minutes=60, allow_slow=False)

  with pytest.raises(ValueError, match=r"about 2:01:40 .* --config.allow_slow=True"):
    select(pool, "random", 0.1, report=lambda *at: walked.append(at), approve=approve)
  assert not walked


@pytest.mark.parametrize("minutes", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("allow_slow", [True, False])
def test_minutes_that_no_time_is_longer_than_are_refused(minutes, allow_slow, pool):
  made = plan.make_plan(Pool([ArrayPart(pool)]), Cost(1.0, 1e9, 5e6))
  with pytest.raises(ValueError, match=rf"slow_minutes={minutes:g}: give .* --config.allow_slow"):
    plan.check_time(made, "random", slow_minutes=minutes, allow_slow=allow_slow)


def test_every_walk_is_told_from_its_first_row_to_its_last(pool):
  told = []
  select(pool, "crds_w", 0.1, queries=pool[:3], report=lambda *at: told.append(at))
  names = [name for name, done, _ in told if done == 0]
  assert names[:3] == ["checking", "covariance", "matching"]
  assert [name for name, done, total in told if done == total] == names


def test_a_terminal_has_a_bar():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  display = Display(stream)
  for done in (0, 500, 1000):
    display("matching", done, 1000)
  text = stream.getvalue()
  assert "matching" in text
  assert "1000/1000" in text
  assert display.walks == 1
  assert np.isfinite(display.seconds["matching"])
