"""Pools of texts: what is encoded and when, columns, cuts, empty rows, and models."""

import functools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsel.data.tokens import open_tokenizer
from jsel.selection.config import base_config
from jsel.selection.reader import Reader, parse_shard
from jsel.selection.walk import Stopped
from tests import tiny_bert

pytest.importorskip("safetensors", reason="pip install 'jsel[text]'")
pytest.importorskip("tokenizers", reason="pip install 'jsel[text]'")

from jsel.models.encoders import open_encoder

NAMES = dict.fromkeys(("embedding", "id", "group", "source", "length", "score"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  return tiny_bert.write(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def opener():
  """Opens an encoder once, so that its programs are compiled once."""
  return functools.cache(open_encoder)


@pytest.fixture
def reader(bert, tmp_path, opener, monkeypatch):
  """Makes a reader of a config with the changes given."""
  monkeypatch.setattr("jsel.selection.reader.open_encoder", opener)

  def make(stop=lambda: False, **changes):
    config = base_config()
    config.encoder = str(bert)
    config.encoding.batch_tokens = 256
    config.update_from_flattened_dict(changes)
    return Reader(config, tmp_path / "work", stop=stop)

  return make


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def chat(question, answer, **columns):
  turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
  return {"messages": turns, **columns}


def sentences(rng, count, words=(3, 20)):
  return [" ".join(rng.choice(tiny_bert.WORDS, rng.integers(*words))) for _ in range(count)]


def embedded(bert, texts):
  """What the encoder makes of ``texts`` in one batch of its longest."""
  encoder = open_encoder(str(bert))
  tokenizer = open_tokenizer(encoder.tokenizer, max_length=tiny_bert.MAX_LENGTH)
  tokens = np.zeros((len(texts), tiny_bert.MAX_LENGTH), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, text in enumerate(texts):
    ids = tokenizer.encode(text).ids
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  return encoder.embed(tokens, mask)


def all_rows(pool, rows=7):
  return np.concatenate(list(pool.blocks(rows)))


@pytest.mark.parametrize("span", ["prompt", "answer", "both"])
def test_the_span_is_embedded_in_the_order_of_the_files(reader, bert, tmp_path, rng, span):
  asked, said = sentences(rng, 30), sentences(rng, 30)
  rows = [chat(q, a, id=n, source="web") for n, (q, a) in enumerate(zip(asked, said, strict=True))]
  write_lines(tmp_path / "a.jsonl", rows[:12])
  pq.write_table(pa.Table.from_pylist(rows[12:]), tmp_path / "b.parquet")
  pool = reader(**{"text.span": span}).open(
    f"{tmp_path}/a.jsonl,{tmp_path}/*.parquet", NAMES, key="pool"
  )
  prompts, answers = (
    [f"{who}: {t}" for t in ts] for who, ts in (("user", asked), ("assistant", said))
  )
  both = [f"{p}\n{a}" for p, a in zip(prompts, answers, strict=True)]
  texts = {"prompt": prompts, "answer": answers, "both": both}[span]
  # Batches of other lengths round otherwise.
  np.testing.assert_allclose(all_rows(pool), embedded(bert, texts), atol=2e-6)
  assert pool.columns["id"].to_pylist() == list(range(30))
  assert set(pool.columns["source"].to_pylist()) == {"web"}
  # Words, two special tokens, and of each turn the role and its colon.
  turns = 2 if span == "both" else 1
  words = [len(text.split()) - turns + 2 + 2 * turns for text in texts]
  np.testing.assert_array_equal(pool.numbers("length"), words)


def test_given_lengths_are_kept_and_rows_read_from_anywhere(reader, tmp_path, rng):
  rows = [{"text": text, "length": 5} for text in sentences(rng, 20)]
  pool = reader().open(write_lines(tmp_path / "a.jsonl", rows), NAMES, key="pool")
  assert pool.numbers("length").tolist() == [5] * 20
  part = pool.parts[0]
  np.testing.assert_array_equal(np.concatenate(list(part.pieces([(13, 20)]))), all_rows(pool)[13:])
  assert list(part.texts()) == [row["text"] for row in rows]


def test_several_processes_read_what_is_encoded_and_encode_nothing(
  reader, tmp_path, rng, monkeypatch
):
  texts = [{"text": text} for text in sentences(rng, 20)]
  files = write_lines(tmp_path / "a.jsonl", texts)
  with monkeypatch.context() as patched:
    patched.setattr("jax.process_count", lambda: 2)
    with pytest.raises(
      ValueError, match=r"20 of 20 texts of pool are not encoded.*--config\.shard"
    ):
      reader().open(files, NAMES, key="pool")
  whole = all_rows(reader().open(files, NAMES, key="pool"))
  monkeypatch.setattr("jax.process_count", lambda: 2)
  one = reader()
  np.testing.assert_array_equal(all_rows(one.open(files, NAMES, key="pool")), whole)
  assert one.facts["pool"]["encoded_now"] == 0


def test_a_new_file_encodes_the_new_texts_alone(reader, tmp_path, rng):
  texts = sentences(rng, 40)
  write_lines(tmp_path / "a-0.jsonl", [{"text": text} for text in texts[:25]])
  first = reader()
  before = first.open(f"{tmp_path}/a-*.jsonl", NAMES, key="pool")
  # Other columns, and a text that is there already.
  more = [{"text": text, "id": n} for n, text in enumerate([*texts[25:], texts[3]])]
  write_lines(tmp_path / "a-1.jsonl", more)
  second = reader()
  with pytest.raises(ValueError, match=r"a-0.jsonl has no column for id, other files have one"):
    second.open(f"{tmp_path}/a-*.jsonl", NAMES, key="pool")
  assert second.facts["pool"]["encoded_now"] == 15
  third = reader()
  pool = third.open(f"{tmp_path}/a-*.jsonl", {**NAMES, "id": ""}, key="pool")
  assert (third.facts["pool"]["encoded_now"], third.facts["pool"]["texts"]) == (0, 41)
  np.testing.assert_array_equal(all_rows(pool)[:25], all_rows(before))
  np.testing.assert_array_equal(all_rows(pool)[40], all_rows(before)[3])


def test_shards_encode_disjoint_parts_of_all_keys(reader, tmp_path, rng):
  texts = sentences(rng, 60)
  pool = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts[:50]])
  queries = write_lines(tmp_path / "q.jsonl", [{"text": text} for text in texts[50:]])
  counts = []
  for number in range(3):
    part = reader(shard=f"{number}/3")
    part.encode_shard({"pool": pool, "queries": queries})
    counts += [part.facts[key]["encoded_now"] for key in ("pool", "queries")]
  assert sum(counts) == 60
  assert min(counts[::2]) > 0
  whole = reader()
  whole.open(pool, NAMES, key="pool")
  whole.open(queries, {"embedding": None}, key="queries")
  assert whole.facts["pool"]["encoded_now"] == whole.facts["queries"]["encoded_now"] == 0
  whole.open(queries, {"embedding": None}, key="queries")
  assert (whole.facts["pool"]["texts"], whole.facts["queries"]["texts"]) == (50, 20)
  np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
  with pytest.raises(ValueError, match=r"shard=0/3: there are no texts to encode"):
    reader(shard="0/3").encode_shard({"pool": f"{tmp_path}/x.npy", "queries": ""})
  for shard in ("3/3", "1", "a/b", "1/"):
    with pytest.raises(ValueError, match=r"give i/n"):
      parse_shard(shard)


def test_a_stop_keeps_what_is_encoded(reader, tmp_path, rng):
  texts = [{"text": text} for text in sentences(rng, 60)]
  path = write_lines(tmp_path / "a.jsonl", texts)
  asked = iter([False, True])
  with pytest.raises(Stopped):
    reader(stop=lambda: next(asked), **{"encoding.batch_tokens": 64}).open(path, NAMES, key="pool")
  again = reader()
  again.open(path, NAMES, key="pool")
  assert 0 < again.facts["pool"]["encoded_now"] < 60


def test_cuts_and_empty_rows_are_counted(reader, tmp_path, capsys):
  long = " ".join(["w1"] * tiny_bert.MAX_LENGTH)
  rows = [chat("w1", ""), chat("w2", long), chat("w2", "w3")]
  opened = reader(**{"text.span": "answer"})
  pool = opened.open(write_lines(tmp_path / "a.jsonl", rows), NAMES, key="pool")
  facts = opened.facts["pool"]
  assert (facts["texts"], facts["truncated"], facts["empty"]) == (3, 1, 1)
  assert "pool: 1 of 3 texts have more than 64 tokens" in capsys.readouterr().out
  assert pool.parts[0].empty.tolist() == [True, False, False]
  with pytest.raises(ValueError, match=r"row 0 of queries has no text to embed as answer"):
    opened.open(f"{tmp_path}/a.jsonl", {"embedding": None}, key="queries")


def test_queries_of_another_model_are_refused_by_name(reader, bert, tmp_path, rng):
  path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in sentences(rng, 5)])
  x = pa.table({"embedding": [np.ones(16, np.float32)] * 2})
  pq.write_table(x.replace_schema_metadata({"model": "other"}), tmp_path / "q.parquet")
  np.save(tmp_path / "q.npy", np.ones((2, 16), np.float32))
  opened = reader()
  opened.open(path, NAMES, key="pool")
  name = opened.facts["model"]
  assert name.startswith("tiny ")
  with pytest.raises(ValueError, match=rf"embeddings of '{name}', queries of 'other'"):
    opened.open(f"{tmp_path}/q.parquet", {"embedding": None}, key="queries")
  opened.open(f"{tmp_path}/q.npy", {"embedding": None}, key="queries")
  told = reader(queries_model="third")
  told.open(path, NAMES, key="pool")
  with pytest.raises(ValueError, match=r"queries of 'third'"):
    told.open(f"{tmp_path}/q.npy", {"embedding": None}, key="queries")
  same = reader(queries_model="tiny")
  same.open(path, NAMES, key="pool")
  same.open(f"{tmp_path}/q.npy", {"embedding": None}, key="queries")
  another = reader(model="other")
  another.open(f"{tmp_path}/q.npy", NAMES, key="pool")
  with pytest.raises(ValueError, match=r"the pool has embeddings of 'other', queries of 'tiny "):
    another.open(path, {"embedding": None}, key="queries")


