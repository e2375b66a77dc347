"""Natural Instructions from a folder in the archive's layout, with rows that are made up."""

import json

import pytest
from ml_collections import ConfigDict

from jsel.data import natural_instructions
from jsel.data.natural_instructions import category_of, read

NAMES = (
  "subtask001_quoref_question_generation",
  "subtask005_mctaco_wrong_answer_generation_event_duration",
  "subtask045_miscellaneous_sentence_paraphrasing",
)


@pytest.fixture
def folder(tmp_path):
  """Three subtasks of 2, 3 and 4 rows."""
  for number, name in enumerate(NAMES):
    examples = [{"input": f"in {number}.{n}", "target": f"out {n}"} for n in range(number + 2)]
    examples[1]["target"] = ["first", "second"]
    task = {"name": name, "task_prefix": f" Define {number}.\n", "examples": examples}
    (tmp_path / name).mkdir()
    (tmp_path / name / "task.json").write_text(json.dumps(task))
  (tmp_path / "task.json").write_text("{}")
  (tmp_path / "results").mkdir()
  return tmp_path


def test_rows_come_with_their_definition_corpus_and_category(folder):
  found = read(ConfigDict({"dir": str(folder)}))
  assert found.names == list(NAMES)
  assert found.task.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
  assert found.definitions == ["Define 0.", "Define 1.", "Define 2."]
  assert found.inputs[4] == "in 1.2"
  assert found.targets[:3] == ["out 0", "first", "out 0"]
  assert found.corpora == ["quoref", "mctaco", "misc"]
  assert found.categories == [
    "question generation",
    "incorrect answer generation",
    "minimal modification",
  ]
  assert found.ids[:3] == ["001-0", "001-1", "005-0"]
  some = read(ConfigDict({"dir": str(folder), "rows": 2}))
  assert some.task.tolist() == [0, 0, 1, 1, 2, 2]
  assert some.ids == ["001-0", "001-1", "005-0", "005-1", "045-0", "045-1"]


def test_what_names_ask_for():
  names = {
    "multirc_classify_incorrect_answer": "classification",
    "qasc_incorrect_option_generation": "incorrect answer generation",
    "multirc_correct_bad_question": "minimal modification",
    "multirc_identify_bad_question": "classification",
    "essential_terms_answering_incomplete_questions": "answering",
    "qasc_find_overlapping_words": "verification",
  }
  assert {name: category_of(name) for name in names} == names


def test_absence_is_told_with_the_command_that_gets_it(tmp_path, monkeypatch):
  monkeypatch.setattr(natural_instructions, "CACHE", tmp_path / "nowhere")
  message = r"Natural Instructions is not in .*nowhere: get it with `mkdir -p bigbench; TMPDIR="
  with pytest.raises(ValueError, match=message):
    read(ConfigDict({}))


def test_a_broken_task_is_named_and_no_row_is_shown(folder):
  path = folder / NAMES[1] / "task.json"
  task = json.loads(path.read_text())
  task["examples"][2] = {"input": "secret", "target": 3}
  path.write_text(json.dumps(task))
  with pytest.raises(ValueError, match=r"task.json: example 2 has no input or no") as error:
    read(ConfigDict({"dir": str(folder)}))
  assert "secret" not in str(error.value)
  path.write_text(json.dumps(task)[:-9])
  with pytest.raises(ValueError, match=r"task.json is no task of BIG-bench \(JSONDecodeError\)"):
    read(ConfigDict({"dir": str(folder)}))
  with pytest.raises(ValueError, match=r"rows=-1: rows of a subtask are at least 1"):
    read(ConfigDict({"dir": str(folder), "rows": -1}))
