"""The page shows what was measured of subsets."""

import json

import pytest

from benchmarks import subset_sections

MACHINE = {"cpu": "some", "cores": 2, "jax": "1"}
ABOUT = {"machine": MACHINE, "machine_shared": True}
SETTINGS = {"hidden": 0, "rate": 0.01, "decay": 0.1, "epochs": 20, "batch": 128}


def trained(method, accuracy, **more):
  run = {"method": method, "unit": "rows", "budget": 0.1, "test_accuracy": [accuracy, 0.5]}
  run |= {"macro_accuracy": [0.4, 0.4], "rows": [70, 70], "examples_seen": 2000}
  return run | {"train_seconds": 1.0} | ABOUT | more


@pytest.fixture
def folder(tmp_path):
  near = lambda value: {"neighbours_accuracy": [value, value], "select_seconds": 2.0}
  runs = [trained("full", 0.9), *(trained(f"m{i}", 0.6 + 0.1 * i, **near(i)) for i in range(3))]
  split = {"pool": 700, "test": 100, "validation": 50, "probe": 50, "reserved": 160}
  error = {"rms": 0.1, "bias_sigmas": 0.5}
  size = {"size": 100, "kind": "systematic", "draws": 9, "sensitivity": error, "uniform": error}
  bound = {"size": 100, "draws": 9, "eps": 0.1, "of_total": 0.2, "largest": 0.1, "missed": 0.0}
  share = {"of_source": 0.3, "of_group": 0.5, "most_of_source": 0.6, "most_of_group": 1.0}
  results = {
    "subset_accuracy": {
      **{"split": split, "classes": 10, "settings": SETTINGS, "grid": [{}], "runs": runs},
      **{"probe_accuracy": 0.5, "not_run": {"crds_r, rows": "hidden states"}},
    },
    "subset_transfer": {
      encoder: {
        **{"rows_a_source": rows, "sources": 2, "rows": 10, "rows_there": 99, "groups": 1},
        **{"cut_at": 128, "cut": 0.25, "queries": 8, "budget": 0.035, "layers": 7, "seeds": 1},
        "runs": [{"case": "rds", "source": s, "seed": 0, **share} for s in range(2)],
        **ABOUT,
      }
      for encoder, rows in (("all-MiniLM-L6-v2", None), ("another", 5))
    },
    "sensitivity_error": {
      pool: {
        **{"rows": 700, "coefficient_of_variation": 1.2, "bound": [bound | {"delta": 0.1}]},
        **{"results": [{"known": 0.05, "clusters": 16, "correlation": 0.5, "sizes": [size]}]},
        **more,
        **ABOUT,
      }
      for pool, more in (("wordnet", {}), ("natural_instructions", {"by_tokens": [size]}))
    },
    "subset_overlap": {
      **{"budget": 0.035, "seeds": 3, "overlaps": {"rds": {"rds": 0.5}}},
      "dropped": [{"method": "rds", "queries": 8, "overlaps": [0.9]}],
      "balance": [
        {"method": "rds", "mean_length": 9.0, "pool_mean_length": 8.0, "class_distance": 0.1}
      ],
    },
    "subset_clusters": {
      **{"budget": 0.035, "sample": 99},
      "results": [
        {"clusters": k, "silhouette": [1 / k], "simplified": [k / 99], "test_accuracy": [0.5]}
        for k in (8, 16)
      ],
    },
  }
  case = {"seconds": 2.0, "beside_pool_bytes": 2**30}
  results["subset_speed"] = {
    "runs": [
      {"case": "dictionaries", "rows": 20_000} | case,
      {"case": "jsel", "rows": 2_000_000} | case,
    ],
    "projections": {"jsel": 1e-3, "signs_anew": 0.2, "rows": 2048},
    "cosine_errors": {"jsel": 1e-5, "randomized": [0.1, 0.2]},
  }
  assert results.keys() == subset_sections.SECTIONS.keys()
  for name, result in results.items():
    # Those have them for each encoder and pool.
    about = {} if name in ("subset_transfer", "sensitivity_error") else ABOUT
    (tmp_path / f"{name}.json").write_text(json.dumps(result | about))
  return tmp_path


def test_every_section_has_its_command_machine_and_table(folder):
  text = subset_sections.text(folder)
  for name in subset_sections.SECTIONS:
    command = f"{name} --pool=wordnet" if name == "sensitivity_error" else name
    assert f"`python -m benchmarks.{command}` (some, 2 cores; jax 1. others used the" in text
  for row in (
    "| 10 % of rows | full | 70.00 ±",
    "Not run: crds_r, rows (hidden states).",
    "| 10 % of rows | 3 | 1.00 |",
    "| rds | 30.0 ± 0.0 | 50.0 ± 0.0 |",
    "| 5 % | 16 | 0.50 | systematic | 100 |",
    "samples of 100 rows have errors that uniform's are 1.00 times of (`systematic`)",
    "two random subsets have 1.8.",
    "| dictionaries | 2,000,000, extrapolated from 20,000 | 200.0 | 100.00 |",
    "1.00 ms a row; 200 ms a row",
    "1.0e-05 exactly decomposed, and 0.10 to 0.20 by",
    "Silhouette would pick 8 clusters, the simplified one 16;",
  ):
    assert row in text


def test_what_was_not_measured_is_left_out(folder):
  for name in ("subset_accuracy", "subset_overlap"):
    (folder / f"{name}.json").unlink()
  assert subset_sections.text(folder).startswith("### What queries of one source bring")
  for path in folder.glob("*.json"):
    path.unlink()
  assert subset_sections.text(folder) == ""
