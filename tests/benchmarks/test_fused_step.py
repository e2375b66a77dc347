"""A small real case of the benchmark of the fused step."""

import jax

from benchmarks import fused_step


def test_a_row_is_measured_and_shown():
  with jax.numpy_dtype_promotion("standard"):  # Optax adds its counts to floats
    result = fused_step.measure(
      "mlp", "rs2", source="digits", batch_size=64, steps=10, repeats=2, seconds=1
    )
  assert len(result["added_percent"]) == len(result["to_host"]) == 2
  assert result["steps_per_plan"] == 1438 // 2 // 64
  assert result["every_step"]["host"]["seconds"] > 0
  line = fused_step.table([result]).splitlines()[-1]
  assert line.startswith("| mlp | rs2 |")
  assert line.count("|") == 12
