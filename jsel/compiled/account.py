"""What a compiler says of a program: memory of a device, collectives, and whether it fits."""

import re
import time
from typing import NamedTuple

import jax

from jsel.compiled.collectives import Collective, collectives
from jsel.compiled.programs import Program, Run
from jsel.training.memory import device_bytes

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Account(NamedTuple):
  """A program as it was compiled; bytes are those of one device."""

  name: str
  steps: float  # training steps for which it is called once
  compile_seconds: float
  arguments: int
  outputs: int
  aliased: int  # outputs that take the place of arguments
  temporaries: int
  code: int
  flops: float | None  # as the compiler counts: of a device, each loop once; None if it does not
  collectives: list[Collective]
  refused: str  # "", or why the compiler found it too large
  needed: int  # bytes that it then said it needs

  @property
  def beside(self) -> int:
    """Bytes that a call takes beside its arguments, without the program itself."""
    return self.outputs - self.aliased + self.temporaries


def compile_program(program: Program, devices: int) -> Account:
  """Compiles ``program`` and reads what came of it; one that does not fit is no error."""
  begin = time.perf_counter()
  lowered = program.function.trace(*program.arguments).lower()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    seconds = time.perf_counter() - begin
    reason = " ".join(str(error).split("\n")[0].split())
    arguments = device_bytes(program.arguments)
    needed = _needed(str(error))
    return Account(
      program.name, program.steps, seconds, arguments, 0, 0, 0, 0, None, [], reason, needed
    )
  seconds = time.perf_counter() - begin
  memory = compiled.memory_analysis()
  cost = compiled.cost_analysis()  # None on the path to a GPU that is not there
  cost = cost[0] if isinstance(cost, list) and cost else cost
  return Account(
    program.name,
    program.steps,
    seconds,
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes,
    memory.alias_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.generated_code_size_in_bytes,
    cost.get("flops") if cost else None,
    collectives(compiled.as_text(), devices=devices),
    "",
    0,
  )


def _needed(message: str) -> int:
  """The largest amount of memory that an out-of-memory message tells of.

  >>> _needed("the total memory required for HLO temporaries (336.00G) exceeds ... (15.75G)")
  360777252864
  """
  amounts = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])i?B?\b", message)
  return max((int(float(number) * UNITS[unit]) for number, unit in amounts), default=0)


class Memory(NamedTuple):
  """What a run takes of a device, in bytes."""

  kept: dict[str, int]  # arrays that stay, by what they are
  padding: int  # that the compiler's layouts add to those
  temporaries: int  # of the program that needs most beside what is kept
  largest: str  # its name
  code: int  # of all programs

  @property
  def total(self) -> int:
    return sum(self.kept.values()) + self.padding + self.temporaries + self.code


def account_memory(run: Run, accounts: list[Account]) -> Memory:
  """Adds up what stays on a device and what the largest program takes beside it."""
  of, state = device_bytes, run.state
  kept = {
    "parameters": of((state.params, state.variables)),
    "optimizer": of(state.opt_state),
    "selector": of(state.selector),
    "plan": of(state.plan),
    "exposure": of(state.exposure),
    "pool": of(run.pool),
  }
  step = next(account for account in accounts if account.name in ("step", "update"))
  listed = sum(kept.values()) + of((state.step, state.key))
  if run.given is not None:
    # One batch is the step's argument; others are on their way.
    kept["batches"] = (1 + run.batches_ahead) * of(run.given)
    listed += of(run.given)
  if run.kept_plans:
    kept["next plan"] = kept["selector"] + kept["plan"]

  def beside(account: Account) -> int:
    if account.name == "plan" and run.kept_plans:
      return account.temporaries  # its outputs are the next plan
    if account.name == "fit":
      return account.beside + max(account.arguments - kept["pool"], 0)  # and the features
    return account.beside

  largest = max(accounts, key=beside)
  # What a compiler refuses it may tell the need of, arguments included.
  refused = max((account.needed - sum(kept.values()) for account in accounts), default=0)
  return Memory(
    kept,
    0 if step.refused else max(step.arguments - listed, 0),
    max(beside(largest), refused, 0),
    largest.name,
    sum(account.code for account in accounts),
  )
