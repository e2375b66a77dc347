"""Natural Instructions' answers, and what a small language model loses on each.

A random part of the pool. The loss of a row is the sum over its answer's tokens of minus log
p(token), in nats, as SmolLM2-135M-Instruct (of a GGUF file, so quantized weights) has it before any
training on the pool, given the input; of the two together the last `CUT` tokens are read. Losses
are kept part by part in a folder outside of the repository, and a run that was stopped goes on.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks.glosses import ENCODER
from jsel.data import natural_instructions
from jsel.data.answers import Pairs, score_answers, tokenize_pairs
from jsel.data.embedding_cache import EmbeddingCache, text_keys
from jsel.data.encode import encode
from jsel.data.tokens import open_tokenizer
from jsel.models.encoders import open_encoder, path_of
from jsel.models.llama_weights import load_llama

MODEL = "SmolLM2-135M-Instruct"
ROWS = 20_000
PART = 1000  # rows whose losses are kept together
CUT = 256  # tokens


class Scored(NamedTuple):
  """A row each."""

  x: np.ndarray  # [n, 2 d] float32, MiniLM's embeddings of the input and of the answer
  loss: np.ndarray  # [n] float64, nats
  tokens: np.ndarray  # [n] int32, of the answer


def scored(folder: str | Path, cache_dir: str | Path, rows: int = ROWS) -> Scored:
  """A random ``rows`` of the pool in ``folder``, embedded and scored into ``cache_dir``."""
  pool = natural_instructions.read(ConfigDict({"dir": str(folder)}))
  picks = np.random.default_rng(0).permutation(len(pool.inputs))[:rows]
  inputs, answers = ([texts[row] for row in picks] for texts in (pool.inputs, pool.targets))
  loss, tokens = losses(inputs, answers, Path(cache_dir).expanduser())
  x = np.concatenate([embedded(inputs, cache_dir), embedded(answers, cache_dir)], axis=1)
  return Scored(x, loss, tokens)


def losses(inputs: list[str], answers: list[str], folder: Path) -> tuple[np.ndarray, np.ndarray]:
  """The loss of each answer, float64, and its tokens; what ``folder`` has of them is read."""
  path = path_of(MODEL)
  pairs = last(
    tokenize_pairs(
      open_tokenizer(path, max_length=2**20),
      [text + "\n" for text in inputs],
      answers,
      max_length=2**20,
    )
  )
  model = None
  found = []
  for start in range(0, len(inputs), PART):
    rows = np.arange(start, min(start + PART, len(inputs)))
    file = folder / f"losses_{MODEL}_{CUT}_{text_keys(_joined(inputs, answers, rows))[0].hex()}.npy"
    if not file.exists():
      model = load_llama(path, dtype="bfloat16") if model is None else model
      scores = score_answers(model, pairs.take(rows))
      loss = np.where(scores.tokens > 0, scores.loss.astype(np.float64) * scores.tokens, 0)
      file.parent.mkdir(parents=True, exist_ok=True)
      with file.with_suffix(".part").open("wb") as part:
        np.save(part, np.stack([loss, scores.tokens]))
      file.with_suffix(".part").rename(file)
    found.append(np.load(file, allow_pickle=False))
  loss, tokens = np.concatenate(found, axis=1)
  return loss, tokens.astype(np.int32)


def last(pairs: Pairs) -> Pairs:
  """The last `CUT` tokens of each: of a long input its beginning goes, not the answer."""
  over = np.array([max(0, len(ids) - CUT) for ids in pairs.ids], np.int32)
  ids = [row[cut:] for row, cut in zip(pairs.ids, over, strict=True)]
  return Pairs(ids, np.maximum(pairs.prompt - over, 0).astype(np.int32), over > 0)


def embedded(texts: list[str], cache_dir: str | Path) -> np.ndarray:
  """``[n, d]`` of length 1."""
  encoder = open_encoder(ENCODER)
  encode(texts, encoder, cache_dir=cache_dir)
  cache = EmbeddingCache(cache_dir, encoder=encoder.name, width=encoder.width)
  x = cache.read(text_keys(texts))[0]
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _joined(inputs: list[str], answers: list[str], rows: np.ndarray) -> list[str]:
  return ["\0".join(text for row in rows for text in (inputs[row], answers[row]))]
