"""Glosses as examples, embedded by a tiny model of random weights."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jsel import data
from jsel.data import wordnet

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
