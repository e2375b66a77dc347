"""Fine-tuning in rounds: pick from clusters, train, let the model answer, weigh the clusters anew.

What DAC does, with a language model and its perplexity scorer or another. A round is a job of its
own, with generation in it, so that this is a loop beside that of train.py, which hands over to it.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jsel.data import instructions
from jsel.data.answers import Pairs, score_answers, tokenize_pairs
from jsel.data.digest import combined
from jsel.data.encode import embeddings, encode
from jsel.data.tokens import LENGTHS, Batch, bucketed, open_tokenizer
from jsel.kernels import kmeans, permutation
from jsel.kernels.random import key_of_seed
from jsel.models.encoders import open_encoder, path_of
from jsel.models.llama_weights import load_llama
from jsel.selectors.cells import lottery, take_turns
from jsel.selectors.dac import reweigh
from jsel.training import checkpoint, outputs
from jsel.training.feedback import make_scorer
from jsel.training.finetune import Tuning, make_tuner
from jsel.training.metrics import MetricsWriter
from jsel.training.optimizer import make_optimizer
from jsel.training.resuming import check_resumable
from jsel.training.rounds_config import HARMLESS
from jsel.training.stopping import StopSignals


class Progress(NamedTuple):
  """What has happened to the rows of the pool, beside the model."""

  round: np.ndarray  # [n] int32 in which a row was trained on, -1 if in none
  loss: np.ndarray  # [n] float32 of its answer then, before the update
  gap: np.ndarray  # [n] float32 that the scorer gave it after the round; NaN if it did not


def train_in_rounds(config: ConfigDict, workdir: str) -> int:
  """The whole run, or the rest of it; returns the exit code."""
  began = time.perf_counter()
  note = lambda text: print(f"jsel: {text}", flush=True)
  path = outputs.check_workdir(workdir)
  outputs.hold(path)
  outputs.check_holds_no("a subset of python -m jsel.select", path)
  resolved = outputs.config_dict(config)
  check(config)
  if config.compilation_cache:
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)

  # ---- Data -------------------------------------------------------------------------------------

  data_key, cluster_key, pick_key = jax.random.split(key_of_seed(config.seed), 3)
  of_dac = config.method.name == "dac"
  kind, _, key = config.method.scorer.partition(":")
  found = instructions.read(config.data, reward=key if of_dac and kind == "column" else "")
  rows, test_rows = drawn(data_key, len(found.ids), config.data)
  if config.budget > len(rows):
    raise ValueError(f"budget={config.budget} rows of a pool of {len(rows)}: lower it")
  model_path = path_of(config.model.name)
  source = model_path if model_path.suffix == ".gguf" else model_path / "tokenizer.json"
  tokenizer = open_tokenizer(source, max_length=2**30)
  stop = tokenizer.token_to_id(config.data.end)
  if stop is None:
    raise ValueError(f"--config.data.end={config.data.end!r} is no token of {config.model.name}")

  def tokenized(part: np.ndarray, end: str) -> Pairs:
    prompts = [config.data.template.format(prompt=found.prompts[row]) for row in part]
    answers = [found.answers[row] + end for row in part]
    return tokenize_pairs(tokenizer, prompts, answers, max_length=config.max_length)

  # Learnt with its end; scored without, as are the answers of the model's own.
  learnt = tokenized(rows, config.data.end)
  pairs, test = tokenized(rows, ""), tokenized(test_rows, "")
  n, per_round = len(rows), config.budget // config.rounds
  note(
    f"{found.source}: {n:,} instructions, {pairs.truncated.sum():,} cut, {len(test_rows)} to test"
  )

  # ---- Model and clusters -----------------------------------------------------------------------

  model = load_llama(model_path, dtype=config.model.dtype, remat=config.model.remat)
  model.frozen = frozen_layers(model.config.layers, config.model.trained_layers)
  steps = config.rounds * -(-per_round // config.batch_size)
  optimizer, _ = make_optimizer(config.optimizer, steps)
  tuner, tuning = make_tuner(model, optimizer)
  del model  # its arrays are the tuner's now
  labels, k, scorer = np.zeros(n, np.int32), 1, None
  if of_dac:
    of_model = {"tokenizer": tokenizer, "stop": stop}
    scorer = make_scorer(config.method, found, rows, pairs, **of_model)
    texts = [f"{found.prompts[row]}\n{found.answers[row]}" for row in rows]
    k = min(config.method.clusters, n)
    labels = clustered(cluster_key, embedded(texts, config, path), k, config.method.iterations)

  # ---- State, fresh or restored -----------------------------------------------------------------

  rewards = [] if found.rewards is None else found.rewards.tolist()
  sha256 = combined(*found.ids, *found.prompts, *found.answers, *map(str, rewards))
  weights = np.full(k, 1 / k)
  progress = Progress(*(np.full(n, x, t) for x, t in ((-1, "i4"), (np.nan, "f4"), (np.nan, "f4"))))
  checkpoints = checkpoint.Checkpoints(path / "checkpoints", keep=1)
  done = checkpoints.latest() or 0
  about: dict[str, Any] = {"wall_seconds": 0.0, "test_loss": []}
  as_saved = lambda: {"tuning": tuning._asdict(), **jax.tree.map(jnp.asarray, progress._asdict())}
  if done:
    state, saved = checkpoints.restore(done, checkpoint.abstract(as_saved()))
    check_resumable(saved["config"], resolved, harmless=HARMLESS)
    if saved["data_sha256"] != sha256:
      raise ValueError(f"the instructions are not those of the run in {path}: choose another")
    tuning, weights = Tuning(**state["tuning"]), np.asarray(saved["weights"])
    progress = Progress(*(np.array(state[name]) for name in Progress._fields))
    about = {name: saved[name] for name in about}
    note(f"going on after round {done}")
  else:
    outputs.write_json(path / "config.json", resolved)
    facts = {"name": config.data.name, "source": found.source, "sha256": sha256}
    outputs.write_json(path / "manifest.json", outputs.manifest(data=facts, seed=config.seed))
    about["test_loss"] = [mean_loss(tuner.model(tuning), test)]
    note(f"test loss {about['test_loss'][0]:.3f} before")
  if done == config.rounds and (path / "summary.json").exists():
    note(f"all {done} rounds are done, see {path / 'summary.json'}")
    checkpoints.close()
    return 0
  before = about["wall_seconds"]

  # ---- Rounds -----------------------------------------------------------------------------------

  with (
    StopSignals() as signals,
    checkpoints,
    MetricsWriter(path, resume_step=done or None) as writer,
  ):
    for number in range(done, config.rounds):
      key = jax.random.fold_in(pick_key, number)
      picks = picked(key, labels, weights, progress.round >= 0, per_round)
      order = jax.random.fold_in(key, 1)
      for batch in shuffled(order, learnt.take(picks), config.batch_size):
        if signals.asked():
          note(f"stopped in round {number + 1}: the same command goes on from the round before")
          return signals.exit_code
        at = picks[batch.rows]
        prompt = np.zeros(len(batch.tokens), np.int32)
        prompt[: len(at)] = learnt.prompt[at]
        tuning, loss = tuner.step(tuning, batch.tokens, batch.mask, prompt)
        progress.loss[at] = np.asarray(loss)[: len(at)]
      progress.round[picks] = number
      values = {"train/loss": float(np.nanmean(progress.loss[picks]))}
      if not np.isfinite(values["train/loss"]):
        raise FloatingPointError(
          f"the loss is {values['train/loss']} in round {number + 1}: lower"
          " --config.optimizer.learning_rate"
        )
      model = tuner.model(tuning)
      if scorer:
        progress.gap[picks] = gap = scorer(model, picks)
        options = {"temperature": config.method.temperature, "compound": config.method.compound}
        weights = reweigh(weights, labels[picks], gap, **options)
        values |= {"gap": float(np.nanmean(gap)), "weight/most": float(weights.max())}
      about["test_loss"].append(mean_loss(model, test))
      about["wall_seconds"] = before + time.perf_counter() - began
      values |= {"eval/loss": about["test_loss"][-1], "wall_seconds": about["wall_seconds"]}
      writer.write(number + 1, values)
      note(
        f"round {number + 1} of {config.rounds}: "
        + ", ".join(f"{name} {value:.3f}" for name, value in values.items())
      )
      told = {"config": resolved, "data_sha256": sha256, "weights": weights.tolist(), **about}
      checkpoints.save(number + 1, as_saved(), told)
      checkpoints.wait()  # the next step gives up what is being saved

  # ---- What is left behind ----------------------------------------------------------------------

  outputs.write_exposure(
    path / "exposure.parquet",
    {
      "index": rows,
      "times_selected": progress.round >= 0,
      "first_step": progress.round,
      "last_step": progress.round,
      "last_loss": progress.loss,
      "gap": progress.gap,
      "cluster": labels,
    },
  )
  summary = {
    "test_loss": about["test_loss"][-1],
    "test_loss_before": about["test_loss"][0],
    "examples_seen": int((progress.round >= 0).sum()),
    "rounds": config.rounds,
    "wall_seconds": about["wall_seconds"],
    "selector": config.method.name,
    "ratio": config.budget / n,
    "seed": config.seed,
    "data": config.data.name,
    "model": config.model.name,
    "cluster_weights": weights.tolist(),
  }
  outputs.write_json(path / "summary.json", summary)
  note(f"test loss {summary['test_loss']:.3f} after {summary['examples_seen']:,} instructions")
  return 0


def check(config: ConfigDict) -> None:
  """Raises a ValueError if the numbers of ``config`` do not go together."""
  if config.rounds < 1 or config.budget < config.rounds or config.budget % config.rounds:
    raise ValueError(
      f"budget={config.budget} rows do not divide into {config.rounds} rounds: give a multiple"
    )
  for name, value in (("batch_size", config.batch_size), ("data.test_rows", config.data.test_rows)):
    if value < 1:
      raise ValueError(f"{name}={value} must be at least 1")
  if config.method.name not in ("dac", "random"):
    raise ValueError(f"method.name must be dac or random, got {config.method.name!r}")


def frozen_layers(layers: int, trained: int) -> int:
  """How many of the first ``layers`` stay as they are.

  Raises:
    ValueError: if there are not as many as are to be trained.
  """
  if not 0 <= trained <= layers:
    raise ValueError(f"model.trained_layers={trained}: the model has {layers}, 0 trains all")
  return layers - trained if trained else 0


def drawn(key: jax.Array, size: int, config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the pool and rows to test on, of ``size`` in all.

  Raises:
    ValueError: if there are fewer.
  """
  rows = config.rows or size - config.test_rows
  if not 1 <= rows <= size - config.test_rows:
    raise ValueError(
      f"data.rows={rows} and data.test_rows={config.test_rows} of {size} instructions: lower them"
    )
  place = permutation.permute(key, jnp.arange(rows + config.test_rows, dtype=jnp.int32), size)
  return np.sort(np.asarray(place[:rows])), np.sort(np.asarray(place[rows:]))


