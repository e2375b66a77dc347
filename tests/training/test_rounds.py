"""Rounds of picking, fine-tuning and scoring, by a small random model, as train.py runs them."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
from flax import nnx

pytest.importorskip("safetensors.numpy", reason="pip install 'jsel[text]'")
pytest.importorskip("gguf", reason="pip install 'jsel[gguf]'")

from jsel.data import instructions
from jsel.data.answers import Pairs
from jsel.data.instructions import Instructions
from jsel.models.llama_weights import load_llama
from jsel.models.token_loss import token_loss
from jsel.selectors.dac import reweigh
from jsel.training import feedback
from jsel.training.feedback import make_scorer
from jsel.training.finetune import make_tuner
from jsel.training.rounds import picked, train_in_rounds
from jsel.training.rounds_config import base_config
from tests.models import decoders

TOKENS = ["<|end|>", *"abcdefghijk123", *(f"unused{i}" for i in range(35))]


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax does not keep to strict promotion itself.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture
def config(tmp_path, rng):
  letters = lambda least: "".join(rng.choice(list("abcdefghij"), rng.integers(least, 9)))
  lines = [{"prompt": letters(1), "answer": letters(2), "id": f"row {i}"} for i in range(60)]
  (tmp_path / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  model = decoders.write_gguf(tmp_path / "m.gguf", decoders.random_tensors(rng), tokens=TOKENS)
  config = base_config()
  config.data.update(
    {
      "name": "jsonl",
      "path": str(tmp_path / "pool.jsonl"),
      "rows": 50,
      "test_rows": 10,
      "template": "{prompt}",
      "end": "<|end|>",
    }
  )
  config.model.name = config.encoder.name = str(model)
  config.update({"rounds": 2, "budget": 24, "batch_size": 4, "max_length": 24})
  config.method.update({"clusters": 5, "new_tokens": 4})
  config.optimizer.learning_rate = 0.01
  return config


def left(workdir):
  """What a run left: its summary and the columns of its exposure."""
  summary = json.loads((workdir / "summary.json").read_text())
  table = pq.read_table(workdir / "exposure.parquet")
  return summary, {name: table[name].to_numpy() for name in table.column_names}


def test_a_run_picks_its_budget_learns_and_weighs_clusters_by_what_it_said(config, tmp_path):
  assert train_in_rounds(config, str(tmp_path / "run")) == 0
  summary, rows = left(tmp_path / "run")
  assert summary["test_loss"] < summary["test_loss_before"]
  assert [(rows["first_step"] == number).sum() for number in (0, 1)] == [12, 12]
  seen = rows["times_selected"] == 1
  assert seen.sum() == summary["examples_seen"] == 24
  assert np.isfinite(rows["last_loss"][seen]).all()
  assert np.isnan(rows["gap"][~seen]).all()
  # The weights are those that the mean gaps of the clusters give, round after round.
  weights = np.full(5, 0.2)
  for number in (0, 1):
    now = rows["first_step"] == number
    gaps = {c: rows["gap"][now & (rows["cluster"] == c)] for c in range(5)}
    means = {c: np.nanmean(gap) for c, gap in gaps.items() if np.isfinite(gap).any()}
    mean = [means.get(c, np.mean(list(means.values()))) for c in range(5)]
    weights = weights * np.exp(mean) / (weights * np.exp(mean)).sum()
  np.testing.assert_allclose(summary["cluster_weights"], weights, rtol=1e-5)
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 2]
  np.testing.assert_allclose(lines[-1]["eval/loss"], summary["test_loss"])


def test_a_run_that_goes_on_ends_as_one_that_never_stopped(config, tmp_path, monkeypatch, capsys):
  train_in_rounds(config, str(tmp_path / "whole"))
  asked = iter([False] * 4 + [True])  # in the second batch of the second round
  with monkeypatch.context() as patched:
    patched.setattr("jsel.training.stopping.StopSignals.asked", lambda self: next(asked))
    train_in_rounds(config, str(tmp_path / "halves"))
  assert "stopped in round 2" in capsys.readouterr().out
  assert not (tmp_path / "halves/summary.json").exists()
  train_in_rounds(config, str(tmp_path / "halves"))
  assert "going on after round 1" in capsys.readouterr().out
  (summary, rows), (expected, columns) = (left(tmp_path / name) for name in ("halves", "whole"))
  for name in columns:
    np.testing.assert_array_equal(rows[name], columns[name])
  del summary["wall_seconds"], expected["wall_seconds"]
  assert summary == expected
  config.encoder.cache_dir = str(tmp_path / "elsewhere")  # where embeddings are changes nothing
  train_in_rounds(config, str(tmp_path / "halves"))
  assert "all 2 rounds are done" in capsys.readouterr().out
  config.seed = 1
  with pytest.raises(ValueError, match=r"the workdir holds a run with seed=0, this one has seed=1"):
    train_in_rounds(config, str(tmp_path / "halves"))


def test_rewards_in_the_file_weigh_clusters_in_place_of_perplexities(config, tmp_path, rng):
  path = tmp_path / "pool.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  rewards = rng.standard_normal(60).astype(np.float32)
  lines = [line | {"quality": float(x)} for line, x in zip(lines, rewards, strict=True)]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config.method.scorer, config.rounds, config.budget = "column:quality", 1, 12
  assert train_in_rounds(config, str(tmp_path / "run")) == 0
  summary, rows = left(tmp_path / "run")
  seen = rows["times_selected"] == 1
  np.testing.assert_array_equal(rows["gap"][seen], rewards[rows["index"][seen]])
  weights = reweigh(np.full(5, 0.2), rows["cluster"][seen], rows["gap"][seen])
  np.testing.assert_allclose(summary["cluster_weights"], weights, rtol=1e-6)
  lines[7]["quality"] = None
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  with pytest.raises(ValueError, match=r"jsonl:8 has None as 'quality', not a finite number"):
    train_in_rounds(config, str(tmp_path / "other"))


def test_a_function_of_prompts_answers_and_own_answers_scores(monkeypatch):
  module = types.ModuleType("mine")
  module.longer = lambda prompts, answers, own: [
    len(given) - len(said) if prompt != "b" else None
    for prompt, given, said in zip(prompts, answers, own, strict=True)
  ]
  module.short = lambda prompts, answers, own: [1.0]
  monkeypatch.setitem(sys.modules, "mine", module)
  # What the model says, a number for each of its tokens.
  monkeypatch.setattr(feedback, "generate_answers", lambda model, prompts, **_: prompts)
  tokenizer = types.SimpleNamespace(decode=lambda ids: "".join(map(str, ids)))
  found = Instructions(list("abcd"), ["1", "22", "333", "4444"], list("wxyz"), "a test")
  rows = np.array([0, 1, 3])
  pairs = Pairs([[5, 6], [7, 7, 7], [8, 9, 9]], np.array([1, 2, 3]), np.zeros(3, bool))
  config = base_config().method
  config.scorer = "mine:longer"
  scorer = make_scorer(config, found, rows, pairs, tokenizer=tokenizer, stop=0)
  # The prompts of rows 3, 1 and 0 have 3, 2 and 1 tokens.
  np.testing.assert_array_equal(scorer(None, np.array([2, 1, 0])), np.float32([1, np.nan, 0]))
  config.scorer = "mine:short"
  scorer = make_scorer(config, found, rows, pairs, tokenizer=tokenizer, stop=0)
  with pytest.raises(ValueError, match=r"mine:short gave an array of shape \(1,\) for 2 rows"):
    scorer(None, np.array([2, 1]))


def test_random_rows_need_neither_clusters_nor_answers(config, tmp_path):
  config.method.name = "random"
  config.encoder.name = "there is none"
  config.model.trained_layers = 1
  train_in_rounds(config, str(tmp_path / "run"))
  summary, rows = left(tmp_path / "run")
  assert summary["examples_seen"] == 24
  assert np.isnan(rows["gap"]).all()


def test_a_step_is_that_of_optax_on_the_answers_and_leaves_frozen_layers(tmp_path, rng):
  path = decoders.write_gguf(tmp_path / "m.gguf", decoders.random_tensors(rng, tied=True))
  tokens, mask = map(jnp.asarray, decoders.padded([[3, 9, 9, 41], [7, 2, 5, 6, 1, 8]], 8))
  prompt = jnp.asarray([2, 3], jnp.int32)
  model = load_llama(path, frozen=2)
  tuner, tuning = make_tuner(model, optax.sgd(0.1))
  tuning, rows = tuner.step(tuning, tokens, mask, prompt)
  graph, state = nnx.split(load_llama(path))
  place = jnp.arange(8)[None]
  learnt = mask & (place >= prompt[:, None])

  def loss(state):
    each = jnp.where(learnt, token_loss(nnx.merge(graph, state), tokens, mask), 0)
    return each.sum() / 5, each

  gradients, each = jax.grad(loss, has_aux=True)(state)
  np.testing.assert_allclose(rows, each.sum(1) / learnt.sum(1, dtype=jnp.float32), rtol=1e-5)
  got = nnx.state(tuner.model(tuning))
  np.testing.assert_array_equal(got.words[...], state.words[...])
  # Two programs for the same formula.
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  for ours, before, slope in zip(
    *map(jax.tree.leaves, (got.blocks, state.blocks, gradients.blocks)), strict=True
  ):
    np.testing.assert_array_equal(ours[:2], before[:2])
    close(ours[2:], before[2:] - 0.1 * slope[2:])
  assert tuning.trained["blocks"]["narrow"]["kernel"].shape[0] == 1


def test_picks_are_as_many_as_asked_where_a_cluster_runs_out(key):
  labels = np.array([0] * 3 + [1] * 20 + [2] * 20, np.int32)
  used = np.zeros(43, bool)
  used[0] = True
  picks = picked(key, labels, np.array([0.8, 0.1, 0.1]), used, 10)
  assert len(set(picks.tolist())) == 10
  assert 0 not in picks
  # Eight of the first cluster are due, two are left; the others share the rest.
  assert np.bincount(labels[picks], minlength=3).tolist() == [2, 4, 4]


@pytest.mark.parametrize(
  ("section", "changes", "message"),
  [
    (None, {"budget": 25}, "budget=25 rows do not divide into 2 rounds"),
    (None, {"budget": 52}, "budget=52 rows of a pool of 50"),
    ("data", {"rows": 51}, r"data.rows=51 and data.test_rows=10 of 60 instructions"),
    ("data", {"end": "<|stop|>"}, r"data.end='<\|stop\|>' is no token of "),
    ("data", {"name": "alpaca"}, "must be wordnet or jsonl, got 'alpaca'"),
    ("model", {"trained_layers": 4}, "trained_layers=4: the model has 3"),
    ("data", {"test_rows": 0}, "data.test_rows=0 must be at least 1"),
    ("method", {"name": "kmq"}, "method.name must be dac or random, got 'kmq'"),
    ("method", {"scorer": "none:such"}, "scorer=none:such cannot be imported .No module"),
    ("method", {"scorer": "math:such"}, "scorer=math:such cannot be imported .*PYTHONPATH"),
    ("method", {"scorer": "reward"}, "scorer=reward cannot be imported .*give perplexity, column"),
    ("method", {"scorer": "column:reward"}, "jsonl:1 has None as 'reward'"),
  ],
)
def test_mistakes_are_told(config, tmp_path, section, changes, message):
  (config[section] if section else config).update(changes)
  with pytest.raises(ValueError, match=message):
    train_in_rounds(config, str(tmp_path / "run"))


def test_train_py_hands_over_and_says_what_is_wrong(tmp_path):
  options = ["--config=configs/smollm_dac.py", "--config.budget=25", f"--workdir={tmp_path / 'r'}"]
  done = subprocess.run(
    [sys.executable, "train.py", *options],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1] == (
    "train.py: error: budget=25 rows do not divide into 3 rounds: give a multiple"
  )


def test_broken_lines_are_named(tmp_path):
  path = tmp_path / "pool.jsonl"
  for line, message in (
    ('{"prompt": "a"}\n', 'jsonl:2 is no JSON object with "prompt" and "answer"'),
    ('{"prompt": "a", "answer": 3}\n', r"jsonl:2 has a prompt or an answer that is no text"),
    ("[\n", "jsonl:2 is no JSON object"),
  ):
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line)
    with pytest.raises(ValueError, match=message):
      instructions.from_jsonl(path)
  path.write_text("")
  with pytest.raises(ValueError, match=r"pool.jsonl has no lines"):
    instructions.from_jsonl(path)
  with pytest.raises(ValueError, match=r"there is no .*none.jsonl"):
    instructions.from_jsonl(tmp_path / "none.jsonl")
