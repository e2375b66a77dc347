"""Natural Instructions v1 as in BIG-bench: tasks by definition, with inputs and their targets.

The rows carry a canary: they must not end in training data by way of a repository or a page. This
module prints none of them, and its messages name files and numbers alone.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

CACHE = Path("~/.cache/jsel/natural_instructions")
# pip refuses what the package asks for once it has unpacked it, and unpacked is all it need be.
INSTALL = (
  "mkdir -p bigbench; TMPDIR=$PWD/bigbench pip download --no-deps --no-clean bigbench==1.0.0;"
  " mv bigbench/pip-download-*/bigbench_*/bigbench/benchmark_tasks/natural_instructions ."
)
SUBTASK = re.compile(r"subtask(\d+)_(.+)")
# What a subtask asks for, by the first of these that its name has; of our own reading, as the
# archive does not say it. "Answering" is what is left.
CATEGORIES = (
  (
    "classification",
    (
      "reasoning_presence",
      "reasoning_category",
      "span_based",
      "grammatical",
      "binary",
      "answer_type",
      "typing",
      "answerability",
      "identify_bad",
      "classify",
    ),
  ),
  ("incorrect answer generation", ("wrong_answer", "incorrect_answer", "incorrect_option")),
  ("minimal modification", ("modification", "correct_bad_question", "paraphrasing")),
  ("question generation", ("question_generation", "full_object", "full_person", "story_gen")),
  ("verification", ("needed_to_answer", "overlapping_words", "essential_words")),
  ("fact generation", ("fact",)),
)


class Instructions(NamedTuple):
  """Rows, subtask after subtask."""

  definitions: list[str]  # of each subtask
  inputs: list[str]  # of each row
  targets: list[str]  # the first of those that are given
  task: np.ndarray  # [n] int32, the subtask of each row
  names: list[str]  # of each subtask, as its folder is called
  corpora: list[str]  # of each subtask, what its texts are from: "quoref", "mctaco", ...
  categories: list[str]  # of each subtask, what it asks for: of `CATEGORIES`, or "answering"
  ids: list[str]  # of each row: the subtask's number and the row's, "001-17"


def read(config: ConfigDict) -> Instructions:
  """The subtasks in ``config.dir`` if given, else in the user's cache folder.

  ``config.rows`` is the most of each subtask, the first ones; 0 and where it is not set: all,
  193,250 rows of 61 subtasks.

  Raises:
    ValueError: if they are not there, with the command that gets them, or a file is broken.
  """
  folder = Path(config.dir if config.get("dir") else CACHE).expanduser()
  most = int(config.get("rows") or 0)
  if most < 0:
    raise ValueError(f"--config.data.rows={most}: rows of a subtask are at least 1, 0 for all")
  tasks = sorted(path for path in folder.glob("subtask*") if (path / "task.json").is_file())
  if not tasks:
    raise ValueError(
      f"Natural Instructions is not in {folder}: get it with `{INSTALL}` and set --config.data.dir"
      " to that. Its rows must not be published"
    )
  found = Instructions([], [], [], np.zeros(0, np.int32), [], [], [], [])
  counts = []
  for path in tasks:
    named = SUBTASK.fullmatch(path.name)
    if not named:
      raise ValueError(f"{path} is no subtask: its name is subtask and a number, _ and words")
    definition, rows = read_task(path / "task.json")
    rows = rows[:most] if most else rows
    found.definitions.append(definition)
    found.names.append(path.name)
    found.corpora.append(corpus_of(named[2]))
    found.categories.append(category_of(named[2]))
    found.inputs.extend(given for given, _ in rows)
    found.targets.extend(target for _, target in rows)
    found.ids.extend(f"{named[1]}-{number}" for number in range(len(rows)))
    counts.append(len(rows))
  task = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  return found._replace(task=task)


def read_task(path: Path) -> tuple[str, list[tuple[str, str]]]:
  """Its definition, and the input and first target of each row."""
  try:
    task = json.loads(path.read_bytes())
    definition, examples = task["task_prefix"], task["examples"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is no task of BIG-bench ({type(error).__name__}): get it again"
    ) from (error)
  rows = []
  for number, example in enumerate(examples):
    given = example.get("input") if isinstance(example, dict) else None
    target = example.get("target") if isinstance(example, dict) else None
    target = target[0] if isinstance(target, list) and target else target
    if not isinstance(given, str) or not isinstance(target, str):
      raise ValueError(f"{path}: example {number} has no input or no target: get it again")
    rows.append((given, target))
  return str(definition).strip(), rows


def corpus_of(name: str) -> str:
  """The data set that a subtask is made of, from the name that follows its number.

  >>> corpus_of("mctaco_question_generation_frequency"), corpus_of("miscellaenous_question_typing")
  ('mctaco', 'misc')
  """
  if name.startswith("misc"):  # spelled in three ways
    return "misc"
  return "essential_terms" if name.startswith("essential_terms") else name.split("_")[0]


def category_of(name: str) -> str:
  """What a subtask asks for, from the name that follows its number.

  >>> category_of("quoref_question_generation"), category_of("drop_answer_generation")
  ('question generation', 'answering')
  """
  for category, pieces in CATEGORIES:
    if any(piece in name for piece in pieces):
      return category
  return "answering"
