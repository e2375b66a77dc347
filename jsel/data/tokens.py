"""Texts to token ids, and batches of few lengths, so that few programs are compiled."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jsel.data.gguf_tokenizer import gguf_tokenizer

# Steps of a third to a half: at most that much of a text is padding, above 16 tokens.
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
INSTALL = "pip install 'jsel[text]'"


class Tokens(NamedTuple):
  """Token ids of texts."""

  ids: list[list[int]]  # of each text, cut to the longest allowed, special tokens among them
  lengths: np.ndarray  # [n] int32, of each text before it was cut
  truncated: np.ndarray  # [n] bool, what was cut


class Batch(NamedTuple):
  """Texts of about one length, padded to one of `LENGTHS`."""

  rows: np.ndarray  # [r] int, which texts, r <= b
  tokens: np.ndarray  # [b, l] int32, padding after them; rows past r are all padding
  mask: np.ndarray  # [b, l] bool


def open_tokenizer(path: str | Path, *, max_length: int) -> Any:
  """The tokenizer in ``path``, a tokenizer.json or GGUF file, that cuts texts to ``max_length``.

  Raises:
    ValueError: if the file is missing or broken, the package tokenizers is not installed, or
      ``max_length`` leaves no room beside the tokens that mark beginning and end.
  """
  if importlib.util.find_spec("tokenizers") is None:
    raise ValueError(f"tokenizers is not installed, {path} cannot be read: {INSTALL}")
  if not Path(path).is_file():
    raise ValueError(f"there is no {path}: a tokenizer is a tokenizer.json of Hugging Face")
  tokenizer = gguf_tokenizer(path) if Path(path).suffix == ".gguf" else from_json(path)
  marks = tokenizer.num_special_tokens_to_add(is_pair=False)
  if max_length <= marks:
    raise ValueError(
      f"max_length={max_length} leaves no token of a text beside the {marks} that mark its"
      f" beginning and end: set it to {marks + 1} at least"
    )
  tokenizer.no_padding()
  tokenizer.enable_truncation(max_length)
  return tokenizer


def from_json(path: str | Path) -> Any:
  """The tokenizer in a tokenizer.json.

  Raises:
    ValueError: if it is none.
  """
  import tokenizers  # of the extra `text`

  try:
    return tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the package raises no class of its own
    raise ValueError(f"{path} is no tokenizer ({error}): copy it again") from error


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tokens:
  """The ids of ``texts``, cut where `open_tokenizer` said, and what was cut."""
  encoded = tokenizer.encode_batch_fast(list(texts))
  added = tokenizer.num_special_tokens_to_add(is_pair=False)
  whole = lambda found: len(found.ids) + sum(len(more.ids) - added for more in found.overflowing)
  lengths = np.asarray([whole(found) for found in encoded], np.int32)
  truncated = np.asarray([bool(found.overflowing) for found in encoded], bool)
  return Tokens([found.ids for found in encoded], lengths, truncated)


def bucketed(
  ids: Sequence[Sequence[int]],
  *,
  batch_tokens: int,
  pad: int = 0,
  lengths: Sequence[int] = LENGTHS,
) -> Iterator[Batch]:
  """Batches of texts of about one length, short ones first.

  Every batch of a length has as many rows, ``batch_tokens`` / length, and at least one. What does
  not fill a batch goes to the next longer one, and the last is filled up with padding.

  Args:
    ids: of the texts.
    batch_tokens: in a batch, padding included.
    pad: the id of padding.
    lengths: that batches may have, ascending.

  Raises:
    ValueError: if a text is longer than all ``lengths``.

  >>> batches = list(bucketed([[1] * 5, [1] * 3, [1] * 2], batch_tokens=8, lengths=(4, 8)))
  >>> [(batch.rows.tolist(), batch.tokens.shape) for batch in batches]
  [([2, 1], (2, 4)), ([0], (1, 8))]
  """
  sizes = np.asarray([len(row) for row in ids], np.int64)
  if sizes.size and sizes.max() > lengths[-1]:
    row = int(sizes.argmax())
    raise ValueError(f"text {row} has {sizes[row]} tokens, batches have at most {lengths[-1]}")
  order = np.argsort(sizes, kind="stable")
  bucket = np.searchsorted(np.asarray(lengths), sizes[order])
  at = 0
  while at < len(order):
    # The longest that a batch from here on is full with, without a text that does not fit.
    length = lengths[bucket[at]]
    rows = max(1, batch_tokens // length)
    last = min(at + rows, len(order)) - 1
    if bucket[last] > bucket[at]:
      length = lengths[bucket[last]]
      rows = max(1, batch_tokens // length)
    chosen = order[at : at + rows]
    tokens, mask = np.full((rows, length), pad, np.int32), np.zeros((rows, length), bool)
    for place, row in enumerate(chosen):
      tokens[place, : sizes[row]] = ids[row]
      mask[place, : sizes[row]] = True
    yield Batch(chosen, tokens, mask)
    at += len(chosen)
