"""Compilation ahead of time: its report on CPU devices, and compiles for a TPU that is not there.

Those marked `aot` need libtpu (`pip install 'jsel[aot-tpu]'`), and no TPU.
"""

import functools
import importlib.util
import inspect
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import jsel
from jsel import aot
from jsel.compiled import tables
from jsel.compiled.collectives import collectives, summarize
from jsel.compiled.machines import GPUS, TPUS, Machine, machine, target_config
from jsel.compiled.programs import SELECT, make_run
from jsel.training.config import base_config
from jsel.training.setup import make_setup, pool_shapes
from jsel.training.state import Keys, init_state
from jsel.training.streaming import ON_DEVICE
from tests import tiny_bert

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _standard_promotion():
  # Optax and Flax do not keep to strict promotion themselves.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def configured(**options):
  config = base_config()
  config.batch_size = 64
  config.model.mlp.hidden = (16,)
  config.selector.name = "rs2"
  config.selector.rep_div.sae_steps = 3
  for name, value in options.items():
    *path, last = name.split("__")
    section = config
    for part in path:
      section = section[part]
    section[last] = value
  return config


def cpus(count, memory=2**30):
  return Machine("cpu", "cpu", jax.devices()[:count], memory, "a test's", "XLA")


@functools.cache
def report_of(devices=8, memory=2**30, pool=None, **options):
  config = configured(**options)
  examples = aot.examples_of(config, pool)
  return aot.compile_config(config, cpus(devices, memory), examples, note=lambda text: None)


def test_what_is_kept_is_what_a_run_holds():
  config = configured(selector__name="loss")
  examples = aot.examples_of(config, None)
  mesh = jsel.make_mesh(jax.devices()[:8])
  setup = make_setup(config, examples, mesh)
  shapes = pool_shapes(examples, config.feed, mesh)
  pool = jax.tree.map(
    lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes
  )
  state = init_state(
    Keys(*jax.random.split(jax.random.key(0), 3)),
    setup.make_model,
    setup.learner.optimizer,
    setup.selector,
    pool,
    batch_size=config.batch_size,
    mesh=mesh,
  )
  held = lambda tree: sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(tree))
  memory = report_of(selector__name="loss")["memory"]
  assert memory["parameters"] == held((state.params, state.variables))
  assert memory["optimizer"] == held(state.opt_state)
  assert memory["exposure"] == held(state.exposure)
  assert memory["plan"] == held(state.plan)
  assert memory["pool"] == held(pool)
  assert memory["total"] == sum(memory.values()) - memory["total"]


