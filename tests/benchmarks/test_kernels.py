"""The benchmarks of kernels work: on small sizes, against those peers that are installed."""

import importlib
import re

import numpy as np
import pytest

from benchmarks import report, run
from benchmarks.kernels import cases
from benchmarks.turns import Contender, take_turns

MODULES = {name: importlib.import_module(f"benchmarks.kernels.{name}") for name in run.KERNELS}
CASES = [(name, title) for name, module in MODULES.items() for title in module.CASES]


@pytest.fixture(scope="module")
def measured():
  return {}


@pytest.mark.parametrize(("name", "title"), CASES)
def test_a_case_is_right_and_timed(name, title, measured):
  case = MODULES[name].CASES[title]
  result = cases.measure(case, smoke=True, repeats=2, seconds=1)
  assert result["contenders"]["jsel"]["error"] <= case.most_error
  assert result["contenders"]["jsel"]["turns"] == 2
  assert result["temporary_bytes"] >= 0
  assert (result["products_seconds"] is None) == (
    name == "topk" or "k-means++" in title or "k-means||" in title
  )
  for peer, ratio in result["ratios_by_median"].items():
    assert ratio > 0
    # Wrong work would be no peer: the same job, at the exactness of what it was told to use.
    narrow = "bfloat16" in peer or "bfloat16" in title
    assert result["contenders"][peer]["error"] <= (0.1 if narrow else max(case.most_error, 1e-3))
  result["machine"] = {"cpu": "some", "cores": 2, "jax": "1"}
  measured.setdefault(name, {})[title] = result


def test_the_page_shows_what_was_measured(measured, tmp_path):
  for kernel, title in CASES:
    measured.setdefault(kernel, {}).setdefault(title, example(ratio=3.0))
  part = report.text(measured)
  for _, title in CASES:
    assert f"| {title} |" in part
  marked = "before\n<!-- kernels: begin -->\nold\n<!-- kernels: end -->\nafter\n"
  page = report.rewritten(marked, "kernels", part)
  assert page.startswith("before\n")
  assert page.endswith("\nafter\n")
  assert "old" not in page
  assert report.rewritten(page, "kernels", part) == page
  with pytest.raises(ValueError, match="put them where the table shall stand"):
    report.rewritten("no marks", "kernels", part)
  for name, plot in (("kernels", report.plot), ("memory", report.plot_memory)):
    plot(measured, tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def example(ratio):
  own = {"seconds": 0.1, "least": 0.1, "error": 0.0}
  return {
    "contenders": {"jsel": own, "slow": {**own, "seconds": 2 * ratio / 10}, "best": own},
    "jsel": "jsel",
    "must_reach": 2.0,
    "products_seconds": 0.05,
    "temporary_bytes": 2**20,
    "ratios_by_median": {"slow": 2 * ratio, "best": ratio},
    "ratios_by_least": {"slow": 2 * ratio, "best": ratio},
    "machine": {"cpu": "some", "cores": 2},
  }


def test_a_row_names_the_best_peer_and_a_miss_is_told():
  found = {"topk": {"good": example(ratio=2.5), "bad": example(ratio=0.5)}}
  part = report.text(found)
  assert re.search(r"\| good \| .*\| best \|.*\| 2\.50 \| 2\.50 \| 2 \|", part)
  assert "Below what it must reach: bad." in part


def test_a_wrong_result_is_no_row():
  wrong = Contender("jsel", lambda: np.ones(3), "", lambda result: result)
  work = cases.Work(wrong, [], lambda name, result: np.abs(result).max())
  case = cases.Case(lambda: work, {}, {}, most_error=0.5, must_reach=1)
  with pytest.raises(AssertionError, match=r"error 1 > 0\.5"):
    cases.measure(case, smoke=True, repeats=1, seconds=1)


def test_turns_alternate_and_end_in_time():
  said = []
  contenders = [
    Contender(name, lambda name=name: said.append(name), "", lambda result: result) for name in "ab"
  ]
  times, _ = take_turns(contenders, repeats=4, seconds=1e9)
  assert "".join(said) == "ab" + "baabbaab"
  assert [len(times[name].turns) for name in "ab"] == [4, 4]
  times, _ = take_turns(contenders, repeats=50, seconds=0)
  assert len(times["a"].turns) == 3


def test_who_has_rested_works_once_untimed():
  said = []
  one = Contender("a", lambda: said.append("a"), "", lambda result: result)
  times, _ = take_turns([one], repeats=4, seconds=1e9, rest=1e-3)
  assert len(times["a"].turns) == 4
  assert len(said) == 1 + 2 * 4


def test_the_page_is_what_the_results_say():
  page = (run.ROOT / "BENCHMARKS.md").read_text()
  parts = {"kernels": report.machines(cases.RESULTS), **report.sections(cases.RESULTS)}
  assert len(parts) > 5
  for name, part in parts.items():
    assert report.rewritten(page, name, part) == page, f"{name}: python -m benchmarks.report"


def test_every_script_is_started_by_one_command():
  folder = run.ROOT / "benchmarks"
  parts = {"glosses", "heads", "instruction_losses", "machine", "rankings", "report", "run"}
  parts |= {"subset_sections", "turns", "watch"}
  scripts = {path.stem for path in folder.glob("*.py")} - parts
  started = {name.split()[0] for name in (*run.OTHERS, *run.SLOW)}
  assert started == scripts
  kernels = {path.stem for path in (folder / "kernels").glob("*.py")} - {"__init__", "cases"}
  assert set(run.KERNELS) == kernels
  assert list(run.commands(smoke=True, slow=True, only="topk")) == ["kernels.topk"]
  assert "accuracy --name=digits" in run.commands(smoke=False, slow=True, only="")
