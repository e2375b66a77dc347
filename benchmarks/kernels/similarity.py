"""The best matches of queries in a pool by inner product, exactly, against faiss and PyTorch.

    python -m benchmarks.kernels.similarity

Rows and queries have length 1. The error is the largest difference of any of the matches' products,
in the order of the best, from float64's.
"""

import functools

import jax
import numpy as np

from benchmarks.kernels.cases import Case, Work, peer, run, temporaries
from benchmarks.turns import Contender
from jsel.kernels import similarity

BLOCK = 50_000  # rows a product of the reference and of PyTorch


@functools.cache
def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
  x = np.random.default_rng(seed).standard_normal((n, d), np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def match(n: int, d: int, queries: int, count: int, precision: str) -> Work:
  x, q = unit_rows(n, d, 0), unit_rows(queries, d, 1)
  on_device = jax.device_put((x, q))

  @jax.jit
  def ours(x, q):
    return similarity.best_matches(x, q, count, precision=precision)

  def of_faiss():
    import faiss

    index = faiss.IndexFlatIP(d)
    index.add(x)
    work = lambda: index.search(q, count)
    settings = f"{faiss.omp_get_max_threads()} threads, pool added beforehand"
    return [Contender("faiss.IndexFlatIP", work, settings, lambda result: result)]

  def of_torch():
    import torch

    pool, wanted = torch.from_numpy(x), torch.from_numpy(q)

    def work():
      best, ids = torch.empty(queries, 0), torch.empty(queries, 0, dtype=torch.int64)
      for start in range(0, n, BLOCK):
        products = wanted @ pool[start : start + BLOCK].T
        value, index = torch.topk(products, min(count, products.shape[1]), sorted=False)
        best, ids = torch.cat([best, value], 1), torch.cat([ids, index + start], 1)
        best, place = torch.topk(best, min(count, best.shape[1]))
        ids = ids.gather(1, place)
      return best, ids

    settings = f"blocks of {BLOCK}, {torch.get_num_threads()} threads"
    to_numpy = lambda result: tuple(part.numpy() for part in result)
    return [Contender("torch float32", work, settings, to_numpy)]

  @functools.cache
  def exact():
    best = np.empty((queries, 0))
    for start in range(0, n, BLOCK):
      products = q.astype(np.float64) @ x[start : start + BLOCK].astype(np.float64).T
      best = np.concatenate([best, products], 1)
      best = np.partition(best, -count, axis=1)[:, -count:] if best.shape[1] > count else best
    return -np.sort(-best, axis=1)

  def error(name, result):
    del name
    ids = np.asarray(result[1])
    # Of the rows that were named, in float64, whatever products came with them.
    own = np.einsum("qcd,qd->qc", x[ids[:20]].astype(np.float64), q[:20].astype(np.float64))
    return np.abs(-np.sort(-own, axis=1) - exact()[:20]).max()

  return Work(
    Contender("jsel", lambda: ours(*on_device), f"precision={precision}"),
    [*peer("faiss", of_faiss), *peer("torch", of_torch)],
    error,
    temporaries(ours, *on_device),
    {"float32": 2.0 * n * d * queries}
    if precision == "float32"
    else {"bfloat16": 3 * 2.0 * n * d * queries},
  )


CASES = {
  f"best matches 1M x 384, 300 queries, 1000 each, {precision}": Case(
    match,
    {"n": 10**6, "d": 384, "queries": 300, "count": 1000, "precision": precision},
    {"n": 3000, "d": 12, "queries": 8, "count": 20, "precision": precision},
    1e-6,
    1.5,
  )
  for precision in ("float32", "bfloat16_3x")
}

if __name__ == "__main__":
  run("similarity", CASES)
