"""Nothing is unpickled or evaluated, and files are written to the workdir alone."""

import ast
import json
import os
import pathlib
import pickle
import stat
import subprocess
import sys

import numpy as np
import pytest

import jsel
from jsel import select as command
from jsel.data.numpy_files import read_npz
from jsel.models.weights import opened, weight_files
from jsel.selection.config import base_config
from jsel.training.curves import plot_curves
from tests import tiny_bert

ROOT = pathlib.Path(jsel.__file__).parents[1]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "os.chmod", "tempfile.mktemp"}
CALLS |= {"yaml.load", "torch.load", "pd.read_pickle"}
METHODS = {"extract", "extractall", "load_pickle", "read_pickle"}


def hazards(source):
  """What of ``source`` could run what a file holds, as (line, name)."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [(node.lineno, a.name) for a in node.names if a.name.split(".")[0] in MODULES]
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
      found.append((node.lineno, node.module))
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      if name in CALLS or (name.split(".")[-1] in METHODS and "." in name):
        found.append((node.lineno, name))
      for keyword in node.keywords:
        given = keyword.arg, getattr(keyword.value, "value", None)
        if given in {("shell", True), ("allow_pickle", True)}:
          found.append((node.lineno, keyword.arg))
  return found


@pytest.mark.parametrize(
  "source",
  [
    "import pickle",
    "from yaml import load",
    "eval(text)",
    "np.load(path, allow_pickle=True)",
    "subprocess.run(line, shell=True)",
    "archive.extractall(folder)",
    "import os\nos.system(line)",
  ],
)
def test_what_is_looked_for_is_found(source):
  assert len(hazards(source)) == 1


def test_the_package_has_none_of_it():
  paths = [*(ROOT / "jsel").rglob("*.py"), *(ROOT / "configs").rglob("*.py"), ROOT / "train.py"]
  assert len(paths) > 150
  found = {str(p.relative_to(ROOT)): hazards(p.read_text(encoding="utf-8")) for p in paths}
  assert {path: what for path, what in found.items() if what} == {}


class Bomb:
  """Makes a file if it is ever unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, "w")


