"""Embeddings of two models are never compared."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsel.selection import models

safetensors = pytest.importorskip("safetensors.numpy", reason="pip install 'jsel[text]'")


def test_files_say_of_what_model_they_are(tmp_path):
  table = pa.table({"embedding": [[1.0]]})
  pq.write_table(table.replace_schema_metadata({"model": "A 1"}), tmp_path / "a.parquet")
  pq.write_table(table, tmp_path / "none.parquet")
  x = {"embedding": np.ones((2, 3), np.float32)}
  safetensors.save_file(x, str(tmp_path / "b.safetensors"), metadata={"model": "B"})
  safetensors.save_file(x, str(tmp_path / "none.safetensors"))
  np.save(tmp_path / "none.npy", x["embedding"])
  found = {path.name: models.model_in(str(path)) for path in tmp_path.iterdir()}
  assert {name: model for name, model in found.items() if model} == {
    "a.parquet": "A 1",
    "b.safetensors": "B",
  }
  a, b, none = (str(tmp_path / name) for name in ("a.parquet", "b.safetensors", "none.npy"))
  assert models.model_of([none, a], "", flag="--config.model") == "A 1"
  assert models.model_of([none], "C", flag="--config.model") == "C"
  with pytest.raises(ValueError, match=r"b.safetensors has .* model 'B', .*a.parquet says 'A 1'"):
    models.model_of([a, none, b], "", flag="--config.model")
  with pytest.raises(ValueError, match=r"a.parquet has .* 'A 1', --config.model says 'C'"):
    models.model_of([a], "C", flag="--config.model")


@pytest.mark.parametrize(
  ("pool", "queries", "fits"),
  [("A", "A", True), ("A", "", True), ("A 1 mean", "A", True), ("A 1", "A 2", False)],
)
def test_a_name_without_options_fits_all_of_them(pool, queries, fits):
  if fits:
    models.check_same(pool, queries, key="queries")
  else:
    with pytest.raises(ValueError, match=r"the pool has embeddings of 'A 1', queries of 'A 2'"):
      models.check_same(pool, queries, key="queries")
