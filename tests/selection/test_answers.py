"""A selection that is stopped goes on where it was, and ends as if it had not been."""

import numpy as np
import pytest
from etils import epath

from jsel.selection import select, walk
from jsel.selection.answers import Answers

ABOUT = {"config": {"seed": 0, "budget": 0.1}, "inputs": {"pool": "a"}, "versions": {"jsel": "1"}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(walk, "block_rows", lambda *_: 512)


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / "progress"


def stops_at(count):
  """Says that it is to be stopped when it is asked for the ``count``-th time."""
  asked = iter(range(1, 10**6))
  return lambda: next(asked) == count


def same(a, b):
  return all(x is y if x is None else np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", ["rds", "crds_w", "kmq", "sensitivity"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_stopped_again_and_again_the_result_is_bitwise_that_of_one_run(
  method, blocks, pool, columns, folder
):
  arguments = {"queries": pool[:3] + 0.1, "columns": columns}
  if method in ("kmq", "sensitivity"):
    arguments["clusters"] = 16
  whole = select(pool, method, 0.1, **arguments)
  walked, runs, found = [], 0, None
  while found is None:
    answers = Answers(folder, ABOUT, warn=pytest.fail)
    answers.open(harmless=(), overwrite=False)
    report = lambda name, done, total: walked.append((name, done))
    try:
      # The block that it stops at is done in the next run.
      stop = stops_at(blocks + 1)
      found = select(pool, method, 0.1, answers=answers, stop=stop, report=report, **arguments)
    except walk.Stopped:
      runs += 1
  assert runs >= 2
  # No block is walked over twice: of what was finished, a run says only that it is.
  assert len([at for at in walked if at == ("checking", 512)]) <= 2
  assert same(found, whole)


def test_many_rows_are_read_again_and_not_kept(pool, folder, columns, monkeypatch):
  whole = select(pool, "kmq", 0.1, columns=columns, clusters=8)
  monkeypatch.setattr(walk, "KEPT_BYTES", pool.nbytes - 1)
  arguments = {"columns": columns, "clusters": 8, "answers": Answers(folder, ABOUT)}
  with pytest.raises(walk.Stopped):
    select(pool, "kmq", 0.1, stop=stops_at(8), **arguments)
  assert sorted(path.name for path in folder.glob("walk-*")) == ["walk-000.npz", "walk-002.npz"]
  assert same(select(pool, "kmq", 0.1, **arguments), whole)


def test_a_walk_is_saved_while_it_is_under_way(pool, folder):
  seen = []

  def report(name, done, total):
    if done:
      with np.load(folder / "walk-000.npz") as archive:
        seen.append((int(archive["done"]), done))
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    select(
      pool, "random", 9, unit="rows", answers=Answers(folder, ABOUT, save_seconds=0), report=report
    )
  assert seen == [(512, 512)]


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_named_and_its_walk_begins_again(damage, pool, folder):
  arguments = {"queries": pool[:3] + 0.1}
  whole = select(pool, "crds_w", 0.1, answers=Answers(folder, ABOUT), **arguments)
  path = folder / "walk-001.npz"
  path.write_bytes(path.read_bytes()[:-300] if damage is None else damage)
  warned, walked = [], []
  answers = Answers(folder, ABOUT, warn=warned.append)
  again = select(
    pool, "crds_w", 0.1, answers=answers, report=lambda *at: walked.append(at), **arguments
  )
  assert len(warned) == 1
  assert str(path) in warned[0]
  assert ("covariance", 512, 1500) in walked
  assert ("matching", 512, 1500) not in walked
  assert same(again, whole)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"config": {"seed": 1, "budget": 0.2}},
      r"budget=0.1, seed=0, this one has budget=0.2, seed=1",
    ),
    ({"inputs": {"pool": "b"}}, "files of pool are not what"),
  ],
)
def test_another_run_is_refused_unless_it_is_to_be_overwritten(change, message, pool, folder):
  select(pool, "random", 9, unit="rows", answers=Answers(folder, ABOUT))
  other = Answers(folder, ABOUT | change)
  with pytest.raises(ValueError, match=message):
    other.open(harmless=(), overwrite=False)
  assert folder.exists()
  other.open(harmless=(), overwrite=True)
  assert not folder.exists()


def test_walks_of_other_versions_are_done_again(pool, folder):
  select(pool, "random", 9, unit="rows", answers=Answers(folder, ABOUT))
  warned = []
  answers = Answers(folder, ABOUT | {"versions": {"jsel": "2"}}, warn=warned.append)
  answers.open(harmless=(), overwrite=False)
  assert len(warned) == 1
  assert not folder.exists()
