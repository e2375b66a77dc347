"""Encodes texts into embeddings, each text once, and goes on where it stopped."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from jsel.data.embedding_cache import EmbeddingCache, text_keys
from jsel.data.tokens import bucketed, open_tokenizer, tokenize
from jsel.models.encoders import Encoder

WINDOW = 16_384  # texts that are sorted by length together


class Encoded(NamedTuple):
  """What `encode` did."""

  texts: int  # of this shard, duplicates and what was there included
  new: int  # encoded now
  tokens: int  # of the new texts, after the cut
  padding: float  # the part of all that was computed that was padding
  truncated: int  # of the new texts, cut to the encoder's max_length
  seconds: float
  finished: bool  # not stopped before the last text


def encode(
  texts: Iterable[str],
  encoder: Encoder,
  *,
  cache_dir: str | Path,
  shard: tuple[int, int] = (0, 1),
  batch_tokens: int = 4096,
  save_seconds: float = 60.0,
  stop: Callable[[], bool] = lambda: False,
  show: bool = True,
) -> Encoded:
  """Encodes those ``texts`` whose embeddings are not in ``cache_dir``.

  Texts are streamed, `WINDOW` at a time sorted by length into batches of few lengths. Finished
  embeddings are written every ``save_seconds`` and at the end of a window; a run that was killed
  loses no more than that, and the same command goes on. A text's embedding depends on the batch's
  length to float32 rounding.

  Args:
    texts: any number of them, in any order.
    encoder: as `open_encoder` gives it.
    cache_dir: where embeddings are kept (`EmbeddingCache`).
    shard: (i, n): only the i-th of n parts, by the texts' hashes; parts share a folder or are
      merged by copying.
    batch_tokens: in a batch, padding included.
    save_seconds: between files.
    stop: asked between batches whether to save and end.
    show: progress and a last line, with throughput.

  Raises:
    ValueError: if the shard is out of range, or the tokenizer is not there.
  """
  number, count = shard
  if not 0 <= number < count:
    raise ValueError(f"shard={number}/{count}: number the shards from 0 to {count - 1}")
  tokenizer = open_tokenizer(encoder.tokenizer, max_length=encoder.max_length)
  cache = EmbeddingCache(cache_dir, encoder=encoder.name, width=encoder.width)
  begun = time.perf_counter()
  seen = new = tokens = computed = truncated = 0
  stopped = False
  columns = (TextColumn("{task.description}"), TimeElapsedColumn())
  with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
    task = progress.add_task("encoding", total=None)
    for window in windows(texts):
      keys = text_keys(window)
      mine = keys.view(np.uint32).reshape(len(keys), -1)[:, 0] % count == number
      seen += int(mine.sum())
      _, first = np.unique(keys, return_index=True)
      wanted = np.sort(first[mine[first] & (cache.find(keys[first]) < 0)])
      if not wanted.size:
        continue
      found = tokenize(tokenizer, [window[row] for row in wanted])
      truncated += int(found.truncated.sum())
      rows, pieces, saved = [], [], time.perf_counter()

      def save(rows=rows, pieces=pieces, wanted=wanted, keys=keys, found=found):
        at = np.concatenate(rows)
        order = np.argsort(at)
        at = at[order]
        cache.write(keys[wanted[at]], np.concatenate(pieces)[order], found.lengths[at])
        rows.clear()
        pieces.clear()

      for batch in bucketed(found.ids, batch_tokens=batch_tokens):
        embeddings = encoder.embed(batch.tokens, batch.mask)
        pieces.append(np.asarray(embeddings)[: len(batch.rows)])
        rows.append(batch.rows)
        new += len(batch.rows)
        tokens += int(batch.mask.sum())
        computed += batch.mask.size
        seconds = time.perf_counter() - begun
        progress.update(
          task,
          description=f"encoding: {new:,} new of {seen:,} texts, {new / seconds:,.0f} texts/s,"
          f" {tokens / seconds:,.0f} tokens/s",
        )
        if time.perf_counter() - saved > save_seconds:
          save()
          saved = time.perf_counter()
        if stopped := stop():
          break
      if rows:
        save()
      if stopped:
        break
      cache.refresh()
  seconds = time.perf_counter() - begun
  padding = 1 - tokens / computed if computed else 0.0
  result = Encoded(seen, new, tokens, padding, truncated, seconds, not stopped)
  if show:
    print(
      f"encoded {new:,} of {seen:,} texts in {seconds:.1f} s ({new / seconds:,.0f} texts/s,"
      f" {tokens / seconds:,.0f} tokens/s, {100 * result.padding:.0f} % padding);"
      f" {truncated:,} cut to {encoder.max_length} tokens"
    )
  return result


def missing(texts: Iterable[str], encoder: Encoder, *, cache_dir: str | Path) -> tuple[int, int]:
  """How many ``texts`` there are, and how many of them have no embedding in ``cache_dir``."""
  cache = EmbeddingCache(cache_dir, encoder=encoder.name, width=encoder.width)
  count = lacking = 0
  for window in windows(texts):
    count += len(window)
    lacking += int((cache.find(text_keys(window)) < 0).sum())
  return count, lacking


def embeddings(
  texts: Iterable[str], encoder: Encoder, *, cache_dir: str | Path
) -> Iterator[np.ndarray]:
  """Blocks of rows ``[b, width]`` float32 of encoded ``texts``, in their order.

  Raises:
    ValueError: if a text has not been encoded.
  """
  cache = EmbeddingCache(cache_dir, encoder=encoder.name, width=encoder.width)
  for window in windows(texts):
    yield cache.read(text_keys(window))[0]


def windows(texts: Iterable[str]) -> Iterator[list[str]]:
  """``texts``, `WINDOW` of them at a time."""
  texts = iter(texts)
  while window := list(itertools.islice(texts, WINDOW)):
    yield window
