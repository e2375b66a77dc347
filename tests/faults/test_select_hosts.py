"""Selections of several processes: every kind of walk, signals, a lock, a lost process."""

import signal
import time

import numpy as np
import pytest

from jsel.training import outputs
from tests.test_select_hosts import SELECT, Hosts, digits, select, told  # noqa: F401

METHODS = {
  "rds": (),
  "crds_w": (),
  "kmq": ("--config.method.kmq.clusters=16",),
  "dac": ("--config.method.dac.clusters=16",),
  "sensitivity": ("--config.method.sensitivity.clusters=16",),
  "k_center": (),
}
SHARD = ("--config.shard=0/2",)


def pytest_generate_tests(metafunc):
  is_long = metafunc.config.getoption("--faults", default=0)
  if "method" in metafunc.fixturenames:
    metafunc.parametrize("method", METHODS if is_long else [])
  if "after" in metafunc.fixturenames:
    metafunc.parametrize("after", [1, 2] if is_long else [])


def subset(workdir):
  return (workdir / "subset.parquet").read_bytes()


def test_every_number_of_processes_selects_the_same(method, digits, tmp_path):  # noqa: F811
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


def test_what_one_process_alone_finds_wrong_is_told_to_all(after, digits, tmp_path):  # noqa: F811
  outputs.hold(tmp_path)  # which only process 0 asks for
  with Hosts(2, tmp_path, *digits, command=SELECT) as hosts:
    codes, texts = hosts.finish()
  assert codes == [2, 2], "\n".join(texts)
  assert all("another run is at work" in told(text)[0] and len(told(text)) == 1 for text in texts)
