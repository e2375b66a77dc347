"""WordNet's glosses as examples: embeddings by an encoder, classes by `jsel.data.wordnet`."""

import numpy as np
from ml_collections import ConfigDict

from jsel.data import wordnet
from jsel.data.arrays import Dataset, Split, checked
from jsel.data.split import hold_out


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

  found = wordnet.read(config)
  total, limit = len(found.texts), int(config.get("limit") or 0)
  if not 0 <= limit <= total:
    raise ValueError(f"--config.data.limit={limit}: there are {total} glosses, 0 takes all")
  seed = config.get("split_seed", 0)
  draw = np.random.PCG64(seed).random_raw(total)
  rows = np.sort(np.argsort(draw, kind="stable")[: limit or total])
  texts = [found.texts[row] for row in rows]
  encoder = open_encoder(config.encoder)
  encode(texts, encoder, cache_dir=config.cache_dir)
  inputs = np.concatenate(list(embeddings(texts, encoder, cache_dir=config.cache_dir)))
  classes = len(found.files)
  labelled = checked(inputs, found.labels[rows], what="WordNet", classes=classes)
  train, test = hold_out(Split(*labelled), config.get("test_fraction", 0.2), seed=seed)
  return Dataset(
    train=train,
    validation=None,
    test=test,
    classes=classes,
    name="wordnet",
    source=f"WordNet 3.0, {len(rows):,} glosses of {', '.join(config.parts)}, {encoder.name}",
    scale=1.0,
    sha256="",
  )
