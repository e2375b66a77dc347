"""What a training step sends, kind by kind, and how much of it is selection's."""

from typing import Any

from jsel.compiled.account import Account
from jsel.compiled.collectives import Collective, share_of
from jsel.compiled.programs import SELECT, Run


def traffic(run: Run, accounts: list[Account]) -> dict[str, dict[str, Any]]:
  """Sums by kind over what is called for one training step, on one device.

  A plan, and what makes its ids, counts with the share that one of its steps has to bear. Inside
  of a step's program the plan is what is conditional. Collectives of the fit are not counted.

  Returns:
    For every kind and for "all": ``executions``, ``operand_bytes``, ``wire_bytes`` (see
    `jsel.compiled.collectives`), ``selection_wire_bytes``, and ``open_loops``, how many of them
    are in loops of unknown length and counted once.
  """
  totals: dict[str, dict[str, Any]] = {}
  every = run.setup.budget.steps_per_plan
  for account in accounts:
    if not account.steps:
      continue
    plans_inside = account.name == "step" and not run.setup.candidates
    for collective in account.collectives:
      often = collective.times / account.steps
      if plans_inside and collective.conditional:
        often /= every
      share = 1.0 if account.name in ("plan", "ids") else selection_share(collective)
      for kind in (collective.kind, "all"):
        total = totals.setdefault(
          kind,
          {
            "executions": 0.0,
            "operand_bytes": 0.0,
            "wire_bytes": 0.0,
            "selection_wire_bytes": 0.0,
            "open_loops": 0,
          },
        )
        total["executions"] += often
        total["operand_bytes"] += often * collective.operand_bytes
        total["wire_bytes"] += often * collective.wire_bytes
        total["selection_wire_bytes"] += often * share * collective.wire_bytes
        total["open_loops"] += not collective.counted
  return totals


def selection_share(collective: Collective) -> float:
  """The part of a collective's bytes that is selection's."""
  own = sum(share_of(op_name, SELECT) * size for op_name, size in collective.parts)
  return own / max(collective.operand_bytes, 1)
