"""Prompts and the answers that are wanted, from a file or from WordNet."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jsel.data import wordnet


class Instructions(NamedTuple):
  """A pool of instructions."""

  prompts: list[str]
  answers: list[str]
  ids: list[str]
  source: str  # where they are from
  rewards: np.ndarray | None = None  # [n] float32, if they were asked for


def read(config: ConfigDict, *, reward: str = "") -> Instructions:
  """The instructions that a config's section ``data`` names.

  "wordnet": a word to define, and its gloss. "jsonl": the file ``config.path``, in each line an
  object with "prompt" and "answer", "id" if it has one, and the number ``reward`` if that is asked
  for.

  Raises:
    ValueError: if they are not there, or a line is not as it should be.
  """
  if config.name == "wordnet":
    if reward:
      raise ValueError(
        f"--config.method.scorer=column:{reward} is of rows of a file: set --config.data.name=jsonl"
      )
    glosses = wordnet.read(config)
    prompts = [f"Define the word {word!r} in one sentence." for word in glosses.words]
    return Instructions(prompts, glosses.texts, glosses.ids, "WordNet 3.0")
  if config.name == "jsonl":
    return from_jsonl(Path(config.path).expanduser(), reward=reward)
  raise ValueError(f"--config.data.name must be wordnet or jsonl, got {config.name!r}")


def from_jsonl(path: Path, *, reward: str = "") -> Instructions:
  """The instructions in the lines of ``path``, with the numbers that they have as ``reward``.

  Raises:
    ValueError: if it is not there or empty, or a line is no such object, naming it.
  """
  if not path.is_file():
    raise ValueError(f"there is no {path}: set --config.data.path to a file of JSON lines")
  found, rewards = Instructions([], [], [], str(path)), []
  with path.open(encoding="utf-8") as file:
    for count, line in enumerate(file, 1):
      try:
        row = json.loads(line)
        prompt, answer = row["prompt"], row["answer"]
      except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
          f'{path}:{count} is no JSON object with "prompt" and "answer": repair it'
        ) from error
      if not isinstance(prompt, str) or not isinstance(answer, str):
        raise ValueError(f"{path}:{count} has a prompt or an answer that is no text: repair it")
      if reward:
        value = row.get(reward)
        if type(value) not in (int, float) or not math.isfinite(value):
          raise ValueError(f"{path}:{count} has {value!r} as {reward!r}, not a finite number")
        rewards.append(value)
      found.prompts.append(prompt)
      found.answers.append(answer)
      found.ids.append(str(row.get("id", count - 1)))
  if not found.ids:
    raise ValueError(f"{path} has no lines: give at least one instruction")
  return found._replace(rewards=np.float32(rewards)) if reward else found
