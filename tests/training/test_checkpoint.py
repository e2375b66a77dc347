"""Checkpoints: what goes in comes out, on any mesh, whenever the process dies."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel.training.checkpoint import Checkpoints, abstract
from tests.harms import HARMS, flip


class Moments(NamedTuple):
  mean: jax.Array
  count: int


def state_on(devices, seed=0):
  """Every kind of leaf; rows split over ``devices``, the rest the same on each."""
  mesh = jsel.make_mesh(jax.devices()[:devices])
  rng = np.random.default_rng(seed)
  split = lambda x: jax.device_put(x, jax.NamedSharding(mesh, P("data")))
  same = lambda x: jax.device_put(x, jax.NamedSharding(mesh, P()))
  return {
    "params": {"w": same(rng.standard_normal((5, 3)).astype(np.float32)), "none": None, "e": ()},
    "half": same(jnp.asarray(rng.standard_normal(7), jnp.bfloat16)),
    "optimizer": Moments(same(jnp.float32(rng.standard_normal())), 2**40 + seed),
    "usage": split(rng.integers(0, 9, 512).astype(np.int32)),
    "images": split(rng.integers(0, 256, (512, 4)).astype(np.uint8)),
    "valid": split(rng.random(512) < 0.9),
    "empty": same(np.zeros((0, 3), np.float32)),
    "key": same(jax.random.key(seed)),
    "keys": split(jax.random.split(jax.random.key(seed + 1), 512)),
    "rbg": same(jax.random.key(seed, impl="rbg")),
    "rate": 0.1,
    "done": True,
    "name": "größe",
  }


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
    assert type(a) is type(b), path
    if not isinstance(b, jax.Array):
      assert a == b, path
      continue
    assert (a.shape, a.dtype) == (b.shape, b.dtype), path
    assert a.sharding.is_equivalent_to(b.sharding, b.ndim), path
    if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 1), (1, 8), (2, 4)])
def test_every_leaf_comes_back_bitwise_on_any_mesh(tmp_path, saved_on, restored_on):
  metadata = {"config": {"lr": 1e-3, "widths": [8, 4], "none": None}, "data": "größe"}
  with Checkpoints(tmp_path / "a b ü" / "checkpoints", keep=1) as checkpoints:
    checkpoints.save(3, state_on(saved_on), metadata)
  assert (tmp_path / "a b ü" / "checkpoints" / "3").is_dir()
  with Checkpoints(tmp_path / "a b ü" / "checkpoints", keep=1) as checkpoints:
    want = state_on(restored_on)
    state, got = checkpoints.restore(checkpoints.latest(), abstract(want))
  assert_same(state, want)
  assert got == metadata


def test_a_relative_directory_is_good(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with Checkpoints("run/checkpoints", keep=1) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(3)}, {})
    checkpoints.wait()
    assert checkpoints.latest() == 1


def test_a_state_may_be_donated_right_after_its_save(tmp_path):
  advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  mesh = jsel.make_mesh(jax.devices()[:2])
  zeros = lambda: jax.device_put(
    jnp.zeros((512, 256)), jax.NamedSharding(mesh, P("data"))
  )  # large enough for the write to outlive the save
  state = {"a": zeros(), "b": zeros()}
  with Checkpoints(tmp_path, keep=9) as checkpoints:
    for step in range(5):
      checkpoints.save(step, state, {})
      for _ in range(3):
        state = advance(state)
    checkpoints.wait()
    for step in range(5):
      saved, _ = checkpoints.restore(step, abstract(state))
      assert all((np.asarray(x) == 3 * step).all() for x in saved.values())


def test_the_newest_stay(tmp_path):
  state = {"w": jnp.ones(3)}
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest() is None
    for step in (1, 5, 9):
      checkpoints.save(step, state, {})
    checkpoints.wait()
    assert checkpoints.latest() == 9
  assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]


def test_a_step_that_is_there_stays_as_it_is(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(3)}, {"first": True})
    checkpoints.wait()
    checkpoints.save(1, {"w": jnp.zeros(3)}, {"first": False})
    checkpoints.wait()
    assert checkpoints.restore(1, abstract({"w": jnp.ones(3)}))[1] == {"first": True}


def test_what_is_incomplete_is_ignored(tmp_path, caplog):
  state = {"w": jnp.arange(3.0)}
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(4, state, {})
  (tmp_path / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  (tmp_path / "11").mkdir()  # as a broken copy leaves it
  shutil.copytree(tmp_path / "4", tmp_path / "12")
  (tmp_path / "12" / "_CHECKPOINT_METADATA").write_text('{"custom_meta')
  with caplog.at_level(logging.WARNING), Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest() == 4
    # Were 11 and 12 counted among the newest two, the next save would evict 4.
    checkpoints.save(11, state, {})
    checkpoints.wait()
    assert checkpoints.latest() == 11
    np.testing.assert_array_equal(checkpoints.restore(4, abstract(state))[0]["w"], [0, 1, 2])
  assert caplog.text.count("11 is incomplete and ignored") == 1
  assert caplog.text.count("12 is damaged and ignored: _CHECKPOINT_METADATA is not as it was") == 1
  assert (tmp_path / "12.damaged").is_dir()


KILLED = """
import sys, jax, jax.numpy as jnp
from jsel.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
step = checkpoints.latest() or 0
while True:
  step += 1
  checkpoints.save(step, {f"w{i}": jnp.full(4096, step) for i in range(8)}, {"step": step})
  print(step, flush=True)
