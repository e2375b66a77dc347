"""python -m jsel.select as a person runs it, on texts."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import packaged, tiny_bert

for package, extra in (("safetensors", "text"), ("tokenizers", "text"), ("datasketch", "dedup")):
  pytest.importorskip(package, reason=f"pip install 'jsel[{extra}]'")


ROOT = pathlib.Path(__file__).parent.parent
WORDS = np.array(tiny_bert.WORDS)


def run(workdir, *options):
  command = [sys.executable, "-m", "jsel.select", "--config=configs/select/rds.py"]
  return subprocess.run(
    [*command, f"--workdir={workdir}", *(f"--config.{option}" for option in options)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=500,
    check=False,
  )


def chat(question, answer, **columns):
  turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
  return {"messages": turns, **columns}


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """300 chats in two files, of 250 with words of one of two kinds.

  Of the others 20 are copies of the first 20 but for a word, 20 have words of an evaluation set
  within, and 10 no answer.
  """
  folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
  half = lambda row: WORDS[:10] if row % 2 else WORDS[10:20]
  say = lambda row, count: " ".join(rng.choice(half(row), count))
  rows = [chat(say(n, 12), say(n, 30), id=f"c{n}", source=f"half{n % 2}") for n in range(250)]
  for n in range(20):
    question, answer = (turn["content"] for turn in rows[n]["messages"])
    rows.append(chat(question, f"{answer} w7", id=f"copy{n}", source="copies"))
  evaluation = [say(0, 20) for _ in range(20)]
  for n, text in enumerate(evaluation):
    rows.append(chat(text[text.index(" ") :].upper(), say(0, 30), id=f"leak{n}", source="leaks"))
  rows += [chat(say(n, 12), "", id=f"empty{n}", source="half0") for n in range(10)]
  write_lines(folder / "pool-0.jsonl", rows[:200])
  pq.write_table(pa.Table.from_pylist(rows[200:]), folder / "pool-1.parquet")
  queries = [{"instruction": say(1, 12), "input": "", "output": say(1, 30)} for _ in range(5)]
  write_lines(folder / "queries.jsonl", queries)
  write_lines(folder / "eval.jsonl", [{"question": text} for text in evaluation])
  write_lines(folder / "more.jsonl", [chat(say(0, 9), say(0, 9), id="new", source="more")])
  (folder / "broken.jsonl").write_text('{"messages": []}\n{"messages": [}\n')
  tiny_bert.write(folder / "tiny")
  return folder


def test_texts_are_encoded_searched_and_chosen_from(files, tmp_path):
  options = (
    f"pool={files}/pool-*",
    f"queries={files}/queries.jsonl",
    f"encoder={files}/tiny",
    f"exclude={files}/eval.jsonl",
    "exclude_text.column=question",
    "text.span=answer",
    "dedup_text=0.8",
    "dedup=0.9999",
    "budget=40",
    "budget_unit=rows",
    "write_rows=jsonl",
    f"cache_dir={tmp_path}/cache",
  )
  sharded = run(tmp_path / "first", *options, "shard=1/2")
  assert sharded.returncode == 0, sharded.stderr
  assert not (tmp_path / "first" / "subset.parquet").exists()
  first = run(tmp_path / "first", *options)
  assert first.returncode == 0, first.stderr
  assert "pool: 0 of 300 texts have more than 64 tokens" in first.stdout
  assert "ngram: 20 (leaks 20)" in first.stdout
  summary = json.loads((tmp_path / "first" / "summary.json").read_text())
  assert summary["excluded"]["empty"] == 10
  assert (summary["excluded"]["ngram"], summary["excluded"]["duplicate_text"]) == (20, 20)
  assert summary["pool"]["texts"] == 300
  # The ten empty ones are one text.
  assert 0 < summary["pool"]["encoded_now"] < 291
  assert summary["model"].startswith("tiny ")
  excluded = pq.read_table(tmp_path / "first" / "excluded.parquet").to_pylist()
  kinds = {"copy": "duplicate_text", "leak": "ngram", "empty": "empty"}
  for row in excluded:
    kind = row["id"].rstrip("0123456789")
    assert row["reason"] == kinds.get(kind, "duplicate")
    number = int(row["id"].removeprefix(kind))
    assert row["matched_id"] == (f"c{number}" if kind == "copy" else row["matched_id"])
    assert row["eval_row"] == (number if kind == "leak" else None)
  subset = pq.read_table(tmp_path / "first" / "subset.parquet")
  assert subset.num_rows == 40
  assert not {row["index"] for row in excluded} & set(subset["index"].to_pylist())
  lines = (tmp_path / "first" / "rows.jsonl").read_text().splitlines()
  assert {json.loads(line)["id"] for line in lines} == set(subset["id"].to_pylist())
  # Queries have the words of odd numbers.
  assert np.mean([source == "half1" for source in subset["source"].to_pylist()]) > 0.7

  more = (f"pool={files}/pool-*,{files}/more.jsonl", *options[1:])
  second = run(tmp_path / "second", *more)
  assert second.returncode == 0, second.stderr
  summary = json.loads((tmp_path / "second" / "summary.json").read_text())
  assert (summary["pool"]["texts"], summary["pool"]["encoded_now"]) == (301, 1)


def test_a_broken_line_is_exit_code_2_and_one_line(files, tmp_path):
  given = (f"queries={files}/queries.jsonl", f"encoder={files}/tiny")
  result = run(tmp_path, f"pool={files}/broken.jsonl", *given)
  assert result.returncode == 2, result.stderr
  assert "broken.jsonl:2 is no JSON" in result.stderr
  assert "Traceback" not in result.stderr


@packaged.needs(packaged.MINILM)
def test_minilm_picks_what_queries_are_about(tmp_path):
  cook = ["boil the pasta", "a recipe for soup", "how long to bake bread", "roast the chicken"]
  code = ["fix this python function", "a loop in C", "what is a null pointer", "sort a list"]
  rows = [{"text": text, "source": "cook"} for text in cook]
  rows += [{"text": text, "source": "code"} for text in code]
  write_lines(tmp_path / "pool.jsonl", rows)
  write_lines(tmp_path / "queries.jsonl", [{"text": "write a program"}, {"text": "debug my code"}])
  given = (f"pool={tmp_path}/pool.jsonl", f"queries={tmp_path}/queries.jsonl", "budget=0.5")
  result = run(tmp_path / "run", *given, f"encoder={packaged.MINILM}")
  assert result.returncode == 0, result.stderr
  subset = pq.read_table(tmp_path / "run" / "subset.parquet")
  assert subset["source"].to_pylist() == ["code"] * 4
