"""Opens the pool and the queries of a selection; what is text is encoded on the way."""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jsel.data import chats, files
from jsel.data.digest import combined, files_sha256
from jsel.data.embedding_cache import EmbeddingCache
from jsel.data.encode import encode, missing
from jsel.data.parquet_columns import opened
from jsel.data.text_files import LINES
from jsel.models.encoders import PACKAGED, Encoder, open_encoder
from jsel.selection import hosts, models
from jsel.selection.pool import COLUMNS, Pool, open_pool
from jsel.selection.texts import TextPart, fill_columns, make_parts
from jsel.selection.walk import Stopped


class Reader:
  """Reads what a selection is from, and checks that all of it is of one model.

  Args:
    config: of the selection (`jsel.selection.config`).
    workdir: whose folder embeddings is the cache, unless the config names one.
    stop: asked between batches whether to save what is encoded and raise `Stopped`; not where
      there are several processes, which encode nothing.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: Any,
    *,
    stop: Callable[[], bool] = lambda: False,
  ):
    self._config, self._stop = config, stop
    self._cache_dir = config.cache_dir or str(workdir / "embeddings")
    self._encoder: Encoder | None = None
    self._model = ""
    self.facts: dict[str, Any] = {}  # for summary.json

  def open(self, patterns: str, names: Mapping[str, str | None], *, key: str) -> Pool:
    """The rows of the files ``patterns``, embeddings or texts.

    Args:
      patterns: as of `open_pool`; .jsonl files, and .parquet files without a column of embeddings,
        are texts.
      names: as of `open_pool`.
      key: of the config: "pool" is opened first, and sets the model of the others.

    Raises:
      ValueError: as `open_pool`, if the model is another than the pool's, or a text is broken.
    """
    paths = files.expand(patterns, remedy=f"correct --config.{key}")
    flag = {"pool": "model", "exclude": "exclude_model"}.get(key, "queries_model")
    texts = self._texts(paths, names)
    if not texts:
      pool = open_pool(patterns, names, key=key)
      model = models.model_of(paths, self._config[flag], flag=f"--config.{flag}")
    elif len(texts) < len(paths):
      others = [path for path in paths if path not in texts]
      raise ValueError(f"{key} has texts, {texts[0]}, and embeddings, {others[0]}: give one kind")
    else:
      encoder, parts = self._encode(self._parts(paths, names, key=key), key=key, shard=(0, 1))
      pool, model = self._text_pool(parts, encoder, names, key=key), encoder.name
    models.check_same(self._model, model, key=key)
    if key == "pool":
      self._model = model
      self.facts |= {"model": model} if model else {}
    return pool

  def encode_shard(self, given: Mapping[str, str]) -> None:
    """Encodes the part ``config.shard`` of the texts in ``given``, files by key of the config."""
    shard = parse_shard(self._config.shard)
    texts = {}
    for key, patterns in given.items():
      paths = files.expand(patterns, remedy=f"correct --config.{key}") if patterns else []
      texts[key] = self._texts(paths, {"embedding": self._config.columns.embedding})
    if not any(texts.values()):
      raise ValueError(f"--config.shard={self._config.shard}: there are no texts to encode")
    for key, paths in texts.items():
      if paths:
        self._encode(self._parts(paths, {}, key=key), key=key, shard=shard)

  def text_parts(self, patterns: str, *, key: str) -> list[TextPart]:
    """The files ``patterns`` as texts alone, not encoded; none where they have embeddings."""
    paths = files.expand(patterns, remedy=f"correct --config.{key}")
    texts = self._texts(paths, {"embedding": self._config.columns.embedding})
    return self._parts(paths, {}, key=key) if len(texts) == len(paths) else []

  def _texts(self, paths: list[str], names: Mapping[str, str | None]) -> list[str]:
    """Those of ``paths`` that hold texts."""
    column = "embedding" if names.get("embedding") is None else names["embedding"]
    texts = []
    for path in paths:
      if path.endswith(".parquet"):
        with opened(path) as file:
          there = file.schema_arrow.names
        known = self._config.encoder or {*chats.COLUMNS.values()} & {*there}
        if column not in there and known:
          texts.append(path)
      elif path.endswith(LINES):
        texts.append(path)
    return texts

  def _parts(
    self, paths: list[str], names: Mapping[str, str | None], *, key: str
  ) -> list[TextPart]:
    """Files of texts, as the config says that those of ``key`` are."""
    config = self._config
    text = {"pool": config.text, "exclude": config.exclude_text}.get(key, config.queries_text)
    return make_parts(
      paths,
      {name: names[name] for name in COLUMNS if name in names},
      kind=text.format,
      column=text.column,
      span=config.text.span,
      template=config.text.template,
    )

  def _encode(
    self, parts: list[TextPart], *, key: str, shard: tuple[int, int]
  ) -> tuple[Encoder, list[TextPart]]:
    """The encoder that the texts of ``parts`` have been through, and they themselves."""
    config = self._config
    if not config.encoder:
      raise ValueError(
        f"{parts[0].path} holds texts: set --config.encoder to {', '.join(PACKAGED)}, or the"
        " folder of a BERT-type model or of a decoder"
      )
    if files.is_remote(self._cache_dir):
      raise ValueError(
        f"embeddings are kept on this machine, not in {self._cache_dir}: set"
        " --config.cache_dir to a folder"
      )
    if self._encoder is None:
      options = config.encoding.to_dict()
      options.pop("batch_tokens")
      options["pooling"] = options["pooling"] or None
      self._encoder = open_encoder(config.encoder, **options)
    texts = itertools.chain.from_iterable(part.scan() for part in parts)
    if jax.process_count() > 1:
      # Each would encode all of them, and processes that stop together ask as often.
      count, lacking = missing(texts, self._encoder, cache_dir=self._cache_dir)
      if lacking:
        raise ValueError(
          f"{lacking:,} of {count:,} texts of {key} are not encoded in {self._cache_dir}, and"
          " several processes that select together do not encode: start one process alone, or"
          " some with --config.shard=i/n, and then this command again"
        )
      self._count(key, texts=count, encoded_now=0)
      return self._encoder, parts
    done = encode(
      texts,
      self._encoder,
      cache_dir=self._cache_dir,
      shard=shard,
      batch_tokens=config.encoding.batch_tokens,
      stop=self._stop,
    )
    if not done.finished:
      raise Stopped
    self._count(key, texts=done.texts, encoded_now=done.new)
    return self._encoder, parts

  def _text_pool(
    self,
    parts: list[TextPart],
    encoder: Encoder,
    names: Mapping[str, str | None],
    *,
    key: str,
  ) -> Pool:
    cache = EmbeddingCache(self._cache_dir, encoder=encoder.name, width=encoder.width)
    for part in parts:
      part.read_from(cache)
    fill_columns(parts, cache, tokens=names.get("length", "") is None)
    lengths = np.concatenate([cache.lengths(part.keys) for part in parts])
    empty = np.concatenate([part.empty for part in parts])
    truncated = int((lengths > encoder.max_length).sum())
    if key != "pool" and empty.any():
      raise ValueError(
        f"row {np.flatnonzero(empty)[0]} of {key} has no text to embed as"
        f" {self._config.text.span}: remove it, or set --config.text.span"
      )
    if hosts.is_first():
      print(
        f"jsel: {key}: {truncated:,} of {len(lengths):,} texts have more than {encoder.max_length}"
        " tokens, the rest of them was not read",
        flush=True,
      )
    self._count(key, truncated=truncated, tokens=int(lengths.sum()), empty=int(empty.sum()))
    said = hashlib.sha256(b"".join(part.keys.tobytes() for part in parts)).hexdigest()
    sha256 = combined("texts", encoder.name, files_sha256([p.path for p in parts]), said)
    return Pool([*parts], sha256, names)

  def _count(self, key: str, **numbers: int) -> None:
    """Adds to the facts of ``key``: queries of several tasks are opened one after another."""
    known = self.facts.setdefault(key, {})
    for name, number in numbers.items():
      known[name] = known.get(name, 0) + number


def parse_shard(shard: str) -> tuple[int, int]:
  """The number of a part and of all parts.

  >>> parse_shard("0/4")
  (0, 4)
  """
  number, bar, count = shard.partition("/")
  if not bar or not number.isdigit() or not count.isdigit() or int(number) >= int(count):
    raise ValueError(f"--config.shard={shard}: give i/n, with i from 0 to n - 1, as 0/4")
  return int(number), int(count)
