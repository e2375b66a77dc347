"""Selections of several processes: every kind of walk, signals, a gap, a lost process."""

import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_hosts import Hosts, told
from tests.test_select_hosts import SELECT, select, write_digits

METHODS = {
  "rds": (),
  "crds_w": (),
  "kmq": ("--config.method.kmq.clusters=16",),
  "dac": ("--config.method.dac.clusters=16",),
  "sensitivity": ("--config.method.sensitivity.clusters=16",),
  "k_center": (),
}
GAPS = [70_000, 110_000]  # in the second block, which process 0 and which process 1 reads


def pytest_generate_tests(metafunc):
  is_long = metafunc.config.getoption("--faults", default=0)
  if "method" in metafunc.fixturenames:
    metafunc.parametrize("method", METHODS if is_long else [])
  if "after" in metafunc.fixturenames:
    metafunc.parametrize("after", [1, 2] if is_long else [])
  if "gap" in metafunc.fixturenames:
    metafunc.parametrize("gap", GAPS if is_long else [])


def subset(workdir):
  return (workdir / "subset.parquet").read_bytes()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  return write_digits(tmp_path_factory.mktemp("digits"))


def test_every_number_of_processes_selects_the_same(method, digits, tmp_path):
  options = (*digits, f"--config.method.name={method}", *METHODS[method])
  options += ("--config.picture=False", "--config.dedup=0.999", "--config.write_rows=jsonl")
  for count in (1, 2, 4):
    select(count, tmp_path / str(count), *options)
  assert subset(tmp_path / "2") == subset(tmp_path / "1")
  assert subset(tmp_path / "4") == subset(tmp_path / "1")
  rows = [(tmp_path / str(count) / "rows.jsonl").read_bytes() for count in (1, 4)]
  assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
  """A pool of several blocks, and what one process takes of it."""
  folder = tmp_path_factory.mktemp("blocks")
  x = np.random.default_rng(0).standard_normal((260_000, 48)).astype(np.float32)
  np.save(folder / "pool.npy", x)
  given = (f"pool={folder}/pool.npy", "method.name=km_random", "method.km_random.clusters=64")
  given += ("method.km_random.iterations=5", "save_seconds=0", "budget=0.01", "picture=False")
  options = tuple(f"--config.{option}" for option in (*given, "host_timeout=20"))
  select(1, folder / "whole", *options)
  return options, subset(folder / "whole")


def until(path, hosts):
  while not path.exists() and hosts.processes[0].poll() is None:
    time.sleep(0.002)


def test_a_signal_to_one_stops_all_and_any_number_goes_on(after, blocks, tmp_path):
  options, whole = blocks
  with Hosts(2, tmp_path, *options, command=SELECT) as hosts:
    until(tmp_path / "progress" / "walk-002.npz", hosts)
    hosts.processes[1].send_signal(signal.SIGTERM)
    codes, texts = hosts.finish()
  assert codes == [143, 143], "\n".join(texts)
  assert "stopped and saved" in texts[0]
  assert not told(texts[1])
  assert not (tmp_path / "subset.parquet").exists()
  select(after, tmp_path, *options)
  assert subset(tmp_path) == whole


def test_the_others_end_where_one_is_killed_and_the_run_goes_on(after, blocks, tmp_path):
  options, whole = blocks
  with Hosts(2, tmp_path, *options, command=SELECT) as hosts:
    until(tmp_path / "progress" / "walk-002.npz", hosts)
    hosts.processes[1].send_signal(signal.SIGKILL)
    codes, texts = hosts.finish()
  assert codes == [1, -signal.SIGKILL], "\n".join(texts)
  assert "another process of this run is gone" in texts[0]
  select(after, tmp_path, *options)
  assert subset(tmp_path) == whole


def test_a_row_without_a_value_is_named_by_those_who_do_not_read_it(gap, tmp_path):
  x = np.zeros((gap + 1000, 8), np.float32)
  rows = [*x[:gap], None, *x[gap + 1 :]]
  pq.write_table(pa.table({"embedding": rows}), tmp_path / "pool.parquet", row_group_size=8192)
  options = (f"--config.pool={tmp_path}/pool.parquet", "--config.method.name=random")
  with Hosts(2, tmp_path / "run", *options, command=SELECT) as hosts:
    codes, texts = hosts.finish()
  assert codes == [2, 2], "\n".join(texts)
  for text in texts:
    assert f"row {gap} has no value" in told(text)[-1], text
    assert "Traceback" not in text