def test_the_report_of_a_resident_pool():
  report = report_of()
  assert report["fits"]
  assert [program["name"] for program in report["programs"]] == ["update", "plan"]
  assert report["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
  assert report["steps_per_plan"] == math.floor(719 / 64)
  of_model = report["operations"]["model"]
  # Forward and the two products of the backward pass, but for the inputs' gradient.
  assert of_model["products"] == 2 * 64 * (2 * 64 * 16 + 3 * 16 * 10)
  total = report["collectives"]["all"]
  # On CPU every gradient crosses the wire in float32, with little else.
  assert total["operand_bytes"] >= 4 * report["parameters"]
  assert 0 < total["selection_wire_bytes"] < total["wire_bytes"]


def test_the_plan_and_its_ids_count_with_the_share_of_a_step():
  planned = report_of(feed="planned")
  assert [program["name"] for program in planned["programs"]] == ["update", "plan", "ids"]
  steps = {program["name"]: program["steps"] for program in planned["programs"]}
  assert steps == {"update": 1, "plan": planned["steps_per_plan"], "ids": 12}
  rows = 64 // 8 * (64 + 4)
  assert planned["memory"]["batches"] == (1 + ON_DEVICE) * rows
  # The next plan is made while this one is trained on.
  memory = planned["memory"]
  assert memory["next plan"] == memory["selector"] + memory["plan"]
  assert "next plan" not in report_of(feed="planned", selector__name="loss")["memory"]


def test_a_pool_that_stays_on_the_host_takes_no_memory():
  resident, planned = report_of(), report_of(feed="planned")
  assert resident["memory"]["pool"] == 1536 // 8 * (64 + 4 + 1)
  assert planned["memory"]["pool"] == 1536 // 8


def test_candidates_are_a_step_of_their_own():
  report = report_of(feed="super_batch")
  assert [program["name"] for program in report["programs"]] == ["step"]
  assert report["memory"]["batches"] == (1 + ON_DEVICE) * 128 // 8 * (64 + 4 + 4)


def test_eight_devices_hold_an_eighth_of_the_columns():
  one, eight = report_of(devices=1), report_of(devices=8)
  for name in ("exposure", "pool"):
    assert one["memory"][name] == 8 * eight["memory"][name]
  assert one["memory"]["parameters"] == eight["memory"]["parameters"]
  assert one["collectives"].get("all", {"wire_bytes": 0})["wire_bytes"] == 0


def test_a_pool_may_be_sized_without_data():
  small, large = report_of(), report_of(pool="1e6")
  assert large["pool"]["examples"] == 10**6
  assert large["memory"]["exposure"] == 16 * 1_000_448 // 8
  assert large["parameters"] == small["parameters"]


@pytest.mark.parametrize("count", ["0", "-3", "1.5", "many", "1e99", "inf"])
def test_a_pool_of_no_number_of_examples_is_refused(count):
  with pytest.raises(ValueError, match=r"--pool=|row ids are int32"):
    aot.examples_of(configured(), count)


def test_a_described_pool_is_taken_as_it_is_described():
  config = configured()
  config.pool.examples, config.pool.input_shape, config.pool.classes = 5000, (3, 4), 7
  examples = aot.examples_of(config, None)
  assert examples[:4] == (5000, (3, 4), np.dtype(np.uint8), 7)
  config.pool.classes = 0
  with pytest.raises(ValueError, match=r"pool\.classes=0 are what the pool is like"):
    aot.examples_of(config, None)


def test_an_encoder_is_known_by_its_sizes_and_what_is_frozen_has_no_optimizer(tmp_path):
  for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package, reason="pip install 'jsel[text]'")
  folder = tiny_bert.write(tmp_path / "tiny")
  (folder / "model.safetensors").unlink()
  report = report_of(
    pool__examples=2000,
    pool__input_shape=(9,),
    pool__input_dtype="int32",
    pool__classes=3,
    model__name="fine_tuned_bert",
    model__fine_tuned_bert__encoder=str(folder),
    model__fine_tuned_bert__train_layers=1,
  )
  assert report["fits"]
  layer = 16 * 48 + 48 + 16 * 16 + 16 + 2 * 16 * 24 + 24 + 16 + 4 * 16
  trained, words = layer + 16 * 3 + 3, (204 + 64 + 2 + 2) * 16
  assert report["parameters"] == trained
  assert report["memory"]["parameters"] == 4 * (trained + layer + words)
  # Two moments each, and counts.
  assert 0 <= report["memory"]["optimizer"] - 8 * trained < 64


def test_what_does_not_fit_says_what_to_change(capsys):
  report = report_of(memory=20_000)
  assert not report["fits"]
  tables.show(report)
  *_, last = capsys.readouterr().out.strip().splitlines()
  assert last.startswith("does not fit: ")
  line = tables.verdict(report)
  assert "pool 12.9 KiB: --config.feed=planned" in line
  assert "--config.sharding.fsdp" in line


def test_tables_are_plain_where_nobody_looks(capsys):
  tables.show(report_of())
  text = capsys.readouterr().out
  assert all(line.isprintable() and line.isascii() for line in text.splitlines())
  assert max(map(len, text.splitlines())) <= 100
  assert "fits: " in text


