"""What DAC asks after a round: how far the rows that were trained on are from being learnt."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jsel.data.answers import Pairs, answer_gaps, generate_answers
from jsel.data.instructions import Instructions
from jsel.models.llama import Llama

Scorer = Callable[[Llama, np.ndarray], np.ndarray]  # (model, picks [m]) -> float32 [m]


def make_scorer(
  config: ConfigDict,
  found: Instructions,
  rows: np.ndarray,
  pairs: Pairs,
  *,
  tokenizer: Any,
  stop: int,
) -> Scorer:
  """The scorer that ``config.scorer`` names: high where a row gives its cluster more weight.

  "perplexity": `jsel.data.answers.answer_gaps`. "column:KEY": the number that each row of a jsonl
  file brings. "MODULE:FUNCTION": ``function(prompts, answers, own)``, three lists of ``m`` texts,
  the last those that the model gives now; returns ``m`` numbers, NaN where it has none. A reward
  model gives ``reward(answer) - reward(own)``.

  Args:
    config: the section ``method``.
    found: all instructions.
    rows: ``[n]`` those of the pool.
    pairs: of the pool.
    tokenizer: of the model.
    stop: the token that ends an answer.

  Raises:
    ValueError: if there is no such scorer.
  """
  if config.scorer == "perplexity":
    options = {"count": config.new_tokens, "stop": (stop,), "span": config.span}
    return lambda model, picks: answer_gaps(model, tokenizer, pairs.take(picks), **options).gap
  if config.scorer.startswith("column:"):
    rewards = found.rewards
    assert rewards is not None  # read with them
    return lambda model, picks: rewards[rows[picks]]
  function = imported(config.scorer)

  def score(model: Llama, picks: np.ndarray) -> np.ndarray:
    asked = pairs.take(picks)
    prompts = [ids[:length] for ids, length in zip(asked.ids, asked.prompt, strict=True)]
    said = generate_answers(model, prompts, count=config.new_tokens, stop=(stop,))
    own = [tokenizer.decode(ids) for ids in said]
    texts = lambda column: [column[row] for row in rows[picks]]
    told = np.asarray(function(texts(found.prompts), texts(found.answers), own), np.float32)
    if told.shape != picks.shape:
      raise ValueError(
        f"{config.scorer} gave an array of shape {told.shape} for {len(picks)} rows: give a number"
        " for each"
      )
    return told

  return score


def imported(name: str) -> Callable[..., Any]:
  """The function that ``name``, MODULE:FUNCTION, stands for.

  Raises:
    ValueError: if there is none.

  >>> imported("math:sqrt")(4.0)
  2.0
  """
  module, _, function = name.partition(":")
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
      f"--config.method.scorer={name} cannot be imported ({error}): give perplexity, column:KEY or"
      " MODULE:FUNCTION, with MODULE where Python finds it (PYTHONPATH)"
    ) from error
