import numpy as np
import pytest


@pytest.fixture
def pool(rng):
  return rng.standard_normal((1500, 36)).astype(np.float32)


@pytest.fixture
def columns(rng):
  source = rng.choice(["web", "code", "books"], 1500, p=[0.7, 0.25, 0.05])
  return {"length": rng.integers(1, 100, 1500), "score": rng.random(1500), "source": source}
