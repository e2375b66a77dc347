"""Every source against a real object-store server, which these tests start on this machine."""

import importlib.util
import json
import logging
import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

import jsel.data
from jsel.data import files, prepare
from jsel.data.image_folder import ImageFolderRows
from jsel.data.npy import NpyRows
from jsel.data.rows import RowsDataset
from jsel.data.text_files import TextFile

moto = pytest.importorskip("moto.server", reason="pip install 'jsel[test]'")
s3fs = pytest.importorskip("s3fs", reason="pip install 'jsel[test]'")


@pytest.fixture(scope="module")
def server():
  logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request otherwise
  started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  started.start()
  host, port = started.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
  s3fs.S3FileSystem.clear_instance_cache()
  started.stop()


@pytest.fixture
def bucket(server, request):
  """The address of an empty bucket."""
  name = f"b{abs(hash(request.node.name))}"
  fsspec.filesystem("s3").mkdir(name)
  return f"s3://{name}"


@pytest.fixture
def requests(monkeypatch):
  """Addresses of what is put, in order."""
  put, original = [], files.put

  def record(local, path):
    put.append(path)
    original(local, path)

  monkeypatch.setattr(files, "put", record)
  return put


def upload(folder, address):
  for name in files.find(str(folder)):
    files.put(str(folder / name), files.join(address, name))


def open_rows(**keys):
  return jsel.data.open_rows(ConfigDict({"test_fraction": 0.2, **keys}))


def set_of(rows):
  return RowsDataset(rows, None, rows, 4, "mine", "a test", 1.0, "")


def write(rows, address, **options):
  defaults = {"shards": 2, "encoding": "raw", "overwrite": False, "synthetic": False}
  prepare.prepare(set_of(rows), address, **{**defaults, **options})


@pytest.fixture
def rows(vectors):
  return jsel.data.ArrayRows(*vectors, what="vectors")