def test_the_cnn_is_compiled_as_accelerators_run_it():
  config = configured(model__name="cnn")
  run = make_run(config, aot.examples_of(config, None), jsel.make_mesh(jax.devices()[:1]))
  assert run.setup.convolutional
  assert config.model.cnn.products is None


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("v9z:2x2", r"there is no topology 'v9z:2x2': give one such as v4"),
    ("v5e:4", r"needs 2 sizes and at most 256 chips, such as v5e:4x4"),
    ("v5e:32x32", r"needs 2 sizes and at most 256 chips"),
    ("v5p:4x4", r"needs 3 sizes"),
    ("cuda:h200:8", r"one of a100, h100"),
    ("cuda:h100:0", r"and their number"),
    ("cuda:h100:12", r"hosts of 8 each"),
  ],
)
def test_an_impossible_topology_is_refused(topology, message):
  with pytest.raises(ValueError, match=message):
    machine(topology)


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_is_described_in_whole_numbers(name):
  text = target_config(GPUS[name])
  assert text.count("{") == text.count("}")
  assert f"device_memory_size: {GPUS[name].memory}" in text


def command(*options):
  return subprocess.run(
    [sys.executable, "-m", "jsel.aot", *options],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def test_a_missing_compiler_is_one_line():
  missing = [
    topology
    for module, topology in (("libtpu", "v5e:2x2"), ("jax_cuda12_plugin", "cuda:h100:1"))
    if importlib.util.find_spec(module) is None
  ]
  if not missing:
    pytest.skip("both compilers are installed")
  result = command("--config=configs/digits.py", f"--topology={missing[0]}")
  assert result.returncode == 2
  assert result.stderr.count("\n") == 1
  assert "pip install 'jsel[aot-" in result.stderr
  assert command("--config=configs/digits.py").returncode == 2  # without a topology


# ---- For a TPU -----------------------------------------------------------------------------------

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed: pip install 'jsel[aot-tpu]'",
)


def contract_cases():
  """The call of every kernel, from the contract that all of them keep to."""
  path = ROOT / "tests" / "kernels" / "test_contract.py"
  spec = importlib.util.spec_from_file_location("kernel_contract", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.CASES


CASES = contract_cases()
# What a row needs is on its own device.
ALONE = (
  "whitening.apply",
  "rademacher",
  "srht",
  "project_tree",
  "kmeans.assign",
  "sae.encode",
  "sae.decode",
  "combine",
  "el2n",
  "margin",
  "entropy",
)


@pytest.fixture(scope="module")
def tpu():
  return machine("v5e:2x2")


@pytest.mark.aot
@needs_libtpu
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_compiles_for_a_tpu(name, tpu):
  kernel, arguments, options, _ = CASES[name]
  if name == "whitening.fit":
    options = {**options, "method": "subspace"}  # "eigh" takes a TPU's compiler minutes
  mesh = jsel.make_mesh(tpu.devices)
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    text = lowered(kernel, mesh, arguments, options).compile().as_text()
  found = collectives(text, devices=mesh.size)
  if name in ALONE:
    assert not found
  if name == "count":
    assert sum(c.operand_bytes for c in found) <= 8
  if name == "top_k":
    # Scores and ids of 40 candidates of each device, perhaps as sums over a place for each of them.
    assert 0 < sum(c.operand_bytes for c in found) <= 3 * 4 * 40 * 8


def lowered(kernel, mesh, arguments, options):
  """``jsel.shard`` of a kernel for devices that are not there."""
  bound = inspect.signature(kernel).bind(*arguments, **options).arguments
  is_array = lambda value: all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(value))
  arrays = {what: value for what, value in bound.items() if is_array(value)}
  static = {what: value for what, value in bound.items() if what not in arrays}
  to_spec = lambda is_rows: jax.P("data") if is_rows else jax.P()
  specs = {what: to_spec(what in kernel.row_arguments) for what in arrays}
  shape = lambda what, leaf: jax.ShapeDtypeStruct(
    np.shape(leaf), leaf.dtype, sharding=jax.NamedSharding(mesh, specs[what])
  )
  shapes = {
    what: jax.tree.map(lambda leaf, what=what: shape(what, leaf), value)
    for what, value in arrays.items()
  }
  mapped = jax.shard_map(
    lambda arrays: kernel(**arrays, **static, axis_name="data"),
    mesh=mesh,
    in_specs=(specs,),
    out_specs=jax.tree.map(to_spec, kernel.row_results),
  )
  return jax.jit(mapped).lower(shapes)


