"""The text of a compiled program (XLA's HLO) as computations of instructions."""

import re
from typing import NamedTuple

# Bits of an element; what is not here holds no data (token, opaque).
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
BITS |= {f"{kind}{bits}": bits for kind in "su" for bits in (1, 2, 4, 8, 16, 32, 64)}
BITS |= {f"f{bits}": bits for bits in (16, 32, 64)}

ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str  # "f32[8,4]{1,0}", or a tuple of such
  opcode: str
  operands: tuple[str, ...]  # names; of a constant or a parameter what stands in its brackets
  attributes: str  # the rest of the line

  @property
  def op_name(self) -> str:
    """The scopes and the primitive that it was made from, "" if unknown."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  def attribute(self, name: str) -> str:
    """What an attribute names, without its "%"; "" if it has none of that name."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
    return found[1] if found else ""


class Computation(NamedTuple):
  """Instructions by name, in their order."""

  name: str
  instructions: dict[str, Instruction]
  root: str


class Module(NamedTuple):
  """A program."""

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """The program that ``compiled.as_text()`` gave.

  Raises:
    ValueError: if the text holds no entry computation.

  >>> module = parse('''HloModule f
  ... ENTRY %main (x: f32[4]) -> f32[4] {
  ...   %x = f32[4]{0} parameter(0)
  ...   ROOT %y = f32[4]{0} add(%x, %x), metadata={op_name="jit(f)/add"}
  ... }''')
  >>> main = module.computations[module.entry]
  >>> main.instructions[main.root].operands, main.instructions[main.root].op_name
  (('x', 'x'), 'jit(f)/add')
  """
  computations: dict[str, Computation] = {}
  entry, name, instructions, root = "", "", {}, ""
  for line in text.splitlines():
    if line.startswith("}"):
      computations[name] = Computation(name, instructions, root)
    elif line.startswith(" "):
      found = INSTRUCTION.match(line)
      if found and name:
        instruction = _instruction(found[2], found[3])
        instructions[instruction.name] = instruction
        root = instruction.name if found[1] else root
    elif (found := COMPUTATION.match(line)) and not line.startswith("HloModule"):
      name, instructions, root = found[2], {}, ""
      entry = name if found[1] else entry
  if not entry:
    raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
  return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
  """``shape opcode(operands), attributes`` taken apart; shapes and operands hold brackets."""
  end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
  shape, rest = text[:end], text[end:].lstrip()
  opcode, rest = rest.split("(", 1)
  end = _closing("(" + rest) - 1
  inside = re.sub(r"/\*.*?\*/", "", rest[:end])
  # An operand may be given with its shape: its name is the last word.
  words = (operand.split() for operand in _split(inside))
  return Instruction(
    name,
    shape,
    opcode,
    tuple(operand[-1].removeprefix("%") for operand in words if operand),
    rest[end + 1 :],
  )


def _closing(text: str) -> int:
  """Position of the bracket that closes the one that ``text`` begins with."""
  depth = 0
  for place, character in enumerate(text):
    depth += (character in "([{") - (character in ")]}")
    if not depth:
      return place
  raise ValueError(f"an instruction's brackets do not close: {text[:100]!r}")


def _split(text: str) -> list[str]:
  """``text`` at its commas outside of brackets."""
  parts, depth = [""], 0
  for character in text:
    depth += (character in "([{") - (character in ")]}")
    if character == "," and not depth:
      parts.append("")
    else:
      parts[-1] += character
  return parts


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
  """Dtype and dimensions of the array, or of all arrays in the tuple, that ``shape`` tells of.

  >>> arrays("(f32[8,4]{1,0:T(8,128)}, bf16[])")
  [('f32', (8, 4)), ('bf16', ())]
  """
  number = lambda text: int(text.removeprefix("<="))
  return [
    (dtype, tuple(number(size) for size in sizes.split(",") if size))
    for dtype, sizes in ARRAY.findall(shape)
    if dtype in BITS or dtype.startswith("f8")
  ]


def size_in_bytes(shape: str) -> int:
  """Bytes of what ``shape`` tells of, without the padding of a layout.

  >>> size_in_bytes("(f32[8,4]{1,0}, bf16[3])")
  134
  """
  total = 0
  for dtype, sizes in arrays(shape):
    elements = 1
    for size in sizes:
      elements *= size
    total += -(-elements * BITS.get(dtype, 8) // 8)
  return total
