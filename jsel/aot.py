"""Compiles a config for a machine that is not there, and says what it would take of it.

    python -m jsel.aot --config=configs/imagenet.py --topology=v5e:16x16
    python -m jsel.aot --config=configs/imagenet.py --topology=cuda:h100:8 --json=h100.json
    python -m jsel.aot --config=configs/imagenet.py --topology=v5e:16x16 --pool=1e9

Needs no device, and no data where the config's section `pool` says what it is like; it needs the
compiler: `pip install 'jsel[aot-tpu]'` or `'jsel[aot-cuda]'`. Nothing is run and nothing is timed:
a program that compiles may still be slow. Exit codes: 0 it fits; 1 it does not; 2 a mistake in what
was asked for, in one line.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from jsel import data, sharding
from jsel.compiled import tables
from jsel.compiled.account import Account, account_memory, compile_program
from jsel.compiled.machines import Machine, machine
from jsel.compiled.programs import make_run
from jsel.compiled.shares import traffic
from jsel.data.token_rows import is_tokens
from jsel.training.outputs import config_dict, write_json
from jsel.training.setup import Examples


def define_flags() -> None:
  """The flags of the command."""
  config_flags.DEFINE_config_file("config", None, "What to compile.", lock_config=True)
  flags.DEFINE_string("topology", None, "v5e:16x16, v5p:4x4x4, v6e:8x8, cuda:h100:8, ...")
  flags.DEFINE_string("pool", None, "Examples of the pool, e.g. 1e9, if not as the config has it.")
  flags.DEFINE_bool("fit", False, "Compile the fit of the selector too, which may take minutes.")
  flags.DEFINE_string("json", None, "File to write the same to, as JSON.")


def compile_config(
  config: ConfigDict,
  target: Machine,
  examples: Examples,
  *,
  fit: bool = False,
  note: Callable[[str], Any] = print,
) -> dict[str, Any]:
  """Compiles what ``train.py`` would call, and reports what it takes in plain values.

  Args:
    config: as `jsel.training.config.base_config` makes it.
    target: from `jsel.compiled.machines.machine`.
    examples: of the training set.
    fit: compile the fit of the selector too.
    note: told of each program that is compiled.

  Raises:
    ValueError: if the parts of the config do not go together.
  """
  mesh = sharding.make_mesh(target.devices, fsdp=config.sharding.fsdp)
  run = make_run(config, examples, mesh, fit=fit)
  accounts = []
  for program in run.programs:
    accounts.append(compile_program(program, mesh.size))
    note(f"jsel: {program.name} compiled in {accounts[-1].compile_seconds:.0f} s")
  memory = account_memory(run, accounts)
  refused = next((account.refused for account in accounts if account.refused), "")
  leaves = jax.tree.leaves(run.state.params)
  return {
    "topology": target.topology,
    "devices": mesh.size,
    "device_kind": target.devices[0].device_kind,
    "compiler": target.compiler,
    "jax": jax.__version__,
    "model": config.model.name,
    "parameters": sum(leaf.size for leaf in leaves),
    "batch_size": config.batch_size,
    "accumulate": config.accumulate,
    "remat": config.model.get(config.model.name, {}).get("remat"),
    "feed": config.feed,
    "selector": config.selector.name,
    "steps_per_plan": run.setup.budget.steps_per_plan,
    "pool": {
      "examples": examples.size,
      "input_shape": list(examples.input_shape),
      "input_dtype": np.dtype(examples.input_dtype).name,
    },
    "memory_of_device": target.memory,
    "memory_source": target.memory_source,
    "memory": {
      **memory.kept,
      "layout padding": memory.padding,
      f"temporaries of {memory.largest}": memory.temporaries,
      "programs": memory.code,
      "total": memory.total,
    },
    "fits": not refused and memory.total <= target.memory,
    "refused": refused,
    "programs": [_of_program(account) for account in accounts],
    "operations": {
      scope or "model": {
        "products": found.products,
        "others": found.others,
        "open_loops": found.in_open_loops,
        "uncounted": list(found.uncounted),
      }
      for scope, found in run.operations.items()
    },
    "collectives": traffic(run, accounts),
  }


def _of_program(account: Account) -> dict[str, Any]:
  """The facts of one program."""
  facts = account._asdict()
  del facts["collectives"], facts["needed"]
  return facts


def examples_of(config: ConfigDict, count: str | None) -> Examples:
  """What the pool is like: by the config's section `pool`, else by the data; ``count`` overrides.

  Raises:
    ValueError: if ``count`` is no number of examples, or the data is not there.

  >>> from jsel.training.config import base_config
  >>> examples_of(base_config(), "1e6")[:2]
  (1000000, (8, 8, 1))
  """
  if config.pool.examples:
    told = config.pool
    size, shape, dtype = told.examples, tuple(told.input_shape), np.dtype(told.input_dtype)
    classes, weighted = told.classes, False
    if size < 1 or not shape or classes < 1:
      raise ValueError(
        f"pool.examples={size}, pool.input_shape={shape} and pool.classes={classes} are what the"
        " pool is like: give all three, or pool.examples=0 to look at the data"
      )
  else:
    dataset = data.open_rows(config.data)
    train, classes = dataset.train, dataset.classes
    size, shape, dtype = train.size, train.input_shape, train.input_dtype
    weighted = dataset.weights is not None
  if count is not None:
    try:
      size = int(float(count))
    except (ValueError, OverflowError):
      size = 0
    if size < 1 or size != float(count):
      raise ValueError(f"--pool={count} must be a whole number of examples, such as 1e9")
  sharding.padded_size(size)  # or too many
  # Any mean and deviation: those of the data are constants of the program as these are.
  normalize = lambda x: x if is_tokens(dtype) else (x.astype(np.float32) / 255 - 0.5) * 4
  return Examples(size, shape, dtype, classes, normalize, weighted)


def main(argv: list[str]) -> int:
  """The command."""
  del argv
  given = flags.FLAGS
  if not given.topology:
    raise ValueError("--topology is missing: what to compile for, such as v5e:4x4 or cuda:h100:8")
  # What is compiled for a machine that is not there can be written to the cache but not read.
  jax.config.update("jax_enable_compilation_cache", False)
  target = machine(given.topology)
  examples = examples_of(given.config, given.pool)
  report = compile_config(given.config, target, examples, fit=given.fit)
  tables.show(report)
  if given.json:
    write_json(given.json, {**report, "config": config_dict(given.config)})
  return 0 if report["fits"] else 1


if __name__ == "__main__":
  from jsel.training.command import run_main

  define_flags()
  run_main(main, default_config="configs/imagenet.py")