@pytest.mark.parametrize("images", [False, True])
def test_npy_is_read_by_ranges_of_bytes(bucket, tmp_path, vectors, pictures, monkeypatch, images):
  inputs, labels = pictures if images else vectors
  np.save(tmp_path / "x.npy", inputs)
  np.save(tmp_path / "y.npy", labels)
  upload(tmp_path, bucket)
  rows = NpyRows(f"{bucket}/x.npy", f"{bucket}/y.npy")
  rows = pickle.loads(pickle.dumps(rows))
  asked = []
  original = files.read_ranges
  monkeypatch.setattr(
    files, "read_ranges", lambda path, *ranges: asked.append(ranges) or original(path, *ranges)
  )
  ids = np.array([9, 3, 4, 20, 5, 3, 9])
  batch = rows.take(ids)
  np.testing.assert_array_equal(batch["inputs"], inputs[ids])
  np.testing.assert_array_equal(batch["labels"], labels[ids])
  # 3, 4 and 5 as one range, and nothing but the rows that were asked for.
  ((starts, stops),) = asked
  sizes = [(stop - start) // inputs[0].nbytes for start, stop in zip(starts, stops, strict=True)]
  assert sizes == [3, 1, 1]
  np.testing.assert_array_equal(rows.inputs(), inputs)


def test_own_files_are_read_from_addresses(bucket, tmp_path, vectors):
  np.savez(tmp_path / "rows.npz", inputs=vectors[0], labels=vectors[1])
  np.save(tmp_path / "x.npy", vectors[0])
  np.save(tmp_path / "y.npy", vectors[1])
  upload(tmp_path, bucket)
  section = {"name": "own", "test_fraction": 0.2}
  for keys in (
    {"train": f"{bucket}/rows.npz"},
    {"train": f"{bucket}/x.npy", "train_labels": f"{bucket}/y.npy"},
  ):
    local = {name: path.replace(bucket, str(tmp_path)) for name, path in keys.items()}
    found, same = (jsel.data.load(ConfigDict({**section, **k})) for k in (keys, local))
    assert found.sha256 == same.sha256


def test_a_fortran_file_is_refused_at_an_address(bucket, tmp_path, vectors):
  np.save(tmp_path / "x.npy", np.asfortranarray(vectors[0]))
  np.save(tmp_path / "y.npy", vectors[1])
  upload(tmp_path, bucket)
  with pytest.raises(
    ValueError, match=r"x.npy is in Fortran order: save np.ascontiguousarray of it"
  ):
    NpyRows(f"{bucket}/x.npy", f"{bucket}/y.npy")


@pytest.mark.parametrize("kept", [0, 40, 0.9])
def test_an_npy_cut_short_is_named(bucket, tmp_path, vectors, kept):
  np.save(tmp_path / "x.npy", vectors[0])
  data = (tmp_path / "x.npy").read_bytes()
  (tmp_path / "x.npy").write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
  np.save(tmp_path / "y.npy", vectors[1])
  upload(tmp_path, bucket)
  with pytest.raises(ValueError, match=r"x.npy is (broken or cut short|no npy)") as error:
    NpyRows(f"{bucket}/x.npy", f"{bucket}/y.npy")
  assert "\n" not in str(error.value)


def test_parquet_is_read_from_addresses_and_globs(bucket, tmp_path, vectors):
  table = pa.table({"x": list(vectors[0]), "y": vectors[1]})
  for number in range(2):
    pq.write_table(table.slice(25 * number, 25), tmp_path / f"a-{number}.parquet", row_group_size=9)
  upload(tmp_path, bucket)
  keys = {"name": "parquet", "input_column": "x", "label_column": "y", "classes": 4}
  found = open_rows(**keys, train=f"{bucket}/a-*.parquet").train._rows
  ids = np.array([49, 0, 24, 25, 26])
  np.testing.assert_array_equal(found.take(ids)["inputs"], vectors[0][ids])
  local = open_rows(**keys, train=f"{tmp_path}/a-*.parquet").train._rows
  assert found.sha256() == local.sha256()


def test_image_folders_are_read_from_addresses(bucket, image_folder, pictures):
  (image_folder / "a" / "000.png").rename(image_folder / "a" / "000 [x]*.png")
  upload(image_folder, f"{bucket}/set")
  rows = ImageFolderRows(f"{bucket}/set", image_size=0, channels=3)
  ids = np.array([29, 0, 11, 0])
  np.testing.assert_array_equal(rows.take(ids)["inputs"], pictures[0][ids])
  np.testing.assert_array_equal(rows.take(ids)["labels"], pictures[1][ids])
  assert rows.sha256() == ImageFolderRows(str(image_folder), image_size=0, channels=3).sha256()


def test_a_set_is_written_with_its_marker_last_and_read_through_the_cache(
  bucket, tmp_path, rows, vectors, requests
):
  write(rows, f"{bucket}/set")
  assert [path.rpartition("/")[2] for path in requests[-2:]] == ["info.json", "info.json"]
  assert not any(path.endswith("info.json") for path in requests[:-2])
  keys = {"name": "array_record", "dir": f"{bucket}/set", "cache_dir": str(tmp_path / "cache")}
  found = open_rows(**keys)
  ids = np.array([40, 2, 49])
  np.testing.assert_array_equal(found.train.take(ids)["inputs"], vectors[0][ids])
  write(rows, str(tmp_path / "set"))
  assert open_rows(name="array_record", dir=str(tmp_path / "set")).sha256 == found.sha256
  # What was copied is not fetched again: the records may be gone from the store by now.
  for name in files.find(f"{bucket}/set"):
    if name.endswith(".array_record"):
      files.remove(f"{bucket}/set/{name}")
  np.testing.assert_array_equal(open_rows(**keys).train.take(ids)["inputs"], vectors[0][ids])
  # A file of the copy that is cut short is.
  shard = next((tmp_path / "cache").glob("mine-train-*/*.array_record"))
  shard.write_bytes(shard.read_bytes()[:100])
  with pytest.raises(ValueError, match="there is no file s3://"):
    open_rows(**keys)


def test_without_a_cache_it_is_told_how_much_room_it_takes(bucket, rows, tmp_path):
  write(rows, f"{bucket}/set")
  keys = {"name": "array_record", "dir": f"{bucket}/set"}
  with pytest.raises(
    ValueError, match=r"read from local disks only, set --config.data.cache_dir to"
  ):
    open_rows(**keys)
  with pytest.raises(ValueError, match="must be a folder on a local disk"):
    open_rows(**keys, cache_dir=f"{bucket}/cache")


def test_a_file_that_was_changed_in_the_store_is_not_used(bucket, tmp_path, rows):
  write(rows, f"{bucket}/set")
  name = next(name for name in files.find(f"{bucket}/set") if name.endswith(".array_record"))
  data = bytearray(files.read(f"{bucket}/set/{name}"))
  data[-1] ^= 1
  (tmp_path / "changed").write_bytes(data)
  files.put(str(tmp_path / "changed"), f"{bucket}/set/{name}")
  keys = {"name": "array_record", "dir": f"{bucket}/set", "cache_dir": str(tmp_path / "cache")}
  with pytest.raises(ValueError, match=rf"{name} is not the file that info.json tells of"):
    open_rows(**keys)
  assert not list((tmp_path / "cache").glob(f"*/*{name}*"))


def test_a_writer_that_dies_leaves_no_set(bucket, rows, vectors):
  inputs = vectors[0].copy()
  inputs[40] = np.nan
  with pytest.raises(ValueError, match="column 0 of row 40 is nan"):
    write(jsel.data.ArrayRows(inputs, vectors[1], what="vectors"), f"{bucket}/set")
  assert files.find(f"{bucket}/set")  # the first shard is there, but it is no set:
  with pytest.raises(
    ValueError, match=r"set/train has no info.json: its preparation was cut short"
  ):
    open_rows(name="array_record", dir=f"{bucket}/set")
  write(rows, f"{bucket}/set")  # and it is in nobody's way


def test_a_set_that_is_replaced_leaves_nothing(bucket, rows, vectors):
  write(rows, f"{bucket}/set", shards=4)
  with pytest.raises(
    ValueError, match="train is there already: choose another --out, or set --over"
  ):
    write(rows, f"{bucket}/set")
  changed = jsel.data.ArrayRows(vectors[0] + 1, vectors[1], what="vectors")
  write(changed, f"{bucket}/set", shards=2, overwrite=True)
  names = sorted(files.find(f"{bucket}/set/train"))
  assert names == [
    "info.json",
    "labels.npy",
    "train-00000-of-00002.array_record",
    "train-00001-of-00002.array_record",
  ]
  assert json.loads(files.read(f"{bucket}/set/train/info.json"))["rows"] == 50


@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("s3://no-such-bucket/rows.npz", "there is no file s3://no-such-bucket/rows.npz"),
    ("gs://bucket/rows.npz", r"driver of gs:// is not installed: pip install 'jsel\[gcs\]'"),
    ("abc://bucket/rows.npz", "fsspec knows no abc://"),
  ],
)
def test_addresses_that_cannot_be_read_are_one_line(server, address, message):
  if address.startswith("gs") and importlib.util.find_spec("gcsfs"):
    pytest.skip("gcsfs is installed")
  with pytest.raises(ValueError, match=message) as error:
    open_rows(name="own", train=address)
  assert "\n" not in str(error.value)


def test_a_store_that_does_not_answer_is_one_line(monkeypatch):
  monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port that nobody serves
  monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
  monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
  monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
  s3fs.S3FileSystem.clear_instance_cache()
  with pytest.raises(
    ValueError, match=r"s3://b/rows.npz cannot be reached .*: check the address, the c"
  ):
    open_rows(name="own", train="s3://b/rows.npz")
  s3fs.S3FileSystem.clear_instance_cache()


def test_texts_are_read_line_by_line(bucket):
  lines = [json.dumps({"text": f"text {n}", "id": n}) for n in range(3000)]
  fsspec.filesystem("s3").pipe(f"{bucket}/a.jsonl", "\n".join(lines).encode())
  paths = files.expand(f"{bucket}/*.jsonl", remedy="")
  rows = list(TextFile(paths[0], names={"id": None}).rows())
  assert [columns["id"] for _, _, columns in rows] == list(range(3000))
  assert rows[7][1].prompt[0].content == "text 7"
