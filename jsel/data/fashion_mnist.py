"""Fashion-MNIST: 60,000 + 10,000 images of 28x28 in grey, 10 classes, from its idx files."""

from pathlib import Path

from ml_collections import ConfigDict

from jsel.data import idx
from jsel.data.arrays import Dataset, Split, checked

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package
INSTALL = "apt-get update && apt-get install -y dataset-fashion-mnist"


def read(config: ConfigDict) -> Dataset:
  """Fashion-MNIST from ``config.dir`` if it is there, else from the system's folder.

  Raises:
    ValueError: if it is in neither, with the command that installs it, or if a file is broken.
  """
  folders = [Path(config.dir).expanduser()] if config.get("dir") else []
  folders.append(SYSTEM_FOLDER)
  found = [folder for folder in folders if find(folder, "train-images-idx3-ubyte")]
  if not found:
    raise ValueError(
      f"Fashion-MNIST is not in {' or '.join(str(folder) for folder in folders)}: install it with "
      f"`{INSTALL}` or set --config.data.dir to the folder of its idx files"
    )
  return Dataset(
    train=part(found[0], "train"),
    validation=None,
    test=part(found[0], "t10k"),
    classes=10,
    name="fashion_mnist",
    source="Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017), idx files",
    scale=255.0,
    sha256="",
  )


def part(folder: Path, prefix: str) -> Split:
  """The images and labels of one part."""
  arrays = []
  for kind, ndim in (("images", 3), ("labels", 1)):
    name = f"{prefix}-{kind}-idx{ndim}-ubyte"
    path = find(folder, name)
    if path is None:
      raise ValueError(f"{folder} has no {name}.gz: Fashion-MNIST has four files, copy them all")
    arrays.append(idx.read(path, ndim=ndim))
  return checked(*arrays, what=f"{folder.name}/{prefix}", classes=10)


def find(folder: Path, name: str) -> Path | None:
  """``name`` in ``folder``, gzipped or not."""
  paths = (folder / f"{name}.gz", folder / name)
  return next((path for path in paths if path.is_file()), None)
