"""What selection costs is measured on a copy, and not for longer than it takes."""

import jax.numpy as jnp
import pytest

from jsel.training.overhead import measure


@pytest.mark.parametrize(("enough_seconds", "times"), [(1e9, 16), (0.0, 4)])
def test_what_takes_long_is_measured_three_times(enough_seconds, times):
  calls = {"select": 0, "step": 0}

  def select(state):
    calls["select"] += 1
    return state + 1

  def step(state):
    calls["step"] += 1
    return state + 1, {}

  state = jnp.zeros(3)
  found = measure(select, step, state, steps_between_plans=10, enough_seconds=enough_seconds)
  assert calls == {"select": times, "step": times}
  assert found.share == pytest.approx(
    found.select_seconds / (found.select_seconds + 10 * found.step_seconds)
  )
  assert not state.any()
