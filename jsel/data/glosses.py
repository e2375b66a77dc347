"""WordNet's glosses as examples: embeddings or token ids, classes by `jsel.data.wordnet`."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jsel.data import wordnet
from jsel.data.arrays import Dataset, Split, checked
from jsel.data.split import hold_out
from jsel.data.token_rows import padded


class Drawn(NamedTuple):
  """The glosses that a config asks for, in WordNet's order."""

  texts: list[str]
  labels: np.ndarray  # [n] int32
  classes: int
  source: str  # for people


def read(config: ConfigDict) -> Dataset:
  """Embeddings of glosses by ``config.encoder``, kept in ``config.cache_dir`` from run to run.

  ``config.parts`` and ``config.dir`` are those of `jsel.data.wordnet.read`; of the glosses,
  ``config.limit`` are drawn (by ``config.split_seed``), all if 0. ``config.test_fraction`` of each
  class are the test part.

  Raises:
    ValueError: if WordNet or the encoder is not there, with the command that installs it; without
      a cache_dir; or if the limit is out of range.
  """
  if not config.get("cache_dir"):
    raise ValueError(
      "encoding takes minutes: set --config.data.cache_dir to a folder that keeps the embeddings"
    )
  # Importing the models takes a second: only for those who encode.
  from jsel.data.encode import embeddings, encode
  from jsel.models.encoders import open_encoder

  found = drawn(config)
  encoder = open_encoder(config.encoder)
  encode(found.texts, encoder, cache_dir=config.cache_dir)
  pieces = embeddings(found.texts, encoder, cache_dir=config.cache_dir)
  return dataset(config, found, np.concatenate(list(pieces)), name="wordnet", by=encoder.name)


def read_tokens(config: ConfigDict) -> Dataset:
  """Token ids of the same glosses in the same parts and order as `read` gives their embeddings.

  So a subset of the embeddings is one of these rows. They are of the tokenizer of
  ``config.encoder``, which is of type bert, cut to ``config.max_length`` tokens, those that mark
  beginning and end included (0: as many as the encoder was made for), and as wide as the longest.

  Raises:
    ValueError: as `read`, but for the cache_dir; or if the encoder does not take as many tokens.
  """
  from jsel.data.tokens import open_tokenizer, tokenize
  from jsel.models.encoders import bert_tokenizer

  found = drawn(config)
  path, longest = bert_tokenizer(config.encoder, max_length=config.get("max_length", 0))
  tokens = tokenize(open_tokenizer(path, max_length=longest), found.texts)
  cut = f"{int(tokens.truncated.sum()):,} of them cut to {longest} tokens"
  by = f"tokenized for {config.encoder}, {cut}"
  print(f"jsel: {len(found.texts):,} glosses {by}", flush=True)
  return dataset(config, found, padded(tokens.ids), name="wordnet_tokens", by=by)


def drawn(config: ConfigDict) -> Drawn:
  """The glosses of ``config.parts``, ``config.limit`` of them if it is not 0.

  Raises:
    ValueError: if WordNet is not there, or the limit is out of range.
  """
  found = wordnet.read(config)
  total, limit = len(found.texts), int(config.get("limit") or 0)
  if not 0 <= limit <= total:
    raise ValueError(f"--config.data.limit={limit}: there are {total} glosses, 0 takes all")
  draw = np.random.PCG64(config.get("split_seed", 0)).random_raw(total)
  rows = np.sort(np.argsort(draw, kind="stable")[: limit or total])
  return Drawn(
    [found.texts[row] for row in rows],
    found.labels[rows],
    len(found.files),
    f"WordNet 3.0, {len(rows):,} glosses of {', '.join(config.parts)}",
  )


def dataset(config: ConfigDict, found: Drawn, inputs: np.ndarray, *, name: str, by: str) -> Dataset:
  """``inputs`` of the glosses ``found``, with ``config.test_fraction`` of each class for the test.

  Args:
    config: the section ``data``.
    found: the glosses.
    inputs: ``[n, ...]``, a row a gloss.
    name: of the source.
    by: what made the inputs, for people.
  """
  labelled = checked(inputs, found.labels, what="WordNet", classes=found.classes)
  seed = config.get("split_seed", 0)
  train, test = hold_out(Split(*labelled), config.get("test_fraction", 0.2), seed=seed)
  return Dataset(
    train=train,
    validation=None,
    test=test,
    classes=found.classes,
    name=name,
    source=f"{found.source}, {by}",
    scale=1.0,
    sha256="",
  )
