"""Small sets of images and features, and the forms that sources read them from."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jsel.data import files


def png(image):
  """The bytes of a lossless file."""
  buffer = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
  return buffer.getvalue()


@pytest.fixture
def pictures(rng):
  """30 colour images of 12x10 in 3 classes, sorted by class as a folder lists them."""
  return rng.integers(0, 256, (30, 12, 10, 3)).astype(np.uint8), np.repeat(np.arange(3), 10)


@pytest.fixture
def vectors(rng):
  """50 rows of 6 features in 4 classes."""
  return rng.standard_normal((50, 6)).astype(np.float32), rng.integers(0, 4, 50)


@pytest.fixture
def image_folder(tmp_path, pictures):
  """``pictures`` as DIR/CLASS/NUMBER.png."""
  folder = tmp_path / "folder"
  for number, (image, label) in enumerate(zip(*pictures, strict=True)):
    path = folder / "abc"[label] / f"{number:03d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(image))
  return folder


def write_tfds(version, parts, features):
  """What `download_and_prepare(file_format="array_record")` leaves, made without TensorFlow.

  Args:
    version: folder DATA_DIR/NAME/VERSION to write.
    parts: for each split a list of rows, dicts of bytes, ints or arrays of float32.
    features: a `tfds.features.FeaturesDict`.
  """
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  version.mkdir(parents=True)
  name = version.parent.name
  splits = []
  for split, rows in parts.items():
    path = version / f"{name}-{split}.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
      example = tf_example_pb2.Example()
      for key, value in row.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes):
          feature.bytes_list.value.append(value)
        elif isinstance(value, np.ndarray):
          feature.float_list.value.extend(value.ravel().tolist())
        else:
          feature.int64_list.value.append(int(value))
      writer.write(example.SerializeToString())
    writer.close()
    splits.append(
      {
        "name": split,
        "shardLengths": [str(len(rows))],
        "numBytes": str(path.stat().st_size),
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      }
    )
  features.save_config(version)
  info = {"name": name, "version": version.name, "fileFormat": "array_record", "splits": splits}
  (version / "dataset_info.json").write_text(json.dumps(info))
  return version


@pytest.fixture
def make_tfds():
  return write_tfds


@pytest.fixture
def make_png():
  return png


@pytest.fixture
def tree():
  """The files below a folder and their bytes."""
  return lambda folder: files.find(str(pathlib.Path(folder)))
