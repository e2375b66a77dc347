"""Glosses as examples, embedded by a tiny model of random weights."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from jsel import data
from jsel.data import wordnet
from jsel.data.subset_pool import PoolFacts, metadata
from jsel.models.encoders import open_encoder

pytest.importorskip("safetensors", reason="pip install 'jsel[text]'")
pytest.importorskip("tokenizers", reason="pip install 'jsel[text]'")

from tests import tiny_bert


@pytest.fixture
def config(tmp_path, rng):
  tiny_bert.write(tmp_path / "tiny")
  line = lambda i, file: (
    f"{i:08d} {file:02d} n 01 w{i} | {' '.join(rng.choice(tiny_bert.WORDS, 6))}  \n"
  )
  (tmp_path / "data.noun").write_text("".join(line(i, 3 if i % 3 else 9) for i in range(60)))
  return ConfigDict(
    {
      "name": "wordnet",
      "dir": str(tmp_path),
      "parts": ("noun",),
      "encoder": str(tmp_path / "tiny"),
      "cache_dir": str(tmp_path / "cache"),
      "test_fraction": 0.2,
      "split_seed": 0,
      "limit": 0,
    }
  )


def test_glosses_are_embedded_once_and_split_by_class(config, capsys):
  found = data.load(config)
  assert (len(found.train.labels), len(found.test.labels), found.classes) == (48, 12, 2)
  assert np.bincount(found.test.labels).tolist() == [8, 4]
  # Embeddings have length 1 to float32's rounding.
  np.testing.assert_allclose(np.linalg.norm(found.train.inputs, axis=1), 1, atol=1e-5)
  assert "encoded 60 of 60" in capsys.readouterr().out
  again = data.load(config)
  assert "encoded 0 of 60" in capsys.readouterr().out
  np.testing.assert_array_equal(again.train.inputs, found.train.inputs)
  assert again.sha256 == found.sha256


def test_a_limit_draws_some(config):
  config.limit = 30
  found = data.load(config)
  assert len(found.train.labels) + len(found.test.labels) == 30
  config.limit = 61
  with pytest.raises(ValueError, match=r"limit=61: there are 60 glosses"):
    data.load(config)


def test_what_is_missing_is_told(config, tmp_path, monkeypatch):
  config.cache_dir = ""
  with pytest.raises(ValueError, match=r"set --config.data.cache_dir"):
    data.load(config)
  config.cache_dir, config.encoder = str(tmp_path), "no-such-model"
  with pytest.raises(ValueError, match=r"no encoder 'no-such-model'"):
    data.load(config)
  monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "none")
  config.dir = ""
  with pytest.raises(ValueError, match=r"apt-get install -y wordnet-base"):
    data.load(config)


def test_tokens_are_of_the_same_glosses_in_the_same_parts_and_order(config, capsys):
  embedded = data.load(config)
  config.name = "wordnet_tokens"
  del config.cache_dir
  found = data.load(config)
  for part in ("train", "test"):
    np.testing.assert_array_equal(getattr(found, part).labels, getattr(embedded, part).labels)
  assert "60 glosses tokenized for" in capsys.readouterr().out
  # Embeddings of these very tokens are those of the other source, row for row.
  encoder = open_encoder(config.encoder)
  tokens = found.train.inputs
  assert tokens.dtype == np.int32
  again = encoder.embed(np.where(tokens < 0, 0, tokens), tokens >= 0)
  # Sums of float32 products, over batches of another length.
  np.testing.assert_allclose(again, embedded.train.inputs, atol=1e-5)


def test_long_texts_are_cut_and_counted(config):
  config.name, config.max_length = "wordnet_tokens", 5
  found = data.load(config)
  assert found.train.inputs.shape == (48, 5)
  assert (found.train.inputs[:, [0, 4]] == [2, 3]).all()  # those that mark beginning and end stay
  assert found.source.endswith("60 of them cut to 5 tokens")
  config.max_length = 8
  assert data.load(config).source.endswith(", 0 of them cut to 8 tokens")
  config.max_length = 65
  with pytest.raises(ValueError, match=r"max_length=65: .* takes 1 to 64 tokens"):
    data.load(config)
  for short in (1, 2):
    config.max_length = short
    with pytest.raises(ValueError, match=rf"max_length={short}"):
      data.load(config)


def test_a_subset_of_the_embeddings_is_one_of_the_tokens(config, tmp_path):
  embedded = data.load(config)
  facts = PoolFacts(48, 16, [], ["pool.npz"], "ab")
  table = pa.table({"index": [3, 40, 11]}, metadata=metadata(facts))
  pq.write_table(table, tmp_path / "subset.parquet")
  config.name, config.subset = "wordnet_tokens", str(tmp_path / "subset.parquet")
  found = data.load(config)
  np.testing.assert_array_equal(found.source_rows, [3, 11, 40])
  np.testing.assert_array_equal(found.train.labels, embedded.train.labels[[3, 11, 40]])
  config.limit = 30
  with pytest.raises(ValueError, match=r"of a pool of 48 rows, the training set has 24"):
    data.load(config)
