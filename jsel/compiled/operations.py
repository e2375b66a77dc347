"""Arithmetic of a traced program, by scope: products counted from shapes, the rest approximated."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

from jsel.compiled.collectives import share_of

# Data is moved, not computed.
MOVES = re.compile(
  "all_gather.*|all_to_all|axis_index|bitcast_convert_type|broadcast_in_dim|concatenate"
  "|convert_element_type|copy.*|create_token|device_put|dynamic_(update_)?slice|empty.*|expand_dims"
  "|full|gather|iota|optimization_barrier|pad|pbroadcast|pcast|ppermute|pvary"
  "|random_(fold_in|seed|unwrap|wrap)|reshape|reshard|rev|scatter|sharding_constraint|slice|split"
  "|squeeze|stop_gradient|transpose"
)
# As many as elements go in, not as come out.
REDUCTIONS = ("reduce", "argm", "cum", "psum", "pmax", "pmin", "reduce_scatter")
# Programs inside of one equation, and what in its parameters holds them.
CALLS = ("call_jaxpr", "fun_jaxpr", "jaxpr")
NO_CALLS = ("reduce", "reduce_window", "scatter", "scatter-add", "sort", "select_and_scatter")
# Their cost is not a count of elements.
UNCOUNTED = re.compile(
  "cholesky|custom_call|eigh?|ffi_call|fft|householder_product|lu|pallas_call|.*callback|qr"
  "|ragged_dot.*|schur|svd|triangular_solve|tridiagonal_solve"
)


class Operations(NamedTuple):
  """Arithmetic operations of a program on all devices together."""

  products: float = 0.0  # of matrix products and convolutions: two a multiply-add, exact
  others: float = 0.0  # about one for each element of a result; integers count alike
  in_open_loops: bool = False  # a loop of unknown length was counted once
  uncounted: tuple[str, ...] = ()  # primitives whose cost is left out

  @property
  def total(self) -> float:
    return self.products + self.others

  def plus(self, other: "Operations", times: float = 1) -> "Operations":
    """The sum with ``times`` as much as ``other``."""
    return Operations(
      self.products + times * other.products,
      self.others + times * other.others,
      self.in_open_loops or other.in_open_loops,
      tuple(sorted({*self.uncounted, *other.uncounted})),
    )


def operations(jaxpr: Any, scopes: tuple[str, ...] = ()) -> dict[str, Operations]:
  """Counts what a program computes, ``{scope: Operations}``, "" for what is in none of ``scopes``.

  Matrix products and convolutions are counted from their shapes: of a convolution only the
  products with what is neither padding nor the zeros that a stride's gradient puts in between.
  Everything else counts one an element of its result (a reduction: of its input; a sort or top-k
  of n: n log2 n), whatever its dtype; moving data counts nothing. A scan counts its length times,
  of a branch the more costly side, and what is inside ``shard_map`` for every device. What the
  compiler later leaves out or computes on all devices alike is not known here.

  Args:
    jaxpr: ``jax.jit(f).trace(...).jaxpr``.
    scopes: names given to ``jax.named_scope``; an operation is counted for the first of them that
      it was made under.

  >>> import jax, jax.numpy as jnp
  >>> x, y = jnp.zeros((8, 16)), jnp.zeros((16, 4))
  >>> operations(jax.make_jaxpr(lambda x, y: jnp.tanh(x @ y))(x, y))[""][:2]
  (1024.0, 32.0)
  """
  counted: dict[str, Operations] = {scope: Operations() for scope in ("", *scopes)}
  program = getattr(jaxpr, "jaxpr", jaxpr)
  _count(program, [True] * len(program.outvars), scopes, "", 1, counted)
  return counted


def _count(
  jaxpr: Any,
  wanted: list[bool],
  scopes: tuple[str, ...],
  outer: str,
  times: float,
  into: dict[str, Operations],
) -> None:
  """Adds what ``jaxpr``, called in the scope ``outer``, does ``times`` times for results wanted."""
  for equation, results in _alive(jaxpr, wanted):
    name, parameters = equation.primitive.name, equation.params
    stack = str(equation.source_info.name_stack)
    scope = outer or next((scope for scope in scopes if share_of(stack, scope)), "")
    inside = lambda inner, wanted, times, into, scope=scope: _count(
      getattr(inner, "jaxpr", inner), wanted, scopes, scope, times, into
    )
    everything = lambda inner: [True] * len(getattr(inner, "jaxpr", inner).outvars)
    if name == "cond":
      sides = []
      for branch in parameters["branches"]:
        sides.append({key: Operations() for key in into})
        inside(branch, results, times, sides[-1])
      costliest = max(sides, key=lambda side: sum(part.total for part in side.values()))
      for key, part in costliest.items():
        into[key] = into[key].plus(part)
    elif name == "while":
      for part in (parameters["cond_jaxpr"], parameters["body_jaxpr"]):
        inside(part, everything(part), times, into)
      into[scope] = into[scope]._replace(in_open_loops=True)
    elif name == "scan":
      body = parameters["jaxpr"]
      inside(body, everything(body), times * parameters["length"], into)
    elif name == "shard_map":
      inside(parameters["jaxpr"], results, times * parameters["mesh"].size, into)
    elif name not in NO_CALLS and (held := next((c for c in CALLS if c in parameters), None)):
      inside(parameters[held], results, times, into)
    else:
      into[scope] = into[scope].plus(_one(equation), times)


def _alive(jaxpr: Any, wanted: list[bool]) -> list[tuple[Any, list[bool]]]:
  """The equations that the wanted results need, and which of their own results are needed."""
  is_variable = lambda atom: not hasattr(atom, "val")  # else it is a literal
  needed = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and is_variable(v)}
  alive = []
  for equation in reversed(jaxpr.eqns):
    results = [variable in needed for variable in equation.outvars]
    if any(results) or equation.effects:
      needed.update(filter(is_variable, equation.invars))
      alive.append((equation, results))
  return alive


def _one(equation: Any) -> Operations:
  """What a single equation computes."""
  name = equation.primitive.name
  shapes = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
  results = [getattr(variable.aval, "shape", ()) for variable in equation.outvars]
  if name == "dot_general":
    (contracted, _), _ = equation.params["dimension_numbers"]
    inner = math.prod(shapes[0][axis] for axis in contracted)
    return Operations(products=2.0 * math.prod(results[0]) * inner)
  if name == "conv_general_dilated":
    return Operations(products=2.0 * _convolution(equation.params, shapes, results[0]))
  if UNCOUNTED.fullmatch(name):
    return Operations(uncounted=(name,))
  if MOVES.fullmatch(name):
    return Operations()
  if name in ("sort", "top_k", "approx_top_k"):
    axis = equation.params.get("dimension", equation.params.get("axis", -1))
    length = shapes[0][axis]
    return Operations(others=math.prod(shapes[0]) * math.ceil(math.log2(max(length, 2))))
  if name.startswith("scatter"):
    return Operations(others=math.prod(shapes[2]))
  if name.startswith(("reduce_window", "select_and_scatter")):
    window = equation.params.get("window_dimensions", ())
    return Operations(others=math.prod(results[0]) * math.prod(window))
  if name.startswith(REDUCTIONS):
    return Operations(others=math.prod(shapes[0]))
  return Operations(others=max(math.prod(shape) for shape in results))


def _convolution(parameters: dict[str, Any], shapes: list[Any], out: Any) -> float:
  """Multiply-adds of a convolution with what is in its input."""
  (lhs, rhs), numbers = shapes, parameters["dimension_numbers"]
  total = math.prod(out[axis] for axis in numbers.out_spec[:2])
  # The kernel has only the channels of its own group.
  total *= rhs[numbers.rhs_spec[1]]
  for place, (axis, kernel_axis, out_axis) in enumerate(
    zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
  ):
    low, _ = parameters["padding"][place]
    positions = (
      np.arange(out[out_axis])[:, None] * parameters["window_strides"][place]
      + np.arange(rhs[kernel_axis]) * parameters["rhs_dilation"][place]
      - low
    )
    dilation = parameters["lhs_dilation"][place]
    read = (positions >= 0) & (positions % dilation == 0) & (positions // dilation < lhs[axis])
    total *= int(read.sum())
  return float(total)
