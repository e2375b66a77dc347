"""How many inputs are drawn for a test, and the report of what was tried, answered and refused."""

import collections

import hypothesis
import jax
import pytest

from tests.counts import leave

SHORT = 8  # draws a test in the short form, which CI runs


def pytest_addoption(parser):
  parser.addoption("--examples", type=int, default=0, help="draws a test; 0: the short form")
  parser.addoption("--inputs-report", default="", help="JSON file that counts go to, by test")


def pytest_configure(config):
  hypothesis.settings.register_profile(
    "inputs",
    derandomize=True,  # the same draws in every run
    deadline=None,
    database=None,
    max_examples=config.getoption("--examples", default=0) or SHORT,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  hypothesis.settings.load_profile("inputs")


@pytest.fixture
def is_long(request):
  return request.config.getoption("--examples", default=0) > 0


@pytest.fixture(autouse=True)
def _forget_programs(is_long):
  yield
  if is_long:  # each program maps memory, and the system has so many maps for a process
    jax.clear_caches()


@pytest.fixture
def tally(request):
  """Counts of this test: ``tally["answered"] += 1``."""
  counts = collections.Counter()
  yield counts
  leave(request.config.getoption("--inputs-report", default=""), request.node.name, counts)
