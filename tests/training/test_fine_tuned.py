"""An encoder's last layers trained on token ids, in every feed and on every mesh."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import jsel
from jsel.models.bert_weights import load_bert
from jsel.training import checkpoint, setup
from jsel.training.memory import device_bytes
from tests import tiny_bert
from tests.training import test_streaming as streaming

pytest.importorskip("safetensors", reason="pip install 'jsel[text]'")
pytest.importorskip("tokenizers", reason="pip install 'jsel[text]'")

SIZE, STEPS, LENGTH = streaming.SIZE, 16, 9
SPLIT = (("trained.*kernel", (None, None, "fsdp")),)


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax and Flax do not keep to strict promotion themselves.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_bert.write(tmp_path_factory.mktemp("models") / "tiny")


@functools.cache
def texts():
  """Texts of each class by words of its own, and others."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, streaming.CLASSES, SIZE).astype(np.int32)
  tokens = rng.integers(4, 204, (SIZE, LENGTH)).astype(np.int32)
  own = rng.random(tokens.shape) < 0.8
  tokens[own] = 4 + (tokens[own] % 2) * streaming.CLASSES + labels.repeat(own.sum(1))
  tokens[np.arange(LENGTH) >= rng.integers(3, LENGTH + 1, (SIZE, 1))] = -1
  return tokens, labels


def configuration(folder, name="rs2", feed="resident", **selector):
  config = streaming.configuration(name, feed, **selector)
  config.model.name = "fine_tuned_bert"
  config.model.fine_tuned_bert.encoder = str(folder)
  config.model.fine_tuned_bert.train_layers = 1
  return config


def begun(config, devices=1, fsdp=1):
  return streaming.Run(config, devices, fsdp, given=texts())


def arrays(part):
  return nnx.to_pure_dict(jax.device_get(part))


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4)])
def test_a_run_begins_with_the_arrays_of_the_file(folder, devices, fsdp):
  config = configuration(folder)
  config.sharding.rules = SPLIT
  run = begun(config, devices, fsdp)
  state = run.state
  expected = arrays(nnx.state(load_bert(folder)))
  frozen, trained = arrays(state.variables)["bert"], arrays(state.params)["trained"]
  together = jax.tree.map(lambda *x: np.concatenate(x), frozen.pop("blocks"), trained)
  jax.tree.map(np.testing.assert_array_equal, together, expected.pop("blocks"))
  jax.tree.map(np.testing.assert_array_equal, frozen, expected)
  # Laid out as they would be if they were drawn.
  shapes = run.begin(setup.pool_shapes(run.examples, "resident", run.mesh))
  for leaf, shape in zip(*map(jax.tree.leaves, (state, shapes)), strict=True):
    assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_frozen_stays_bitwise_and_the_rest_learns(folder, accumulate):
  config = configuration(folder)
  config.accumulate = accumulate
  config.optimizer.learning_rate = 1e-2
  run = begun(config)
  before = arrays(run.state.variables), arrays(run.state.params)
  losses = run.go(2 * STEPS)
  after = arrays(run.state.variables), arrays(run.state.params)
  jax.tree.map(np.testing.assert_array_equal, before[0], after[0])
  for old, new in zip(*map(jax.tree.leaves, (before[1], after[1])), strict=True):
    assert np.abs(new - old).max() > 1e-3
  assert losses[-8:].mean() < 0.8 * np.log(streaming.CLASSES)  # of guessing


def test_only_what_is_trained_has_gradients_and_an_optimizers_state(folder):
  run = begun(configuration(folder))
  planned = streaming.planned_memory(run).kinds
  assert planned["gradients"] == device_bytes(run.state.params)
  assert planned["optimizer"] == pytest.approx(2 * planned["gradients"], abs=64)
  assert planned["parameters"] - planned["gradients"] == device_bytes(run.state.variables)
  # Half of the layers, the embeddings and their normalisation.
  words = (204 + 64 + 2 + 2) * 16
  assert device_bytes(run.state.variables) == 4 * words + device_bytes(run.state.params["trained"])


