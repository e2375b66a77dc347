"""Losses of answers, kept part by part."""

import numpy as np
import pytest

from benchmarks import instruction_losses
from jsel.data.answers import Pairs


def test_a_long_input_loses_its_beginning(monkeypatch):
  monkeypatch.setattr(instruction_losses, "CUT", 5)
  pairs = Pairs(
    [[1, 2, 3], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]], np.int32([1, 4, 1]), None
  )
  found = instruction_losses.last(pairs)
  assert found.ids == [[1, 2, 3], [3, 4, 5, 6, 7], [3, 4, 5, 6, 7]]
  assert found.prompt.tolist() == [1, 2, 0]
  assert found.truncated.tolist() == [False, True, True]


def test_what_is_there_is_not_scored_again(monkeypatch, tmp_path):
  pytest.importorskip("tokenizers")
  calls = []

  class Tokenizer:
    def encode_batch_fast(self, texts, add_special_tokens=True):
      del add_special_tokens
      return [type("Encoding", (), {"ids": [ord(c) for c in text]}) for text in texts]

  def score(model, pairs):
    assert model == "model"
    calls.append(len(pairs.ids))
    tokens = np.array([len(i) for i in pairs.ids], np.int32) - pairs.prompt
    loss = np.where(tokens > 0, np.float32(0.5), np.float32("nan"))
    return type("Scores", (), {"loss": loss, "tokens": tokens})

  monkeypatch.setattr(instruction_losses, "PART", 2)
  monkeypatch.setattr(instruction_losses, "path_of", lambda name: name)
  monkeypatch.setattr(instruction_losses, "open_tokenizer", lambda path, max_length: Tokenizer())
  monkeypatch.setattr(instruction_losses, "load_llama", lambda path, dtype: "model")
  monkeypatch.setattr(instruction_losses, "score_answers", score)
  inputs, answers = ["a", "bc", "d", "e", "f"], ["xy", "", "z", "long", "w"]
  for _ in range(2):
    loss, tokens = instruction_losses.losses(inputs, answers, tmp_path / "kept")
    assert tokens.tolist() == [2, 0, 1, 4, 1]
    assert loss.tolist() == [1.0, 0.0, 0.5, 2.0, 0.5]
    assert calls == [2, 2, 1]
  instruction_losses.losses(inputs, ["other", *answers[1:]], tmp_path / "kept")
  assert calls == [2, 2, 1, 2]
