"""Top-k of penalized scores, exactly: against NumPy's, PyTorch's and JAX's own.

    python -m benchmarks.kernels.topk

The job is the ids of the k highest of ``scores - 0.5 * usage``, in any order. jsel's are those of
lowest id among equal ones and ascend, which the peers do not promise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.cases import Case, Work, peer, run, temporaries
from benchmarks.turns import Contender
from jsel.kernels import topk

PENALTY = 0.5


def make(n: int, k: int) -> Work:
  rng = np.random.default_rng(0)
  scores = rng.standard_normal(n).astype(np.float32)
  usage = rng.integers(0, 4, n).astype(np.int32)
  on_device = jax.device_put((scores, usage))

  @jax.jit
  def ours(scores, usage):
    return topk.penalized_top_k(scores, usage, k, penalty=PENALTY).indices

  @jax.jit
  def jax_own(scores, usage):
    return jax.lax.top_k(scores - PENALTY * usage.astype(jnp.float32), k)[1]

  def numpy_own():
    penalized = scores - np.float32(PENALTY) * usage.astype(np.float32)
    return np.argpartition(penalized, n - k)[n - k :]

  def torch_own():
    import torch

    s, u = torch.from_numpy(scores), torch.from_numpy(usage)
    work = lambda: torch.topk(s - PENALTY * u, k, sorted=False).indices
    return [Contender("torch.topk", work, "sorted=False", lambda result: result.numpy())]

  peers = [
    Contender("numpy.argpartition", numpy_own, "introselect", lambda result: result),
    Contender("jax.lax.top_k", lambda: jax_own(*on_device), "one program with the penalty"),
    *peer("torch", torch_own),
  ]
  penalized = scores.astype(np.float64) - PENALTY * usage  # exact: float32 rounds it below
  penalized = penalized.astype(np.float32)
  best = np.lexsort((np.arange(n), -penalized))[:k]
  mine = Contender("jsel", lambda: ours(*on_device), "penalized_top_k")

  def error(name, ids):
    """Rows that are not among the k highest; of jsel's, that are not the very rows."""
    ids = np.asarray(ids)
    if name == mine.name:
      return (np.sort(best) != ids).sum()
    return (np.sort(penalized[ids]) != np.sort(penalized[best])).sum()

  return Work(mine, peers, error, temporaries(ours, *on_device))


CASES = {
  f"top-k {title}": Case(
    make, {"n": n, "k": k}, {"n": n // 1000, "k": max(k // 1000, 1)}, 0.0, must_reach
  )
  for title, n, k, must_reach in (
    ("1M, 1k", 10**6, 1000, 2.5),
    ("1M, 100k", 10**6, 100_000, 1.0),
    ("10M, 1k", 10**7, 1000, 4.0),
    ("10M, 100k", 10**7, 100_000, 2.0),
  )
}

if __name__ == "__main__":
  run("topk", CASES)