@functools.cache
def resident(folder, name, devices, **selector):
  config = configuration(folder, name, "planned", **selector)
  config.feed, config.dispatch = "resident", "step"
  run = begun(config, devices)
  return run, run.go(STEPS)


@pytest.mark.parametrize("name", ["rs2", "loss", "rep_div"])
def test_eight_devices_choose_what_one_does(folder, name):
  one, losses = resident(folder, name, 1)
  eight, found = resident(folder, name, 8)
  if name != "loss":  # goes by losses, whose last bits are those of as many devices
    streaming.same_choice(one, eight)
  np.testing.assert_allclose(found, losses, rtol=1e-4)  # the design's promise


@pytest.mark.parametrize("name", ["infobatch", "rep_div"])
def test_a_feed_trains_on_what_the_resident_pool_does(folder, name):
  run = begun(configuration(folder, name, "planned"))
  expected, losses = resident(folder, name, 1)
  found = run.go(STEPS)
  streaming.same_choice(run, expected)
  # Programs of the same formula, which may round differently, over 16 steps of AdamW.
  np.testing.assert_allclose(found, losses, rtol=1e-4)


def test_candidates_are_scored_and_picked(folder):
  run = begun(configuration(folder, "loss", "super_batch"))
  losses = run.go(STEPS)
  assert np.isfinite(losses).all()
  assert streaming.exposure_of(run)["times_selected"].sum() == STEPS * streaming.BATCH


def test_parameters_split_over_a_second_axis_train_as_whole_ones(folder):
  _, losses = resident(folder, "rs2", 1)
  config = configuration(folder)
  config.dispatch = "step"
  config.sharding.rules = SPLIT
  run = begun(config, 8, 4)
  np.testing.assert_allclose(run.go(STEPS), losses, rtol=1e-4)  # the design's promise


@pytest.mark.parametrize("train_layers", [0, 1, 2])
def test_a_run_that_is_restored_goes_on_bitwise(folder, tmp_path, train_layers):
  config = configuration(folder)
  config.model.fine_tuned_bert.train_layers = train_layers
  whole = begun(config)
  expected = whole.go(STEPS, look_every=4)
  run = begun(config)
  before = run.go(8, look_every=4)
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(8, run.state, {})
    again = begun(config)
    again.state, _ = checkpoints.restore(8, checkpoint.abstract(again.state))
  again.step = 8
  after = again.go(STEPS, look_every=4)
  np.testing.assert_array_equal(np.concatenate([before, after]), expected)
  for one, other in zip(
    *map(jax.tree.leaves, map(streaming.plain, (whole.state, again.state))), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def test_shapes_are_known_without_the_weights(tmp_path):
  folder = tiny_bert.write(tmp_path / "tiny")
  run = begun(configuration(folder))
  (folder / "model.safetensors").unlink()
  shapes = run.begin(setup.pool_shapes(run.examples, "resident", run.mesh))
  assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [
    leaf.shape for leaf in jax.tree.leaves(run.state)
  ]
  with pytest.raises(ValueError, match=r"has no model.safetensors"):
    begun(configuration(folder))


def refused(config, inputs, **told):
  examples = setup.Examples(SIZE, inputs.shape[1:], inputs.dtype, 5, lambda x: x, **told)
  with pytest.raises(ValueError) as error:
    setup.make_setup(config, examples, jsel.make_mesh(jax.devices()[:1]))
  assert "\n" not in str(error.value)
  return str(error.value)


def test_what_does_not_go_together_is_refused(folder):
  tokens, features = texts()[0], streaming.clusters()[0]
  config = configuration(folder)
  assert "knows 0 to 203: give those of its encoder" in refused(config, tokens, vocabulary=205)
  assert "fine_tuned_bert takes token ids, and the rows are none" in refused(config, features)
  config.augment.flip = True
  assert "augment.flip and augment.crop are for images" in refused(config, tokens, vocabulary=204)
  for name in streaming.FITTED:
    message = refused(configuration(folder, name), tokens, vocabulary=204)
    assert message.startswith(f"selector {name} fits on features, and token ids are none: set")
  message = refused(streaming.configuration(), tokens, vocabulary=204)
  assert "which mlp would take for numbers: set --config.model.name=fine_tuned_bert" in message
