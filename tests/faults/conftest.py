"""Options of the fault injection, and the report of what was injected and survived."""

import json

import pytest

from tests.counts import leave


def pytest_addoption(parser):
  parser.addoption("--faults", type=int, default=0, help="kills of the long form; 0: the short one")
  parser.addoption("--faults-report", default="", help="JSON file that counts go to, by test")


@pytest.fixture
def faults(request):
  """How many kills were asked for; 0 in the short form. Not known where only `pytest` was run."""
  return request.config.getoption("--faults", default=0)


@pytest.fixture
def report(request):
  """Counts a test's faults: ``report(injected=..., survived=...)``."""

  def count(*, injected, survived, **more):
    counts = {"injected": injected, "survived": survived, **more}
    print(f"{request.node.name}: {json.dumps(counts)}")
    path = request.config.getoption("--faults-report", default="")
    leave(path, request.node.name, counts)

  return count
