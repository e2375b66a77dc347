"""Fine-tuning an encoder as a person runs it, on the texts of a subset of embeddings."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from jsel import data
from tests import tiny_bert
from tests.test_train import ROOT, environment, exposure, train

pytest.importorskip("safetensors", reason="pip install 'jsel[text]'")
pytest.importorskip("tokenizers", reason="pip install 'jsel[text]'")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A WordNet of 600 glosses in two classes, each with words of its own, and an encoder."""
  folder = tmp_path_factory.mktemp("wordnet")
  rng, words = np.random.default_rng(0), np.asarray(tiny_bert.WORDS)
  lines = []
  for i in range(600):
    gloss = rng.choice(words[:3] if i % 3 else words[3:6], 6)
    lines.append(f"{i:08d} {3 if i % 3 else 9:02d} n 01 w{i} | {' '.join(gloss)}  \n")
  (folder / "data.noun").write_text("".join(lines))
  tiny_bert.write(folder / "tiny")
  return folder


def options(source, *more):
  tiny = source / "tiny"
  return (
    f"--config.data.dir={source}",
    f"--config.data.encoder={tiny}",
    f"--config.model.fine_tuned_bert.encoder={tiny}",
    "--config.model.fine_tuned_bert.train_layers=1",
    *more,
  )


def test_what_was_picked_from_embeddings_is_fine_tuned_on(source, tmp_path):
  section = {"name": "wordnet", "dir": str(source), "encoder": str(source / "tiny")}
  section |= {"cache_dir": str(tmp_path / "cache"), "parts": ("noun",), "test_fraction": 0.1}
  pool = data.load(ConfigDict(section)).train
  np.savez(tmp_path / "pool.npz", embedding=pool.inputs, group=pool.labels)
  picking = [
    *(sys.executable, "-m", "jsel.select", "--config=configs/select/random.py"),
    *(f"--config.pool={tmp_path / 'pool.npz'}", "--config.budget=256"),
    *("--config.budget_unit=rows", f"--workdir={tmp_path / 'picked'}"),
  ]
  subprocess.run(picking, cwd=ROOT, env=environment(), check=True, timeout=300)
  picked = tmp_path / "picked" / "subset.parquet"
  more = (f"--config.data.subset={picked}", "--config.epochs=20", "--config.log_every=10")
  more += ("--config.optimizer.learning_rate=3e-3",)
  run = train(tmp_path / "run", *options(source, *more), config="wordnet_finetune")
  assert run.returncode == 0, run.stderr
  assert "600 glosses tokenized for" in run.stdout
  assert "256 of 540 rows, those of subset.parquet" in run.stdout
  assert exposure(tmp_path / "run")["source_row"] == sorted(
    pq.read_table(picked)["index"].to_pylist()
  )
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["steps"] == 80
  # The larger class has 2 of 3 rows.
  assert summary["test_accuracy"] > 0.85


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (["--config.selector.name=rep_div"], "token ids are none: set selector.fit_step"),
    (["--config.model.name=mlp"], "which mlp would take for numbers"),
    (["--config.data.name=digits"], "takes token ids, and the rows are none"),
    (["--config.model.fine_tuned_bert.train_layers=3"], "has 2 layers to train, 0 trains the head"),
    (
      ["--config.model.fine_tuned_bert.encoder=nowhere"],
      "and model.fine_tuned_bert.encoder=nowhere: set both alike",
    ),
    (["--config.data.encoder=nowhere"], "there is no encoder 'nowhere'"),
    (["--config.augment.flip=True"], "are for images [h, w, c]: set them off"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(source, tmp_path, more, message):
  run = train(tmp_path / "run", *options(source, *more), config="wordnet_finetune")
  assert run.returncode == 2, run.stderr
  assert message in run.stderr
  assert len(run.stderr.strip().splitlines()) == 1
  assert not (tmp_path / "run" / "config.json").exists()
