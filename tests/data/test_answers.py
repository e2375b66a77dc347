"""Scores of answers against NumPy in float64: losses, perplexities, and the gap to own answers."""

import numpy as np
import pytest

pytest.importorskip("safetensors.numpy", reason="pip install 'jsel[text]'")
pytest.importorskip("gguf", reason="pip install 'jsel[gguf]'")

from jsel.data.answers import (
  answer_gaps,
  generate_answers,
  score_answers,
  tokenize_pairs,
)
from jsel.data.tokens import open_tokenizer
from jsel.models.llama_weights import load_llama
from tests.models import decoders

TOKENS = ["<|end|>", *"abcdefghijk123", "jk", *(f"unused{i}" for i in range(34))]
PROMPTS, ANSWERS = ["abc", "d", "bcj1", "efg"], ["dd", "efghij", "", "a1b2"]


@pytest.fixture
def tensors(rng):
  return decoders.random_tensors(rng)


@pytest.fixture
def file(tmp_path, tensors):
  return decoders.write_gguf(tmp_path / "m.gguf", tensors, tokens=TOKENS, merges=("j k",))


def losses(tensors, ids):
  """Of the tokens of a text from the second on."""
  logits = decoders.oracle(tensors, ids)[1]
  return (np.log(np.exp(logits).sum(1))[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]).tolist()


def test_losses_are_of_answers_given_prompts(file, tensors, capsys):
  tokenizer = open_tokenizer(file, max_length=32)
  pairs = tokenize_pairs(tokenizer, PROMPTS, ANSWERS, max_length=32)
  assert pairs.prompt.tolist() == [3, 1, 4, 3]
  # "jk" would join, but not across the end of a prompt.
  assert tokenize_pairs(tokenizer, ["j"], ["k"], max_length=9).ids == [[10, 11]]
  found = score_answers(load_llama(file), pairs, batch_tokens=64)
  assert "scoring: 4 texts in " in capsys.readouterr().out
  for row, (ids, prompt) in enumerate(zip(pairs.ids, pairs.prompt, strict=True)):
    expected = losses(tensors, ids)
    np.testing.assert_allclose(found.text_loss[row], np.mean(expected), rtol=1e-4)
    answer = expected[prompt - 1 :]
    assert found.tokens[row] == len(answer)
    if answer:
      np.testing.assert_allclose(found.loss[row], np.mean(answer), rtol=1e-4)
  np.testing.assert_allclose(found.perplexity, np.exp(found.loss), rtol=1e-6)
  assert np.isnan(found.loss).tolist() == [False, False, True, False]


def test_what_is_cut_is_told(file):
  pairs = tokenize_pairs(open_tokenizer(file, max_length=32), PROMPTS, ANSWERS, max_length=4)
  assert [len(row) for row in pairs.ids] == [4, 4, 4, 4]
  assert pairs.truncated.tolist() == [True, True, False, True]
  found = score_answers(load_llama(file), pairs, show=False)
  assert found.tokens.tolist() == [1, 3, 0, 1]
  with pytest.raises(ValueError, match="1 prompts and 2 answers: give an answer to each"):
    tokenize_pairs(open_tokenizer(file, max_length=32), ["a"], ["b", "c"], max_length=4)


@pytest.mark.parametrize("span", ["text", "answer"])
def test_gaps_are_logarithms_of_ratios_of_perplexities(file, tensors, span):
  tokenizer, model = open_tokenizer(file, max_length=32), load_llama(file)
  pairs = tokenize_pairs(tokenizer, PROMPTS, ANSWERS, max_length=32)
  prompts = [ids[:n] for ids, n in zip(pairs.ids, pairs.prompt, strict=True)]
  own = generate_answers(model, prompts, count=5, stop=(), show=False)
  stop = own[0][0]  # so that one answers nothing at all
  found = answer_gaps(
    model, tokenizer, pairs, count=5, stop=(stop,), span=span, batch_tokens=64, show=False
  )
  for row, prompt in enumerate(prompts):
    said = own[row][: own[row].index(stop)] if stop in own[row] else own[row]
    assert found.own[row] == tokenizer.decode(said)
    first = len(prompt) - 1 if span == "answer" else 0
    given, its = (losses(tensors, ids)[first:] for ids in (pairs.ids[row], prompt + said))
    if given and its:
      np.testing.assert_allclose(found.gap[row], np.mean(given) - np.mean(its), atol=2e-4)
    else:
      assert np.isnan(found.gap[row])
  assert np.isfinite(found.gap).sum() >= 2
