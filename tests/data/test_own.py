"""The user's own files: what is read, what is refused, and that nothing is unpickled."""

import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

import jsel.data


@pytest.fixture
def rows(rng):
  return rng.standard_normal((40, 5)).astype(np.float32), np.arange(40) % 4


@pytest.fixture
def npz(tmp_path, rows):
  path = tmp_path / "rows.npz"
  np.savez(path, inputs=rows[0], labels=rows[1])
  return path


@pytest.fixture
def npy(tmp_path, rows):
  np.save(tmp_path / "x.npy", rows[0])
  np.save(tmp_path / "y.npy", rows[1])
  return tmp_path / "x.npy", tmp_path / "y.npy"


def load(**fields):
  return jsel.data.load(
    ConfigDict(
      {"name": "own", **{k: str(v) if hasattr(v, "name") else v for k, v in fields.items()}}
    )
  )


def test_an_archive_with_a_test_file(npz, rows):
  found = load(train=npz, test=npz)
  np.testing.assert_array_equal(found.train.inputs, rows[0])
  np.testing.assert_array_equal(found.test.labels, rows[1])
  assert (found.classes, found.scale, found.source) == (4, 1, "rows.npz and rows.npz")


def test_npy_files_stay_on_disk(npy, rows):
  found = load(train=npy[0], train_labels=npy[1], test=npy[0], test_labels=npy[1])
  assert isinstance(found.train.inputs, np.memmap)
  np.testing.assert_array_equal(found.train.inputs, rows[0])


def test_a_part_is_held_out_where_there_is_no_test_file(npz, rows):
  found = load(train=npz, test_fraction=0.25, validation_fraction=0.2, split_seed=3)
  sizes = [len(part.labels) for part in (found.train, found.validation, found.test)]
  assert sizes == [24, 6, 10]
  together = np.concatenate([found.train.inputs, found.validation.inputs, found.test.inputs])
  assert sorted(together[:, 0].tolist()) == sorted(rows[0][:, 0].tolist())


def test_images_have_a_scale_by_their_dtype(tmp_path):
  for dtype, scale in ((np.uint8, 255), (np.float32, 1)):
    np.savez(tmp_path / "i.npz", inputs=np.ones((8, 4, 4), dtype), labels=np.arange(8) % 2)
    assert load(train=tmp_path / "i.npz", test_fraction=0.5).scale == scale


def test_given_classes_hold(npz):
  assert load(train=npz, test=npz, classes=9).classes == 9
  with pytest.raises(ValueError, match=r"rows.npz: label 3 of row 3 is not below .* 3"):
    load(train=npz, test=npz, classes=3)


def test_labels_that_are_ids_are_refused(tmp_path, rows):
  np.savez(tmp_path / "r.npz", inputs=rows[0], labels=rows[1] * 1000)
  with pytest.raises(ValueError, match="labels go up to 3000 with 40 rows"):
    load(train=tmp_path / "r.npz", test_fraction=0.5)


def test_train_and_test_must_be_alike(npz, tmp_path):
  np.savez(tmp_path / "wide.npz", inputs=np.zeros((4, 6), np.float32), labels=np.arange(4))
  with pytest.raises(ValueError, match=r"test are float32\(6,\), those of .* float32\(5,\)"):
    load(train=npz, test=tmp_path / "wide.npz")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, "config.data.train names no file"),
    ({"train": "gone.npz"}, "there is no file gone.npz"),
    ({"train": "rows.csv"}, "rows.csv is of an unknown kind"),
    ({"train": "x.npy"}, "x.npy comes without labels: set --config.data.train_labels"),
    ({"train": "{npz}"}, "no test rows: set --config.data.test to a file or"),
    ({"train": "{npz}", "train_labels": "y.npy"}, "brings its own labels"),
  ],
)
def test_what_is_missing_is_named(npz, fields, message):
  with pytest.raises(ValueError, match=message):
    load(**{name: value.format(npz=npz) for name, value in fields.items()})


def test_an_archive_without_labels_is_refused(tmp_path, rows):
  np.savez(tmp_path / "r.npz", inputs=rows[0], y=rows[1])
  with pytest.raises(
    ValueError, match=r"no array 'labels': expected inputs, labels, got inputs, y"
  ):
    load(train=tmp_path / "r.npz", test_fraction=0.5)


class Bomb:
  """Writes a file if it is ever unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


def test_pickles_are_refused_and_not_run(tmp_path, rows):
  trap = tmp_path / "sprung"
  with (tmp_path / "p.npy").open("wb") as file:
    pickle.dump(Bomb(str(trap)), file)
  bombs = np.array([Bomb(str(trap))] * 40, dtype=object)
  np.save(tmp_path / "o.npy", bombs, allow_pickle=True)
  np.savez(tmp_path / "o.npz", inputs=bombs, labels=rows[1], allow_pickle=True)
  np.save(tmp_path / "y.npy", rows[1])
  labels = tmp_path / "y.npy"
  with pytest.raises(ValueError, match=r"p.npy is no npy or npz file, and pickles are never read"):
    load(train=tmp_path / "p.npy", train_labels=labels, test_fraction=0.5)
  with pytest.raises(ValueError, match=r"o.npy holds Python objects, which are never unpickled"):
    load(train=tmp_path / "o.npy", train_labels=labels, test_fraction=0.5)
  with pytest.raises(ValueError, match=r"o.npz holds Python objects, which are never unpickled"):
    load(train=tmp_path / "o.npz", test_fraction=0.5)
  assert not trap.exists()


@pytest.mark.parametrize("kept", [0, 3, 50, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_file_cut_short_is_named(npy, npz, kind, kept):
  path = npz if kind == "npz" else npy[0]
  data = path.read_bytes()
  path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
  labels = {} if kind == "npz" else {"train_labels": npy[1]}
  with pytest.raises(ValueError, match=path.name) as error:
    load(train=path, test_fraction=0.5, **labels)
  assert "\n" not in str(error.value)


def test_an_archive_with_flipped_bytes_is_named(npz):
  data = bytearray(npz.read_bytes())
  data[300:310] = bytes(byte ^ 0xFF for byte in data[300:310])
  npz.write_bytes(data)
  with pytest.raises(ValueError, match=r"rows.npz is broken or cut short"):
    load(train=npz, test_fraction=0.5)


def test_a_file_under_the_wrong_name_is_told(npy, npz, tmp_path):
  npz.rename(tmp_path / "a.npy")
  with pytest.raises(ValueError, match=r"a.npy is no npy file but an archive: name it .npz"):
    load(train=tmp_path / "a.npy", train_labels=npy[1], test_fraction=0.5)
  npy[0].rename(tmp_path / "b.npz")
  with pytest.raises(ValueError, match=r"b.npz is no npz archive but one array: name it .npy"):
    load(train=tmp_path / "b.npz", test_fraction=0.5)