@pytest.mark.parametrize("name", ["p.npy", "o.npy", "o.npz", "p.pkl", "p.parquet", "p.safetensors"])
@pytest.mark.parametrize("option", ["pool", "queries"])
def test_a_pool_or_queries_with_a_pickle_in_it_is_refused(tmp_path, name, option):
  bomb, trap = Bomb(tmp_path / "sprung"), tmp_path / "sprung"
  path = tmp_path / name
  if name.startswith("p"):
    path.write_bytes(pickle.dumps(bomb))
  else:
    save = np.save if name.endswith("npy") else np.savez
    save(path, np.array([bomb] * 4, dtype=object), allow_pickle=True)
  np.save(tmp_path / "good.npy", np.eye(8, dtype=np.float32))
  config = base_config()
  given = {"pool": f"{tmp_path}/good.npy", "queries": f"{tmp_path}/good.npy", "budget": 0.5}
  config.update_from_flattened_dict(given | {"method.name": "rds", option: str(path)})
  with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
    command.select_subset(config, str(tmp_path / "workdir"))
  assert "\n" not in str(error.value)
  assert not trap.exists()
  pickle.loads(pickle.dumps(bomb)).close()
  assert trap.exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path):
  (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "sprung")))
  with pytest.raises(ValueError, match=r"model\.safetensors"), opened(weight_files(tmp_path)[0]):
    pass
  (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
  with pytest.raises(ValueError, match="never from pickles"):
    weight_files(tmp_path)
  index = {"weight_map": {"kernel": "../elsewhere/model.safetensors"}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(ValueError, match=r"leads out of the folder"):
    weight_files(tmp_path)
  assert not (tmp_path / "sprung").exists()


def test_names_in_an_archive_that_lead_out_of_it_are_names_of_arrays_and_no_more(tmp_path):
  folder = tmp_path / "in"
  folder.mkdir()
  np.savez(folder / "a.npz", **{"../outside": np.ones(2), "labels": np.zeros(2)})
  with pytest.raises(ValueError, match=r"no array 'inputs': expected .*, got \.\./outside"):
    read_npz(folder / "a.npz", ("inputs", "labels"))
  assert read_npz(folder / "a.npz", ("../outside",))[0].tolist() == [1, 1]
  assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_config_in_a_workdir_is_data(tmp_path):
  trap = tmp_path / "sprung"
  (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
  (tmp_path / "config.json").write_text(f"open({str(trap)!r}, 'w')")
  with pytest.raises(ValueError, match=r"config\.json"):
    plot_curves(tmp_path)
  assert not trap.exists()


WATCHED = """
import json, os, runpy, sys
seen = []
def watch(event, arguments):
  if event == "open":
    path, _, flags = arguments
    if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
      seen.append((event, os.path.abspath(os.fsdecode(path))))
  elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
    at = arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0]
    seen.append((event, os.path.abspath(os.fsdecode(at))))
  elif event in ("os.system", "os.exec"):
    seen.append((event, str(arguments[:1])))
report, module, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = module
sys.dont_write_bytecode = True
sys.addaudithook(watch)
try:
  runpy.run_path(module, run_name="__main__") if module.endswith(".py") else (
    runpy.run_module(module, run_name="__main__", alter_sys=True))
finally:
  writing = list(seen)
  with open(report, "w") as file:
    json.dump(writing, file)
"""


@pytest.mark.parametrize("program", ["train.py", "jsel.select", "jsel.select of texts"])
def test_a_run_writes_to_its_workdir_alone_with_plain_permissions(tmp_path, program):
  x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
  np.save(tmp_path / "x.npy", x)
  options = ["--config=configs/digits.py", "--config.steps=4", "--config.checkpoint_every=2"]
  if program == "jsel.select":
    options = ["--config=configs/select/rds.py", "--config.budget=8", "--config.budget_unit=rows"]
    options += [f"--config.pool={tmp_path}/x.npy", f"--config.queries={tmp_path}/x.npy"]
  if program == "jsel.select of texts":
    for package in ("safetensors", "tokenizers"):
      pytest.importorskip(package, reason="pip install 'jsel[text]'")
    tiny_bert.write(tmp_path / "tiny")
    texts = [json.dumps({"text": f"w{row} w{row % 7}"}) for row in range(20)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    options = ["--config=configs/select/random.py", "--config.budget=8"]
    options += ["--config.budget_unit=rows", f"--config.encoder={tmp_path}/tiny"]
    options += [f"--config.pool={tmp_path}/texts.jsonl"]
  home, workdir, temporary = (tmp_path / name for name in ("home", "workdir", "temporary"))
  home.mkdir()
  temporary.mkdir()
  environment = {
    **os.environ,
    "HOME": str(home),
    "XDG_CACHE_HOME": str(home),
    "MPLCONFIGDIR": str(home),
    "TMPDIR": str(temporary),
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "PYTHONPATH": str(ROOT),
  }
  report = tmp_path / "report.json"
  module = program.split()[0]
  command = [sys.executable, "-c", WATCHED, str(report), module, f"--workdir={workdir}", *options]
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, umask=0o022, timeout=280
  )
  assert done.returncode == 0, done.stderr
  seen = json.loads(report.read_text())
  assert len(seen) > 5
  inside = (f"{workdir}", f"{home}", "/dev/null", "/proc/")
  assert [(what, where) for what, where in seen if not where.startswith(inside)] == []
  assert list(temporary.iterdir()) == []
  for path in [workdir, *workdir.rglob("*")]:
    mode = stat.S_IMODE(path.stat().st_mode)
    assert mode == (0o755 if path.is_dir() else 0o644), f"{path} has {mode:o}"
