"""A pool of labelled texts to choose from, its splits, and what a small probe thinks of it."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from benchmarks import heads
from benchmarks.kernels.cases import RESULTS
from jsel.data import wordnet
from jsel.data.embedding_cache import EmbeddingCache, text_keys
from jsel.data.encode import encode
from jsel.models.encoders import open_encoder

CACHE = "~/.cache/jsel/embeddings"
ENCODER = "all-MiniLM-L6-v2"
LAYERS = tuple(range(7))  # the embeddings of tokens, and what leaves each layer
RESERVED = 16  # rows a class that queries are drawn from
EACH = 8  # queries a class
SHARES = {"test": 0.1, "validation": 0.05, "probe": 0.05}


class Rows(NamedTuple):
  """All rows of a set, in its order."""

  x: np.ndarray  # [n, d] float32, of length 1
  labels: np.ndarray  # [n] int32
  length: np.ndarray  # [n] int32, in tokens
  layers: np.ndarray | None  # [n, 7 d] float32, pooled hidden states, one after another


class Split(NamedTuple):
  """Row numbers; none is in two parts."""

  pool: np.ndarray
  test: np.ndarray
  validation: np.ndarray  # of hyperparameters and of proxies
  probe: np.ndarray  # that the probe is trained on
  reserved: np.ndarray  # [classes, RESERVED]


class Probed(NamedTuple):
  """What benchmarks have in common that go by the settings of benchmarks/subset_accuracy.py."""

  rows: Rows
  parts: Split
  settings: heads.Settings  # that it has chosen
  losses: np.ndarray  # [pool] of a probe with them
  accuracy: float  # of the probe, on the pool


def probed_wordnet(cache_dir: str | Path) -> Probed:
  """The noun glosses, their splits, and what a probe thinks of the pool."""
  rows = read_wordnet(cache_dir)
  parts = split(rows.labels)
  chosen = json.loads((RESULTS / "subset_accuracy.json").read_text())["settings"]
  settings = heads.Settings(**chosen)
  return Probed(rows, parts, settings, *probe(rows, parts, settings))


def read_wordnet(cache_dir: str | Path) -> Rows:
  """The noun glosses, encoded into ``cache_dir`` unless they are there."""
  glosses = wordnet.read(ConfigDict())
  encoder = open_encoder(ENCODER, layers=LAYERS)
  encode(glosses.texts, encoder, cache_dir=cache_dir)
  cache = EmbeddingCache(cache_dir, encoder=encoder.name, width=encoder.width)
  layers, length = cache.read(text_keys(glosses.texts))
  return Rows(_unit(layers[:, -encoder.width // len(LAYERS) :]), glosses.labels, length, layers)


def read_digits() -> Rows:
  """scikit-learn's digits, their lengths made up: what CI has."""
  x, labels = (np.asarray(column) for column in load_digits(return_X_y=True))
  length = np.random.default_rng(0).integers(5, 50, len(x))
  return Rows(_unit(x), labels.astype(np.int32), length.astype(np.int32), None)


def split(labels: np.ndarray) -> Split:
  """The same at every call: some rows of each class for queries, and shares of all for the rest."""
  order = np.random.default_rng(0).permutation(len(labels))
  by_class = order[np.argsort(labels[order], kind="stable")]
  first = np.flatnonzero(np.diff(labels[by_class], prepend=-1))
  reserved = by_class[first[:, None] + np.arange(RESERVED)]
  left = order[~np.isin(order, reserved)]
  cuts = np.cumsum([round(share * len(labels)) for share in SHARES.values()])
  test, validation, probe, pool = np.split(left, cuts)
  return Split(np.sort(pool), test, validation, probe, reserved)


def queries(rows: Rows, parts: Split, seed: int) -> np.ndarray:
  """Row numbers of `EACH` queries a class, of those reserved."""
  rng = np.random.default_rng([1, seed])
  return rng.permuted(parts.reserved, axis=1)[:, :EACH].ravel()


def probe(rows: Rows, parts: Split, settings: heads.Settings) -> tuple[np.ndarray, float]:
  """``-log p(label)`` of the pool's rows by a head trained on the probe's, and its accuracy."""
  params = heads.train(rows.x, rows.labels, [parts.probe], settings=settings)
  x, labels = rows.x[parts.pool], rows.labels[parts.pool]
  return heads.losses(params, x, labels)[0], float(heads.accuracies(params, x, labels)[0][0])


def _unit(x: np.ndarray) -> np.ndarray:
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