def test_what_cannot_be_read_is_told(reader, tmp_path, rng):
  path = write_lines(tmp_path / "a.jsonl", [{"text": "w1"}, {"text": "\ud800"}])
  with pytest.raises(ValueError, match=r"a.jsonl holds texts: set --config.encoder to all-MiniLM"):
    reader(encoder="").open(path, NAMES, key="pool")
  with pytest.raises(ValueError, match=r"a.jsonl:2 holds half of a character"):
    reader().open(path, NAMES, key="pool")
  with pytest.raises(ValueError, match=r"a.jsonl:1: a plain text has no answer"):
    reader(**{"text.span": "answer"}).open(path, NAMES, key="pool")
  np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
  with pytest.raises(ValueError, match=r"pool has texts, .*a.jsonl, and embeddings, .*x.npy"):
    reader().open(f"{path},{tmp_path}/x.npy", NAMES, key="pool")
  with pytest.raises(ValueError, match=r"kept on this machine, not in s3://b: set --config.cache_"):
    reader(cache_dir="s3://b").open(path, NAMES, key="pool")


def test_parquet_files_with_embeddings_are_no_texts(reader, tmp_path):
  table = pa.table({"embedding": [np.ones(4, np.float32)] * 3, "text": ["a", "b", "c"]})
  pq.write_table(table, tmp_path / "a.parquet")
  assert reader().open(f"{tmp_path}/a.parquet", NAMES, key="pool").width == 4
  texts = reader().open(f"{tmp_path}/a.parquet", {**NAMES, "embedding": ""}, key="pool")
  assert texts.width == tiny_bert.SIZES["hidden_size"]


def test_a_template_and_types_that_differ_between_files(reader, bert, tmp_path):
  pytest.importorskip("jinja2", reason="pip install 'jsel[text]'")
  (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }} w9 {% endfor %}")
  write_lines(tmp_path / "a.jsonl", [chat("w1", "w2", score=1, id="x")])
  write_lines(tmp_path / "b.jsonl", [chat("w3", "w4", score=0.5, id="y")])
  opened = reader(**{"text.template": f"{tmp_path}/t.jinja"})
  pool = opened.open(f"{tmp_path}/*.jsonl", NAMES, key="pool")
  expected = embedded(bert, ["w1 w9 w2 w9 ", "w3 w9 w4 w9 "])
  np.testing.assert_allclose(all_rows(pool), expected, atol=2e-6)
  assert pool.numbers("score").tolist() == [1, 0.5]
