"""A selection from files stays small, as its benchmark measures it."""

from benchmarks import select_big


def test_a_small_pool_is_selected_from_and_watched(tmp_path):
  select_big.write_pool(tmp_path, rows=20_000, width=32)
  pool = select_big.facts(tmp_path)
  assert (pool["rows"], pool["width"], pool["files"]) == (20_000, 32, 1)
  result = select_big.select(tmp_path, "rds", 0.035)
  assert result["rows_taken"] == 700
  # Python, JAX and compiled programs; the pool is 2.6 MB.
  assert 0.1 * 2**30 < result["peak_unbacked_bytes"] < 2**30
  assert "| rds | 20,000 | 700 |" in select_big.table([result | {"pool": pool}])
