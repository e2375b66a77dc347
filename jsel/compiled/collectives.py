"""What a compiled program sends between devices: kinds, bytes, and on whose behalf."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from jsel.compiled.hlo import Computation, Instruction, Module, parse, size_in_bytes

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
# Instructions that hand on what another computed.
TRANSPARENT = ("bitcast", "copy", "reshape", "transpose", "convert", "copy-start", "copy-done")


class Collective(NamedTuple):
  """One collective of a compiled program. Bytes are those of one device and one execution."""

  kind: str
  name: str
  operand_bytes: int  # what the device puts in
  wire_bytes: float  # what it sends in the ring algorithm, see `collectives`
  group: int  # devices that take part together
  times: int  # executions in a call of the program, 1 for a loop of unknown length
  counted: bool  # whether `times` is known
  in_loop: bool
  conditional: bool  # inside a branch that may not be taken
  parts: tuple[tuple[str, int], ...]  # (op_name, operand bytes) of what was combined in it


class Total(NamedTuple):
  """A sum over collectives, in a call of the program and on one device."""

  count: int  # executions
  operand_bytes: float
  wire_bytes: float


def collectives(text: str, *, devices: int) -> list[Collective]:
  r"""Every collective of a compiled program.

  A start / done pair counts once, and so does a collective that a TPU's compiler has cut over
  several fusions (they share a ``chain_id``). The bytes on the wire are those that each of g
  devices sends in the ring algorithms, S the bytes of the operand on one device:

  ==================  =======================
  all-reduce          :math:`2 S (g - 1) / g`
  reduce-scatter      :math:`S (g - 1) / g`
  all-gather          :math:`S (g - 1)`
  all-to-all          :math:`S (g - 1) / g`
  collective-permute  :math:`S`
  ==================  =======================

  Compilers may choose other algorithms.

  A compiler combines collectives of different origin in one. ``parts`` says how many bytes are
  whose, by the operation that reads its result or else made its operand.

  Args:
    text: ``compiled.as_text()``.
    devices: that the program runs on.

  Raises:
    ValueError: if ``text`` is no such text.

  >>> text = '''HloModule f
  ... %add (a: f32[], b: f32[]) -> f32[] {
  ...   %a = f32[] parameter(0)
  ...   %b = f32[] parameter(1)
  ...   ROOT %sum = f32[] add(%a, %b)
  ... }
  ... ENTRY %main (x: f32[1024]) -> f32[1024] {
  ...   %x = f32[1024]{0} parameter(0)
  ...   ROOT %y = f32[1024]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  ... }'''
  >>> found = collectives(text, devices=8)[0]
  >>> found.kind, found.operand_bytes, found.wire_bytes
  ('all-reduce', 4096, 7168.0)
  """
  module = parse(text)
  found = list(_visit(module, module.computations[module.entry], 1, True, False, False))
  chains: dict[str, list[tuple[bool, Collective]]] = {}
  alone = []
  for starts, chain, collective in found:
    if chain:
      chains.setdefault(chain, []).append((starts, collective))
    else:
      alone.append(collective)
  # The others of a chain wait for what the first has begun, perhaps inside of another loop.
  first = [max(links, key=lambda link: link[0])[1] for links in chains.values()]
  sent = lambda collective: collective._replace(
    group=collective.group or devices,
    wire_bytes=_wire(collective.kind, collective.operand_bytes, collective.group or devices),
  )
  return [sent(collective) for collective in alone + first]


def summarize(found: list[Collective], scope: str = "", *, branches: bool = True) -> dict:
  """Sums by kind, ``{kind: Total}``, of what was done under the named scope (of all if "").

  A combined collective is counted where any of its parts is, its bytes by the parts.

  Args:
    found: from `collectives`.
    scope: name given to ``jax.named_scope``.
    branches: whether to count what is inside a branch.
  """
  totals: dict[str, Total] = {}
  for collective in found:
    if collective.conditional and not branches:
      continue
    share = 1.0
    if scope:
      own = sum(share_of(op_name, scope) * size for op_name, size in collective.parts)
      share = own / max(collective.operand_bytes, 1)
    if share:
      old = totals.get(collective.kind, Total(0, 0, 0))
      times = collective.times
      totals[collective.kind] = Total(
        old.count + times,
        old.operand_bytes + times * share * collective.operand_bytes,
        old.wire_bytes + times * share * collective.wire_bytes,
      )
  return totals


def share_of(op_name: str, scope: str) -> float:
  """1 if an instruction of that name was made under ``scope``, 0 if not, between if merged.

  >>> share_of("jit(f)/select/psum", "select"), share_of("jit(f)/transpose(jvp(select))", "select")
  (1.0, 1.0)
  >>> share_of("jit(f)/(select/psum:mean/psum)", "select"), share_of("jit(f)/selected", "select")
  (0.5, 0.0)
  """
  merged = re.search(r"\(([^()]*(?:\([^()]*\)[^()]*)*:.*)\)$", op_name)
  names = merged[1].split(":") if merged else [op_name]
  inside = [re.search(rf"(?<![\w.]){re.escape(scope)}(?![\w.])", name) for name in names]
  return sum(hit is not None for hit in inside) / len(names)


def _wire(kind: str, size: int, group: int) -> float:
  """Bytes that one device sends in a ring of ``group``."""
  if kind == "all-reduce":
    return 2 * size * (group - 1) / group
  if kind == "all-gather":
    return float(size * (group - 1))
  if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
    return size * (group - 1) / group
  return float(size)


def _visit(
  module: Module,
  computation: Computation,
  times: int,
  counted: bool,
  in_loop: bool,
  conditional: bool,
) -> Iterator[tuple[bool, str, Collective]]:
  """All collectives of ``computation`` and what it calls: (starts a chain, chain, collective)."""
  starts = any("AsyncCollectiveStart" in i.attributes for i in computation.instructions.values())
  for instruction in computation.instructions.values():
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
      shapes = [computation.instructions[name].shape for name in instruction.operands]
      chain = re.search(r'chain_id="(\w+)"', instruction.attributes)
      yield (
        starts,
        f"{chain[1]} {kind} {' '.join(shapes)}" if chain else "",
        Collective(
          kind,
          instruction.name,
          sum(map(size_in_bytes, shapes)),
          0.0,
          _group(instruction),
          times,
          counted,
          in_loop,
          conditional,
          tuple(_parts(module, computation, instruction)),
        ),
      )
      continue
    calls = module.computations.get
    if instruction.opcode == "while":
      body = calls(instruction.attribute("body"))
      length = _trip_count(module, computation, instruction)
      if body:
        known = counted and length is not None
        yield from _visit(module, body, times * (length or 1), known, True, conditional)
    elif instruction.opcode == "conditional":
      for branch in _branches(instruction):
        yield from _visit(module, module.computations[branch], times, counted, in_loop, True)
    elif instruction.opcode in ("fusion", "call", "async-start"):
      callee = calls(instruction.attribute("calls") or instruction.attribute("to_apply"))
      if callee:
        yield from _visit(module, callee, times, counted, in_loop, conditional)


def _branches(instruction: Instruction) -> list[str]:
  listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
  if listed:
    return [name.strip().removeprefix("%") for name in listed[1].split(",")]
  return [instruction.attribute(f"{side}_computation") for side in ("true", "false")]


def _group(instruction: Instruction) -> int:
  """Devices in one group, 0 for all."""
  text = instruction.attributes
  if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
    return int(found[2])
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", found[1]))
    group = 1
    for axis in re.findall(r"'([^']*)'", found[2]):
      group *= int(sizes[axis])
    return group
  return 0


def _trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
  """How often a while loop runs: as noted by the compiler, or if it counts up from a constant."""
  noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if noted:
    return int(noted[1])
  condition = module.computations[loop.attribute("condition")]
  body = module.computations[loop.attribute("body")]
  test = condition.instructions[condition.root]
  first = _source(computation, loop.operands[0])
  last = _source(body, body.root)
  if test.opcode != "compare" or first.opcode != "tuple" or last.opcode != "tuple":
    return None
  counter, bound = (_source(condition, name) for name in test.operands)
  if counter.opcode != "get-tuple-element" or test.attribute("direction") != "LT":
    return None
  place = int(counter.attribute("index"))
  # A bound that does not change may be handed through the loop.
  if bound.opcode == "get-tuple-element":
    bound_place = int(bound.attribute("index"))
    bound = _source(computation, first.operands[bound_place])
    if _source(body, last.operands[bound_place]).opcode != "get-tuple-element":
      return None
  begin = _source(computation, first.operands[place])
  step = _source(body, last.operands[place])
  if step.opcode != "add":
    return None
  by = [_source(body, name) for name in step.operands]
  steps = [int(s.operands[0]) for s in by if s.opcode == "constant"]
  if bound.opcode != "constant" or begin.opcode != "constant" or len(steps) != 1 or steps[0] < 1:
    return None
  return max(-(-(int(bound.operands[0]) - int(begin.operands[0])) // steps[0]), 0)


def _source(computation: Computation, name: str) -> Instruction:
  """What computed ``name``, behind copies and reshapes."""
  instruction = computation.instructions[name]
  while instruction.opcode in TRANSPARENT:
    instruction = computation.instructions[instruction.operands[0]]
  return instruction


def _parts(
  module: Module, computation: Computation, collective: Instruction
) -> Iterator[tuple[str, int]]:
  """(op_name, bytes) of each operand, and of each piece of one that was put together of several."""
  readers = {
    instruction.attribute("index"): instruction.op_name
    for instruction in computation.instructions.values()
    if instruction.opcode == "get-tuple-element" and instruction.operands == (collective.name,)
  }
  several = len(collective.operands) > 1
  for place, operand in enumerate(collective.operands):
    pieces = list(_pieces(module, computation, operand))
    if len(pieces) > 1:
      yield from ((origin or collective.op_name, size) for origin, size in pieces)
    else:
      origin = several and (readers.get(str(place)) or pieces[0][0])
      yield origin or collective.op_name, pieces[0][1]


def _pieces(module: Module, computation: Computation, name: str) -> Iterator[tuple[str, int]]:
  """(op_name, bytes) of what ``name`` was concatenated from, itself if it was not."""
  source = _source(computation, name)
  if source.opcode == "concatenate":
    for operand in source.operands:
      yield from _pieces(module, computation, operand)
    return
  callee = module.computations.get(source.attribute("calls"))
  if source.opcode == "fusion" and callee:
    root = _source(callee, callee.root)
    if root.opcode == "concatenate":
      for operand in root.operands:
        inner = _source(callee, operand)
        if inner.opcode == "parameter":
          yield from _pieces(module, computation, source.operands[int(inner.operands[0])])
        else:
          yield inner.op_name, size_in_bytes(inner.shape)
      return
    source = source._replace(attributes=source.attributes + root.attributes)
  origin = "" if source.opcode == "parameter" else source.op_name
  yield origin, size_in_bytes(computation.instructions[name].shape)