def embedded(texts: list[str], config: ConfigDict, workdir: Any) -> np.ndarray:
  """The embeddings of ``texts``, ``[n, d]`` float32."""
  encoder = open_encoder(config.encoder.name)
  folder = config.encoder.cache_dir or str(workdir / "embeddings")
  encode(texts, encoder, cache_dir=folder)
  return np.concatenate(list(embeddings(texts, encoder, cache_dir=folder)))


def clustered(key: jax.Array, x: np.ndarray, k: int, iterations: int) -> np.ndarray:
  """The cluster of each row, ``[n]`` int32."""
  padded = jnp.asarray(np.pad(x, [(0, -len(x) % 512), (0, 0)]))
  valid = jnp.arange(len(padded)) < len(x)
  centers = kmeans.plus_plus(key, padded, k, valid=valid)
  found = kmeans.fit(padded, centers, max_iters=iterations, valid=valid)
  return np.asarray(found.labels)[: len(x)]


def picked(
  key: jax.Array, labels: np.ndarray, weights: np.ndarray, used: np.ndarray, count: int
) -> np.ndarray:
  """``count`` unused rows, of each cluster in proportion to its weight, at random within it.

  Exact: what a cluster has no row for goes to the others, in proportion, too.
  """
  free = np.where(used, -1, labels)
  return take_turns(free, lottery(key, np.zeros(len(labels))), weights)[:count]


def shuffled(key: jax.Array, pairs: Pairs, batch_size: int) -> Iterator[Batch]:
  """Batches of ``batch_size`` rows of about one length, in random order."""
  places = np.argsort([len(row) for row in pairs.ids], kind="stable")
  starts = np.arange(0, len(places), batch_size)
  for start in starts[np.asarray(jax.random.permutation(key, len(starts)))]:
    own = places[start : start + batch_size]
    ids = [pairs.ids[row] for row in own]
    length = next(length for length in LENGTHS if length >= max(map(len, ids)))
    (batch,) = bucketed(ids, batch_tokens=batch_size * length, lengths=(length,))
    yield batch._replace(rows=own[batch.rows])


def mean_loss(model: Any, pairs: Pairs) -> float:
  """Nats a token, of all tokens of the answers of ``pairs``."""
  scores = score_answers(model, pairs, show=False)
  return float(np.nansum(scores.loss * scores.tokens) / scores.tokens.sum())
