"""Every config of a selection loads, names its method, and says how it is started."""

import importlib.util
import pathlib

import pytest

from jsel.selectors import methods

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "select"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_config_makes_its_method(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  name = config.method.name
  assert f"--config=configs/select/{path.name} " in module.__doc__
  method = methods.make(name, **config.method[name].to_dict())
  assert ("--config.queries=" in module.__doc__) == ("queries" in method.needs)
