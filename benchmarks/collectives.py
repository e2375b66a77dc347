"""What each kernel sends between devices, read from its compiled program, and what it has to.

    python -m benchmarks.collectives

Compiles every kernel that a run steps through for 1, 2, 4 and 8 devices of a CPU (nothing is run)
and adds up its collectives: bytes that one device sends in the ring algorithms, as
`jsel.compiled.collectives` defines them. Beside it stands the least that a device has to send for
what the kernel is to know, with f = (D - 1) / D for D devices:

    a sum of S bytes, known everywhere                       2 f S
    a list of S bytes, spread evenly, known everywhere         f S
    a list of S bytes on every device, known everywhere  (D - 1) S
    S bytes that each device is to have, spread evenly         f S

Programs for accelerators differ where a kernel asks for the platform: there a threshold is found by
eight sums of 15 counts, here by two of 65,536. Leaves benchmarks/results/collectives.json and
prints its table.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jsel
from benchmarks.machine import machine
from jsel.compiled.collectives import Collective, collectives
from jsel.kernels import gather, kmeans, moments, nth, reduce, sae, scatter, scores, topk
from jsel.sharding import DATA_AXIS

DEVICES = (1, 2, 4, 8)
N, B, D, K = 2**20, 1024, 64, 256  # rows, batch, columns, clusters
TOP, HALF = 1024, N // 2  # rows that a top-k takes
IMAGE = 224 * 224 * 3  # bytes
LATENTS, STEPS = 1024, 8
ROOT = pathlib.Path(__file__).parent.parent


class Case(NamedTuple):
  name: str
  shapes: str
  kernel: Callable[..., Any]  # of arrays
  arguments: tuple[tuple[tuple[int, ...], Any, bool], ...]  # (shape, dtype, split by rows)
  minimum: Callable[[int], float]  # devices -> bytes
  why: str  # what the minimum is of
  counts: Callable[[Collective], bool] = lambda collective: True
  per: int = 1  # what is counted is divided by
  split: bool = False  # inside a shard_map of one's own, with a result split by rows


def share(devices: int) -> float:
  return (devices - 1) / devices


def everywhere(size: float) -> Callable[[int], float]:
  """Of a list spread evenly."""
  return lambda devices: share(devices) * size


def summed(size: float) -> Callable[[int], float]:
  return lambda devices: 2 * share(devices) * size


def rows(*shape: int, dtype: Any = jnp.float32) -> tuple[tuple[int, ...], Any, bool]:
  return shape, dtype, True


def same(*shape: int, dtype: Any = jnp.float32) -> tuple[tuple[int, ...], Any, bool]:
  return shape, dtype, False


def in_loop(collective: Collective) -> bool:
  return collective.in_loop and not collective.conditional


def gather_rows(method: gather.Method) -> Callable[..., jax.Array]:
  return lambda x, index: gather.gather(
    x, index, split=True, method=method, axis_name=DATA_AXIS
  )  # fmt: skip


def gather_case(name: str, method: gather.Method, **options: Any) -> Case:
  return Case(
    name,
    f"{B:,} of images [224, 224, 3] uint8",
    gather_rows(method),
    (rows(2**14, IMAGE, dtype=jnp.uint8), same(B, dtype=jnp.int32)),
    lambda devices: share(devices) * B / devices * IMAGE,
    "the b / D rows that a device wants",
    split=True,
    **options,
  )


def cases() -> list[Case]:
  tiles = jax.eval_shape(nth.count_tiles, jax.ShapeDtypeStruct((N,), bool))
  tile_rows = tuple(rows(*part.shape, dtype=part.dtype) for part in tiles)
  select = lambda words, ends, first, positions, values, axis_name: nth.select(
    nth.Tiles(words, ends, first), positions, values=values, axis_name=axis_name
  )
  fit_sae = lambda x, axis_name: sae.fit(
    jax.random.key(0),
    x,
    optax.adam(1e-3),  # pyrefly: ignore
    latents=LATENTS,
    k=8,
    steps=STEPS,
    batch_size=B,
    axis_name=axis_name,
  )
  floats = rows(N)
  table = rows(N, D)
  ids = same(B, dtype=jnp.int32)
  first_round = lambda collective: not collective.in_loop
  statistics = 4 * (3 * K * D + 3 * K + K)
  return [
    Case(
      "top_k",
      f"k = {TOP:,} of {N:,}",
      lambda scores, axis_name: topk.top_k(scores, TOP, axis_name=axis_name),
      (floats,),
      everywhere(8 * TOP),
      "k scores and ids",
    ),
    Case(
      "top_k, many",
      f"k = {HALF:,} of {N:,}",
      lambda scores, axis_name: topk.top_k(scores, HALF, axis_name=axis_name),
      (floats,),
      lambda devices: everywhere(8 * HALF)(devices) + summed(2 * 4 * 2**16)(devices),
      "k scores and ids; two sums of 65,536 counts",
    ),
    Case(
      "top_k_mask",
      f"{N:,}",
      lambda scores, k, axis_name: topk.top_k_mask(scores, k, axis_name=axis_name),
      (floats, same(dtype=jnp.int32)),
      lambda devices: summed(2 * 4 * 2**16)(devices) + 4 * (devices - 1),
      "two sums of 65,536 counts; a count of each device",
    ),
    Case(
      "nth.count_tiles",
      f"{N:,}",
      lambda mask, axis_name: nth.count_tiles(mask, axis_name=axis_name),
      (rows(N, dtype=jnp.bool_),),
      lambda devices: 4 * (devices - 1),
      "a count of each device",
    ),
    Case(
      "nth.select",
      f"{B:,} of {N:,}, with weights",
      select,
      (*tile_rows, ids, floats),
      everywhere(8 * B),
      "b ids and weights",
    ),
    Case(
      "gather, everywhere",
      f"{B:,} of [{D}] float32",
      lambda x, index, axis_name: gather.gather(x, index, axis_name=axis_name),
      (table, ids),
      everywhere(4 * B * D),
      "b rows",
    ),
    gather_case("gather, reduce_scatter", "reduce_scatter"),
    gather_case("gather, all_to_all", "all_to_all", counts=first_round),
    gather_case("gather, all_to_all, a round more", "all_to_all", counts=in_loop),
    Case(
      "scatter",
      f"{B:,} into {N:,}",
      lambda x, index, values, axis_name: scatter.scatter(x, index, values, axis_name=axis_name),
      (floats, ids, same(B)),
      lambda devices: 0.0,
      "each writes its own",
    ),
    Case(
      "moments.update",
      f"[{N:,}, {D}]",
      lambda x, axis_name: moments.update(moments.init(D), x, axis_name=axis_name),
      (table,),
      lambda devices: summed(4 * (2 * D + 2))(devices) + everywhere(4 * D)(devices),
      "sums of two [d], a count and the first row's id; that row",
    ),
    Case(
      "moments.update, covariance",
      f"[{N:,}, 2048]",
      lambda x, axis_name: moments.update(
        moments.init(2048, covariance=True), x, axis_name=axis_name
      ),
      (rows(N, 2048),),
      lambda devices: summed(4 * (2048**2 + 2048 + 2))(devices) + everywhere(4 * 2048)(devices),
      "sums of [d, d], [d], a count and the first row's id; that row",
    ),
    Case(
      "kmeans.fit, an iteration",
      f"[{N:,}, {D}], k = {K}",
      lambda x, centers, axis_name: kmeans.fit(x, centers, axis_name=axis_name),
      (table, same(K, D)),
      summed(statistics),
      "a sum of three limbs of [k, d] and [k], and of the sizes [k]",
      in_loop,
    ),
    Case(
      "sae.fit, a step",
      f"[{N:,}, {D}], batch {B:,}",
      fit_sae,
      (table,),
      everywhere(4 * B * D),
      "b rows",
      in_loop,
      STEPS,
    ),
    Case(
      "rank01, exact",
      f"{N:,}",
      lambda x, axis_name: scores.rank01(x, axis_name=axis_name),
      (floats,),
      everywhere(4 * N),
      "all scores",
    ),
    Case(
      "rank01, histogram",
      f"{N:,}, 4,096 bins",
      lambda x, axis_name: scores.rank01(x, method="histogram", axis_name=axis_name),
      (floats,),
      summed(4 * (4096 + 3 + 3)),
      "a sum of 4,099 counts, the count of rows and two extremes",
    ),
    Case(
      "fixed_tree_sum",
      f"[{N:,}, {D}]",
      lambda x, axis_name: reduce.fixed_tree_sum(x, axis_name=axis_name),
      (table,),
      summed(4 * D),
      "a sum of [d]",
    ),
    Case(
      "fixed_tree_sum, wide",
      "[1,024, 1,048,576]",
      lambda x, axis_name: reduce.fixed_tree_sum(x, axis_name=axis_name),
      (rows(1024, 2**20),),
      summed(4 * 2**20),
      "a sum of [d]",
    ),
    Case(
      "fixed_point_sum",
      f"{N:,}",
      lambda x, axis_name: reduce.fixed_point_sum(x, axis_name=axis_name),
      (rows(N, dtype=jnp.int32),),
      summed(16),
      "a sum of four limbs",
    ),
  ]


def compiled_text(case: Case, mesh: Mesh) -> str:
  """The program of ``case`` over ``mesh``, from shapes alone."""
  specs = [P(DATA_AXIS) if split else P() for _, _, split in case.arguments]
  shapes = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for (shape, dtype, _), spec in zip(case.arguments, specs, strict=True)
  ]
  local = case.kernel if case.split else lambda *arrays: case.kernel(*arrays, axis_name=DATA_AXIS)
  # Whether a result is split or not moves nothing: as if each device kept its own.
  mapped = jax.shard_map(
    lambda *arrays: jax.tree.map(lambda leaf: leaf[None], local(*arrays)),
    mesh=mesh,
    in_specs=tuple(specs),
    out_specs=P(DATA_AXIS),
  )
  return jax.jit(mapped).lower(*shapes).compile().as_text() or ""


def measured(case: Case, devices: int) -> dict[str, Any]:
  mesh = jsel.make_mesh(jax.devices()[:devices])
  found = filter(case.counts, collectives(compiled_text(case, mesh), devices=devices))
  # A collective of one device is none.
  found = [collective for collective in found if collective.group > 1]
  kinds: dict[str, dict[str, float]] = {}
  for collective in found:
    kind = kinds.setdefault(collective.kind, {"count": 0.0, "operand_bytes": 0.0, "sent": 0.0})
    kind["count"] += collective.times / case.per
    kind["operand_bytes"] += collective.times * collective.operand_bytes / case.per
    kind["sent"] += collective.times * collective.wire_bytes / case.per
  return {
    "devices": devices,
    "kinds": kinds,
    "sent_bytes": sum(kind["sent"] for kind in kinds.values()),
    "minimum_bytes": case.minimum(devices),
  }


def table(result: dict[str, Any]) -> str:
  """A row a case, of the most devices, as Markdown."""
  lines = ["| kernel | what | collectives | bytes sent | the least | ratio |", f"|{6 * '---|'}"]
  for row in result["rows"]:
    last = row["devices"][-1]
    kinds = ", ".join(f"{kind['count']:.3g} {name}" for name, kind in last["kinds"].items())
    sent, least = last["sent_bytes"], last["minimum_bytes"]
    ratio = f"{sent / least:.3g}" if least else ""
    lines.append(
      f"| {row['kernel']} | {row['shapes']} | {kinds or 'none'} | {sent:,.0f} | {least:,.0f} |"
      f" {ratio} |"
    )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  rows = [
    {
      "kernel": case.name,
      "shapes": case.shapes,
      "minimum_of": case.why,
      "devices": [measured(case, devices) for devices in DEVICES],
    }
    for case in cases()
  ]
  result = {"machine": machine(), "rows": rows}
  path = ROOT / "benchmarks" / "results" / "collectives.json"
  path.write_text(json.dumps(result, indent=2) + "\n")
  print(table(result))


if __name__ == "__main__":
  jax.config.update("jax_num_cpu_devices", max(DEVICES))
  app.run(main)
