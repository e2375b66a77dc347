"""Marks of tests that need a model which a package brings, and which CI does not install."""

import pytest

from jsel.models.encoders import PACKAGED, path_of

MINILM, SMOLLM = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"


def needs(name: str) -> pytest.MarkDecorator:
  """Skips a test where the model ``name`` is not installed."""
  try:
    there = path_of(name).exists()
  except ValueError:
    there = False
  return pytest.mark.skipif(not there, reason=PACKAGED[name][2])