@pytest.mark.aot
@needs_libtpu
@pytest.mark.parametrize(
  ("selector", "options"),
  [
    ("rs2", {}),
    ("rs2", {"feed": "planned"}),
    ("loss", {"feed": "super_batch"}),
    ("rep_div", {"sharding__fsdp": 2}),
    ("infobatch", {}),
  ],
)
def test_the_step_compiles_for_a_tpu_and_moves_nothing_of_the_pools_length(selector, options, tpu):
  config = configured(selector__name=selector, **options)
  if selector == "infobatch":
    config.accumulate = 2
  examples = aot.examples_of(config, "1e6")
  mesh = jsel.make_mesh(tpu.devices, fsdp=config.sharding.fsdp)
  run = make_run(config, examples, mesh)
  names = {program.name for program in run.programs}
  assert names == ({"update", "plan", "ids"} if config.feed == "planned" else {"step"})
  for program in run.programs:
    compiled = program.function.trace(*program.arguments).lower().compile()
    found = collectives(compiled.as_text(), devices=mesh.size)
    sent = sum(total.operand_bytes for total in summarize(found, SELECT).values())
    if program.name != "ids":  # which are as many as rows are planned
      # The ten steps of a program and their plans together: less than a column of the pool.
      assert sent < 10 * 10**6 / 8
    if program.name in ("step", "update"):  # the state is donated, and stays where it is
      memory = compiled.memory_analysis()
      assert memory.alias_size_in_bytes > 0.5 * memory.output_size_in_bytes


@pytest.mark.aot
@needs_libtpu
def test_a_pool_of_images_is_gathered_from_where_it_lies(tpu):
  config = configured(selector__name="rs2")
  config.pool.examples, config.pool.input_shape, config.pool.classes = 50_000, (32, 32, 3), 10
  mesh = jsel.make_mesh(tpu.devices)
  (program,) = make_run(config, aot.examples_of(config, None), mesh).programs
  memory = program.function.trace(*program.arguments).lower().compile().memory_analysis()
  # A copy of a device's part of it, 36.6 MiB, would be among the temporaries.
  assert memory.temp_size_in_bytes < 2**24


@pytest.mark.aot
@needs_libtpu
def test_the_command_compiles_digits(tmp_path):
  path = tmp_path / "report.json"
  result = command("--config=configs/digits.py", "--topology=v5e:2x2", f"--json={path}")
  assert result.returncode == 0, result.stderr
  assert "fits: " in result.stdout
  assert '"devices": 4' in path.read_text()


@pytest.mark.aot
@needs_libtpu
def test_what_a_tpu_refuses_is_reported(tpu):
  config = configured(model__mlp={"hidden": (200_000, 20_000)})
  report = aot.compile_config(config, tpu, aot.examples_of(config, None), note=lambda text: None)
  assert not report["fits"]
  assert "RESOURCE_EXHAUSTED" in report["refused"]
  assert "--config.sharding.fsdp" in tables.verdict(report)


@pytest.mark.aot
@needs_libtpu
@pytest.mark.parametrize("generation", TPUS)
def test_every_generation_is_known_to_libtpu(generation):
  found = machine(TPUS[generation].example)
  assert {device.platform for device in found.devices} == {"tpu"}
