"""Texts to embeddings: batches, the cache, stopping and going on, and WordNet's glosses."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jsel.data import encode as encoding
from jsel.data import wordnet
from jsel.data.tokens import bucketed, open_tokenizer, tokenize

pytest.importorskip("safetensors", reason="pip install 'jsel[text]'")
tokenizers = pytest.importorskip("tokenizers", reason="pip install 'jsel[text]'")

from jsel.data.encode import embeddings, encode  # noqa: E402
from jsel.models.encoders import Encoder  # noqa: E402

WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture
def encoder(tmp_path):
  """Embeds a text as the sums of its ids and of their squares; counts rows in ``rows``."""
  vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  rows = []

  def embed(tokens, mask):
    rows.append(int(mask.any(1).sum()))
    ids = np.where(mask, tokens, 0).astype(np.float32)
    return np.stack([ids.sum(1), (ids**2).sum(1)], 1)

  return Encoder("sums 1", 2, tmp_path / "tokenizer.json", 30, embed), rows


def make_texts(rng, count):
  return [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(count)]


def expected(texts):
  ids = [np.array([2 + WORDS.index(word) for word in text.split()[:30]]) for text in texts]
  return np.array([(row.sum(), (row**2).sum()) for row in ids], np.float32)


def read(texts, encoder, cache_dir):
  return np.concatenate(list(embeddings(texts, encoder, cache_dir=cache_dir)))


def test_every_text_is_encoded_once_and_read_in_order(tmp_path, rng, encoder, monkeypatch):
  monkeypatch.setattr(encoding, "WINDOW", 16)
  encoder, rows = encoder
  texts = make_texts(rng, 50)
  texts += [*texts[:5], texts[3]]
  options = {"cache_dir": tmp_path / "cache", "batch_tokens": 100, "show": False}
  done = encode(texts, encoder, **options)
  assert (done.texts, done.new, sum(rows)) == (56, len(set(texts)), len(set(texts)))
  np.testing.assert_array_equal(read(texts, encoder, tmp_path / "cache"), expected(texts))
  more = make_texts(rng, 7)
  assert encode(texts + more, encoder, **options).new == len(set(more) - set(texts))
  np.testing.assert_array_equal(read(more[::-1], encoder, tmp_path / "cache"), expected(more[::-1]))


def test_a_killed_run_keeps_its_finished_files(tmp_path, rng, encoder):
  encoder, rows = encoder
  texts = make_texts(rng, 60)

  def dies(tokens, mask):
    if len(rows) == 4:
      raise KeyboardInterrupt
    return encoder.embed(tokens, mask)

  options = {"cache_dir": tmp_path, "batch_tokens": 100, "save_seconds": 0.0, "show": False}
  with pytest.raises(KeyboardInterrupt):
    encode(texts, encoder._replace(embed=dies), **options)
  finished = sum(rows)
  assert finished
  (next(tmp_path.glob("sums-*")) / ".half.tmp").write_bytes(b"cut short")
  assert encode(texts, encoder, **options).new == len(set(texts)) - finished
  np.testing.assert_array_equal(read(texts, encoder, tmp_path), expected(texts))


def test_shards_are_disjoint_and_merge(tmp_path, rng, encoder):
  encoder, _ = encoder
  texts = make_texts(rng, 40)
  parts = [
    encode(texts, encoder, cache_dir=tmp_path, shard=(i, 3), show=False).new for i in range(3)
  ]
  assert sum(parts) == len(set(texts))
  assert all(parts)
  np.testing.assert_array_equal(read(texts, encoder, tmp_path), expected(texts))
  with pytest.raises(ValueError, match=r"shard=3/3: number the shards from 0 to 2"):
    encode(texts, encoder, cache_dir=tmp_path, shard=(3, 3), show=False)


def test_another_encoder_shares_nothing(tmp_path, rng, encoder):
  encoder, _ = encoder
  texts = make_texts(rng, 4)
  encode(texts, encoder, cache_dir=tmp_path, show=False)
  with pytest.raises(ValueError, match=r"4 of 4 texts are not in .*: encode them first"):
    read(texts, encoder._replace(name="sums 2"), tmp_path)


def test_what_is_cut_is_counted_and_told(tmp_path, encoder, capsys):
  encoder, _ = encoder
  texts = ["w1 " * 31, "w2 " * 30, "w3"]
  done = encode(texts, encoder, cache_dir=tmp_path)
  assert (done.truncated, done.tokens) == (1, 61)
  assert "1 cut to 30 tokens" in capsys.readouterr().out
  found = tokenize(open_tokenizer(encoder.tokenizer, max_length=8), texts)
  assert found.lengths.tolist() == [31, 30, 1]
  assert [len(row) for row in found.ids] == [8, 8, 1]


def test_batches_hold_each_text_once_in_few_shapes(rng):
  sizes = rng.integers(1, 65, 500)
  ids = [[number + 1] * size for number, size in enumerate(sizes)]
  batches = list(bucketed(ids, batch_tokens=256, lengths=(8, 16, 32, 64)))
  assert len({batch.tokens.shape for batch in batches}) <= 4
  rows = np.concatenate([batch.rows for batch in batches])
  np.testing.assert_array_equal(np.sort(rows), np.arange(500))
  for batch in batches:
    for place, row in enumerate(batch.rows):
      assert batch.tokens[place][batch.mask[place]].tolist() == ids[row]
    assert not batch.mask[len(batch.rows) :].any()
  with pytest.raises(ValueError, match=r"text 1 has 9 tokens, batches have at most 8"):
    list(bucketed([[1], [1] * 9], batch_tokens=8, lengths=(8,)))


def test_a_missing_or_broken_tokenizer_is_told(tmp_path):
  with pytest.raises(ValueError, match=r"there is no .*tokenizer.json"):
    open_tokenizer(tmp_path / "tokenizer.json", max_length=8)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer"):
    open_tokenizer(tmp_path / "tokenizer.json", max_length=8)


LINES = '  1 the licence | of it\n00000001 03 n 01 a | first; "so"  \n00000009 05 n 01 b | second\n'


def test_glosses_and_their_files_are_read(tmp_path):
  (tmp_path / "data.noun").write_text(LINES)
  (tmp_path / "data.verb").write_text("00000002 29 v 01 c 01 + 02 00 | third\n")
  found = wordnet.read(ConfigDict({"dir": str(tmp_path), "parts": ("noun", "verb")}))
  assert found.texts == ['first; "so"', "second", "third"]
  assert found.labels.tolist() == [0, 1, 2]
  assert found.files.tolist() == [3, 5, 29]
  assert found.ids[2] == "verb-00000002"
  assert found.words == ["a", "b", "c"]


def test_absent_or_broken_wordnet_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path)
  with pytest.raises(ValueError, match=r"WordNet is not in .*`apt-get update && apt-get install"):
    wordnet.read(ConfigDict({}))
  (tmp_path / "data.noun").write_text(LINES + "and more\n")
  with pytest.raises(ValueError, match=r"data.noun:4 is no `offset file"):
    wordnet.read(ConfigDict({}))
  with pytest.raises(ValueError, match=r"are some of noun, verb, adj, adv"):
    wordnet.read(ConfigDict({"parts": ("nouns",)}))


@pytest.mark.skipif(not wordnet.SYSTEM_FOLDER.is_dir(), reason=wordnet.INSTALL)
def test_wordnet_is_as_large_as_it_should_be():
  found = wordnet.read(ConfigDict({"parts": wordnet.PARTS}))
  assert (len(found.texts), len(found.files)) == (117_659, 45)
  nouns = wordnet.read(ConfigDict({}))
  assert (len(nouns.texts), len(nouns.files)) == (82_115, 26)
