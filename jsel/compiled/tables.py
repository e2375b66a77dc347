"""The report of a compilation ahead of time, for people."""

from typing import Any

import rich.console
import rich.table

from jsel.compiled.programs import SELECT
from jsel.training.amounts import readable

SCOPES = {"model": "model and update", SELECT: "selection", "jsel_gather": "gather"}
SCOPES["jsel_exposure"] = "exposure"


def show(report: dict[str, Any]) -> None:
  """Prints ``report`` (of `jsel.aot.compile_config`) as tables; plain where nobody looks."""
  console = rich.console.Console(highlight=False)
  if not console.is_terminal:
    console = rich.console.Console(highlight=False, width=100)
  pool = report["pool"]
  shape = ", ".join(map(str, pool["input_shape"]))
  console.print(
    f"{report['devices']} x {report['device_kind']} ({report['topology']}), {report['compiler']},"
    f" JAX {report['jax']}\n{report['model']}: {report['parameters']:,} parameters; batch"
    f" {report['batch_size']}, feed {report['feed']}, selector {report['selector']};"
    f" pool {pool['examples']:,} x [{shape}] {pool['input_dtype']}",
    markup=False,
  )
  for title, table, remark in (
    _programs(report),
    _operations(report),
    _collectives(report),
    _memory(report),
  ):
    console.print(f"\n{title}", markup=False)
    console.print(table)
    if remark:
      console.print(remark, markup=False)
  console.print(f"\n{verdict(report)}", markup=False, soft_wrap=True)


def verdict(report: dict[str, Any]) -> str:
  """One line: it fits, or what to change."""
  total, limit = report["memory"]["total"], report["memory_of_device"]
  taken = f"{readable(total)} of {readable(limit)} a device"
  if report["fits"]:
    return f"fits: {taken}"
  why = f" ({report['refused']})" if report["refused"] else ""
  return f"does not fit: {taken}{why}. Change: {'; '.join(remedies(report))}"


def remedies(report: dict[str, Any]) -> list[str]:
  """What makes a run smaller, that which takes most first."""
  memory = dict(report["memory"])
  options = {
    "pool": "--config.feed=planned, which leaves the rows on the host",
    "selector": "more devices, or a selector that keeps less of an example",
    "next plan": "a selector that goes by feedback, whose plans are not made ahead",
    "parameters": "--config.sharding.fsdp, which splits the parameters",
    "optimizer": "--config.sharding.fsdp, which splits the optimizer's state",
    "fit": "a smaller fit of the selector",
    "plan": "more devices",
    "batches": "a smaller --config.batch_size, or more devices",
  }
  activations = ["--config.accumulate"]
  if report["remat"] == "none":
    activations.insert(0, f"--config.model.{report['model']}.remat=blocks")
  for name in ("step", "update"):
    options[name] = " or ".join([*activations, "a smaller --config.batch_size"])
  if report["feed"] != "resident":
    options["pool"] = "more devices"
  found = []
  for name, size in sorted(memory.items(), key=lambda item: -item[1]):
    remedy = options.get(name.removeprefix("temporaries of "))
    if name != "total" and remedy and size > 0.05 * report["memory_of_device"]:
      found.append(f"{name} {readable(size)}: {remedy}")
  return found or ["more devices"]


Part = tuple[str, rich.table.Table, str]  # title, table, remark


def _table(*columns: str) -> rich.table.Table:
  table = rich.table.Table(box=None, pad_edge=False)
  for place, column in enumerate(columns):
    table.add_column(column, justify="right" if place else "left", no_wrap=True)
  return table


def _programs(report: dict[str, Any]) -> Part:
  names = ("arguments", "outputs", "aliased", "temporaries", "code")
  table = _table("program", "steps a call", *names, "FLOPs*")
  for program in report["programs"]:
    row = [readable(program[name]) for name in names]
    flops = "-" if program["flops"] is None else f"{program['flops']:.3g}"
    steps = f"{program['steps']:g}" if program["steps"] else "once"
    table.add_row(program["name"], steps, *row, flops)
  remark = "* the compiler's own count of a device, loops once; - where it has none"
  return "Programs, bytes of a device", table, remark


def _operations(report: dict[str, Any]) -> Part:
  table = _table("", "in products", "others, about", "share")
  found = report["operations"]
  all_of = sum(part["products"] + part["others"] for part in found.values())
  for scope, part in found.items():
    own = part["products"] + part["others"]
    share = f"{100 * own / max(all_of, 1):.3f} %"
    table.add_row(SCOPES[scope], f"{part['products']:.3g}", f"{part['others']:.3g}", share)
  left_out = sorted({name for part in found.values() for name in part["uncounted"]})
  remarks = [f"not counted: {', '.join(left_out)}"] if left_out else []
  if any(part["open_loops"] for part in found.values()):
    remarks.append("loops of unknown length count once")
  return "Arithmetic of a step on all devices, as traced", table, "; ".join(remarks)


def _collectives(report: dict[str, Any]) -> Part:
  title = (
    f"Collectives of a step, bytes of a device; a plan serves {report['steps_per_plan']} steps"
  )
  table = _table("kind", "executions", "put in", "sent", "of selection")
  found = report["collectives"]
  for kind in sorted(found, key=lambda kind: (kind == "all", kind)):
    total = found[kind]
    share = 100 * total["selection_wire_bytes"] / max(total["wire_bytes"], 1e-9)
    table.add_row(
      kind,
      f"{total['executions']:.1f}",
      readable(total["operand_bytes"]),
      readable(total["wire_bytes"]),
      f"{share:.3f} %",
    )
  loops = found.get("all", {}).get("open_loops", 0)
  remark = f"{loops} are in loops of unknown length and count once" if loops else ""
  return title, table, remark


def _memory(report: dict[str, Any]) -> Part:
  table = _table("", "bytes", "share")
  limit = report["memory_of_device"]
  for name, size in report["memory"].items():
    if size:
      table.add_row(name, readable(size), f"{100 * size / limit:.2f} %")
  table.add_row("there is", readable(limit), "")
  return "Memory of a device", table, f"there is: {report['memory_source']}"