"""


def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path, rng):
  want = {f"w{i}": jnp.zeros(4096, jnp.int32) for i in range(8)}
  before = 0
  for _ in range(3):
    child = subprocess.Popen(
      [sys.executable, "-c", KILLED, str(tmp_path)],
      stdout=subprocess.PIPE,
      env={**os.environ, "PYTHONPATH": str(Path(jsel.__file__).parents[1])},
    )
    with child:
      for _ in range(4):  # three saves are complete when the fourth has begun
        assert child.stdout.readline()
      time.sleep(rng.uniform(0, 0.15))
      child.kill()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      step = checkpoints.latest()
      assert step >= before + 3
      state, metadata = checkpoints.restore(step, abstract(want))
    assert metadata == {"step": step}
    assert all((np.asarray(x) == step).all() for x in state.values())
    before = step


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s | {"extra": {"v": s["w"]}}, r"it lacks extra\.v\."),
    (lambda s: {"n": s["n"]}, r"it has w besides"),
    (lambda s: s | {"w": jnp.ones((2, 3))}, r"w is float32\[4, 3\] there and float32\[2, 3\] here"),
    (lambda s: s | {"w": s["w"].astype(jnp.int32)}, r"w is float32\[4, 3\] .* int32\[4, 3\] here"),
    (lambda s: s | {"n": 1.0}, r"n is int there and float here"),
  ],
)
def test_another_state_is_refused_in_one_line(tmp_path, change, message):
  state = {"w": jnp.ones((4, 3)), "n": 1}
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.wait()
    with pytest.raises(ValueError, match=message) as error:
      checkpoints.restore(1, abstract(change(state)))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damaged_files_are_named_and_the_step_before_is_taken(tmp_path, caplog, harm):
  values = np.random.default_rng(0).random(20_000).astype(np.float32)
  with Checkpoints(tmp_path / "whole", keep=2) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {"w": jnp.asarray(values * step)}, {})
  newest = tmp_path / "whole" / "2"
  files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
  assert len(files) > 5
  for number, file in enumerate(files):
    damaged = tmp_path / str(number)
    shutil.copytree(tmp_path / "whole", damaged)
    harm(damaged / "2" / file.relative_to(newest))
    caplog.clear()
    with caplog.at_level(logging.WARNING), Checkpoints(damaged, keep=2) as checkpoints:
      step = checkpoints.latest()
      restored, _ = checkpoints.restore(step, abstract({"w": jnp.asarray(values)}))
    # What has lost its digests only is whole.
    assert step == (2 if harm is Path.unlink and file.name == "digests.json" else 1)
    assert str(file.relative_to(newest)) in caplog.text
    np.testing.assert_array_equal(restored["w"], values * step)


def test_where_no_step_is_whole_the_path_is_told_and_nothing_is_moved(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(3)}, {})
  flip(tmp_path / "1" / "state" / "_METADATA")
  with pytest.raises(ValueError, match="none before it is whole: state/_METADATA") as error:
    Checkpoints(tmp_path, keep=1)
  assert str(tmp_path / "1") in str(error.value)
  assert (tmp_path / "1").is_dir()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_digests_that_lead_out_of_the_step_are_refused(tmp_path, name):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(3)}, {})
  files = {name: "0" * 64}
  whole = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
  text = json.dumps({"files": files, "sha256": whole})
  (tmp_path / "1" / "digests.json").write_text(text)
  with pytest.raises(ValueError, match=r"digests\.json is not as it was written"):
    Checkpoints(tmp_path, keep=1)


def test_a_save_passes_the_transfer_guard_of_the_loop(tmp_path):
  state = state_on(8)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    with jax.transfer_guard("disallow"):
      checkpoints.save(1, state, {})
      checkpoints.wait()
    assert_same(checkpoints.restore(1, abstract(state))[0], state)


def test_what_cannot_be_stored_is_refused(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    with pytest.raises(ValueError, match=r"leaf a\.b of the state is a ndarray"):
      checkpoints.save(1, {"a": {"b": np.ones(3)}, "w": jnp.ones(3)}, {})
    with pytest.raises(ValueError, match="metadata of a checkpoint must be JSON"):
      checkpoints.save(1, {"w": jnp.ones(3)}, {"x": np.ones(3)})
    with pytest.raises(ValueError, match="may not contain a dot"):
      checkpoints.save(1, {"a": {"b": jnp.ones(3)}, "a.b": jnp.ones(3)}, {})
    with pytest.raises(ValueError, match=r"no checkpoint of step 7 .* there are \[\]"):
      checkpoints.restore(7, {})
    assert checkpoints.latest() is None


def test_an_abstract_state_without_sharding_is_refused(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(3)}, {})
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"leaf w .* has no sharding"):
      checkpoints.restore(1, {"w": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_keep_nothing_is_refused(tmp_path):
  with pytest.raises(ValueError, match="keep must be at least 1 checkpoint, got 0"):
    Checkpoints(tmp_path, keep=0)


def test_a_save_is_silent(tmp_path, caplog):
  with caplog.at_level(logging.INFO), Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, {"w": jnp.ones(3)}, {})
    checkpoints.wait()
    checkpoints.restore(1, abstract({"w": jnp.ones(3)}))
  assert [r.getMessage() for r in caplog.records if "orbax" in r.pathname] == []


def test_a_step_that_is_being_saved_may_be_saved_again(tmp_path):
  state = {"w": jnp.ones(2**20)}
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(3, state, {})
    checkpoints.save(3, state, {})
    checkpoints.wait()
    assert checkpoints.latest() == 3
