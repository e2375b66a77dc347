"""Small real cases of the benchmarks that start train.py, read files, or compile."""

import jax
import pytest

from benchmarks import accuracy, collectives, feeds, overhead


def test_overhead_of_a_run():
  result = overhead.measure("configs/digits.py", ["epochs=20"], selectors=("rs2",), repeats=1)
  assert [row["refresh_steps"] for row in result["rows"]] == [0, 1]
  rare, each = (row["runs"][0]["selection/share"] for row in result["rows"])
  assert 0 < rare < each < 1
  assert overhead.table(result).count("\n") == 3


def test_accuracy_of_a_run(tmp_path):
  runs = [
    accuracy.one_run(
      "rs2",
      seed,
      str(tmp_path / str(seed)),
      config="configs/digits.py",
      options=["--config.epochs=10"],
    )
    for seed in range(2)
  ]
  assert min(run["test_accuracy"] for run in runs) > 0.6  # one in ten is chance
  mean, half = accuracy.table({"runs": runs}).splitlines()[-1].split(" | ")[2:4]
  assert float(mean) == pytest.approx(50 * sum(run["test_accuracy"] for run in runs), abs=0.01)
  # Of two seeds: half of their distance times Student's 12.7.
  distance = 100 * abs(runs[0]["test_accuracy"] - runs[1]["test_accuracy"])
  assert float(half.strip("± ")) == pytest.approx(12.706 * distance / 2, abs=0.01)


def test_feeds_give_their_plans_and_are_timed(tmp_path):
  case = feeds.Case((28, 28, 1), 2048, 32)
  results = feeds.measure("small", case, tmp_path, workers=1, repeats=2, seconds=0.02)
  assert len(results) == 2 * 2 * 5  # readers, updates, loaders
  assert all(min(found["rows_per_second"]) > 0 for found in results)
  assert feeds.table({"results": results}).count("\n") == 1 + 2 * 2 * 2


@pytest.mark.parametrize("kernel", ["top_k_mask", "gather, everywhere", "kmeans.fit, an iteration"])
def test_what_a_kernel_sends(kernel):
  case = next(case for case in collectives.cases() if case.name == kernel)
  found = [collectives.measured(case, devices) for devices in (1, 8)]
  assert found[0]["sent_bytes"] == 0
  assert case.minimum(8) <= found[1]["sent_bytes"] <= 2 * case.minimum(8)
  row = {"kernel": kernel, "shapes": case.shapes, "devices": found}
  assert kernel in collectives.table({"rows": [row]})
  assert jax.device_count() == 8
