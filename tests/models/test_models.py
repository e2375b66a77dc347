"""Every model: its contract, its use as a pure function, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jsel.models import MODELS, make, pretrained
from jsel.models.fine_tuned_bert import Frozen
from jsel.models.initial import scaled_normal
from tests import tiny_bert

SHAPE = (8, 8, 1)
SHAPES = {name: (9,) if MODELS[name].takes_tokens else SHAPE for name in MODELS}
OPTIONS = {"mlp": {"hidden": (16, 12)}, "cnn": {"channels": (4, 8), "hidden": 12}, "resnet18": {}}
OPTIONS["resnet18"] = OPTIONS["resnet50"] = {"width": 4}
FEATURES = {"mlp": 12, "cnn": 12, "fine_tuned_bert": 16, "resnet18": 32, "resnet50": 128}
# As functions they are tested by test_resnet.py: 53 layers take long to compile.
QUICK = [name for name in MODELS if name != "resnet50"]


@pytest.fixture(scope="module", autouse=True)
def _encoder(tmp_path_factory):
  for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package, reason="pip install 'jsel[text]'")
  folder = tiny_bert.write(tmp_path_factory.mktemp("models") / "tiny")
  OPTIONS["fine_tuned_bert"] = {"encoder": str(folder), "train_layers": 1}


@pytest.fixture(scope="module")
def made(_encoder):
  return {
    name: make(name, rngs=nnx.Rngs(0), input_shape=SHAPES[name], classes=3, **OPTIONS[name])
    for name in MODELS
  }


@pytest.fixture
def rows(rng):
  images = rng.random((16, *SHAPE), np.float32)
  tokens = rng.integers(0, 204, (16, 9)).astype(np.int32)
  tokens[np.arange(9) >= rng.integers(3, 10, (16, 1))] = -1
  return {name: tokens if MODELS[name].takes_tokens else images for name in MODELS}


def forward(model, *, train=False):
  """The pattern of the training step: a pure function of the split state, in plain jit."""
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  @jax.jit
  def call(params, rest, x):
    merged = nnx.merge(graph, params, rest)
    outputs = merged(x, train=train)
    return outputs, nnx.split(merged, nnx.Param, ...)[2]

  return call, params, rest


@pytest.mark.parametrize("name", QUICK)
def test_logits_are_the_last_layer_of_the_features(made, rows, name):
  call, params, rest = forward(made[name])
  outputs, _ = call(params, rest, rows[name])
  assert outputs.logits.shape == (16, 3)
  assert outputs.features.shape == (16, FEATURES[name])
  assert outputs.logits.dtype == outputs.features.dtype == jnp.float32
  head = made[name].head
  oracle = np.float64(outputs.features) @ np.float64(head.kernel[...]) + np.float64(head.bias[...])
  # One product of 32 terms in float32.
  np.testing.assert_allclose(outputs.logits, oracle, atol=1e-5, rtol=1e-5)
  assert np.std(outputs.logits) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_float32_and_no_random_stream_is_held(made, name):
  _, params, rest = nnx.split(made[name], nnx.Param, ...)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  known = nnx.state(made[name], nnx.Any(nnx.BatchStat, Frozen))
  assert len(jax.tree.leaves(rest)) == len(jax.tree.leaves(known))
  assert bool(jax.tree.leaves(rest)) == (name.startswith("resnet") or name == "fine_tuned_bert")


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_begins_with_has_a_place_in_it(made, name):
  leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(made[name])))
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves
  }
  given = pretrained(made[name])
  assert {path: array.shape for path, array in given.items()}.items() <= shapes.items()
  # From shapes alone, as a program's caller knows it.
  options = {"input_shape": SHAPES[name], "classes": 3, **OPTIONS[name]}
  abstract = nnx.eval_shape(lambda: make(name, rngs=nnx.Rngs(0), **options))
  jax.tree.map(np.testing.assert_array_equal, pretrained(abstract), given)
  assert bool(given) == (name == "fine_tuned_bert")


@pytest.mark.parametrize("name", QUICK)
def test_a_step_lowers_the_loss_without_a_retrace(made, rows, name):
  graph, params, rest = nnx.split(made[name], nnx.Param, ...)
  labels = np.arange(16, dtype=np.int32) % 3
  traces = []

  @jax.jit
  def step(params, rest, x, labels):
    traces.append(1)

    def loss(params):
      # A copy, because a gradient may not change variables that live outside of it.
      model = nnx.merge(graph, params, rest, copy=True)
      log_p = jax.nn.log_softmax(model(x, train=True).logits)
      new_rest = nnx.split(model, nnx.Param, ...)[2]
      return -jnp.take_along_axis(log_p, labels[:, None], 1).mean(), new_rest

    (value, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), new_rest, value

  losses = []
  for _ in range(12):
    params, rest, value = step(params, rest, rows[name], labels)
    losses.append(float(value))
  assert losses[-1] < losses[0]
  assert len(traces) == 1


@pytest.mark.parametrize("name", ["mlp", "cnn", "fine_tuned_bert"])
def test_bfloat16_products_keep_logits_in_float32(rows, name):
  model = lambda dtype: make(
    name, rngs=nnx.Rngs(0), input_shape=SHAPES[name], classes=3, dtype=dtype, **OPTIONS[name]
  )
  call, params, rest = forward(model("bfloat16"))
  outputs, _ = call(params, rest, rows[name])
  assert outputs.logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  call, params, rest = forward(model("float32"))
  # bfloat16 has 8 bits: three layers of it are good to a few per cent of the largest logit.
  exact = call(params, rest, rows[name])[0].logits
  difference = np.abs(outputs.logits - exact).max()
  assert 0 < difference < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("mlp", {}, False),
    ("cnn", {"products": False}, True),
    ("cnn", {"products": True}, False),
    ("cnn", {}, False),  # on CPU
    ("resnet18", {"width": 8}, True),
    ("resnet50", {"width": 4}, True),
  ],
)
def test_a_model_says_whether_it_convolves(name, options, expected):
  model = make(name, rngs=nnx.Rngs(0), input_shape=(8, 8, 1), classes=3, **options)
  assert model.convolutional is expected


@pytest.mark.parametrize("size", [27, 28])
def test_a_convolution_as_a_product_is_the_convolution(size, rng):
  images = rng.random((3, size, size, 2)).astype(np.float32)
  models = [
    make("cnn", rngs=nnx.Rngs(0), input_shape=images.shape[1:], classes=3, products=products)
    for products in (False, True)
  ]
  loss = lambda model, x: model(x, train=True).logits.sum()
  (a, by_convolution), (b, by_product) = (
    nnx.value_and_grad(loss)(model, images) for model in models
  )
  # Sums of at most 3,136 float32 products, in another order.
  np.testing.assert_allclose(a, b, rtol=1e-4)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), by_convolution, by_product
  )


def test_mlp_takes_feature_rows_and_is_the_formula(rng):
  x = rng.standard_normal((5, 7)).astype(np.float32)
  model = make("mlp", rngs=nnx.Rngs(1), input_shape=(7,), classes=3, hidden=(6,))
  hidden = np.maximum(np.float64(x) @ np.float64(model.layers[0].kernel[...]), 0)
  oracle = hidden @ np.float64(model.head.kernel[...])
  # Two products of at most 7 terms in float32; biases start at 0.
  np.testing.assert_allclose(model(x, train=False).logits, oracle, rtol=1e-5, atol=1e-5)


def test_mlp_without_hidden_layers_has_the_row_as_features(rng):
  x = rng.standard_normal((5, 7)).astype(np.float32)
  model = make("mlp", rngs=nnx.Rngs(1), input_shape=(7,), classes=3, hidden=())
  np.testing.assert_array_equal(model(x, train=False).features, x)


def test_mlp_gelu_differs_from_relu(rng):
  x = rng.standard_normal((5, 7)).astype(np.float32)
  options = {"rngs": nnx.Rngs(1), "input_shape": (7,), "classes": 3, "hidden": (6,)}
  assert (make("mlp", **options, activation="gelu")(x, train=False).features < 0).any()
  with pytest.raises(ValueError, match=r"relu or gelu, got 'tanh'"):
    make("mlp", **options, activation="tanh")


def test_cnn_takes_odd_sizes():
  model = make("cnn", rngs=nnx.Rngs(0), input_shape=(7, 5, 2), classes=3, **OPTIONS["cnn"])
  assert model.dense.kernel[...].shape == (2 * 2 * 8, 12)
  shapes = jax.eval_shape(lambda x: model(x, train=False), jnp.zeros((4, 7, 5, 2)))
  assert shapes.logits.shape == (4, 3)


def test_initial_weights_are_normal_and_independent():
  weights = np.float64(scaled_normal(jax.random.key(3), (400, 500)))
  sample = np.sort(weights.ravel() * np.sqrt(400 / 2))
  # 200,000 draws: the standard error of the mean is 0.0022, of the deviation 0.0016.
  assert abs(sample.mean()) < 0.01
  assert abs(sample.std() - 1) < 0.01
  quantiles = sample[(np.array([0.0228, 0.1587, 0.8413, 0.9772]) * sample.size).astype(int)]
  np.testing.assert_allclose(quantiles, [-2, -1, 1, 2], atol=0.03)
  other = np.float64(scaled_normal(jax.random.key(4), (400, 500)))
  assert abs(np.corrcoef(weights.ravel(), other.ravel())[0, 1]) < 0.01
  assert abs(np.corrcoef(weights[0], weights[1])[0, 1]) < 0.2


def test_layers_start_with_different_weights():
  model = make("mlp", rngs=nnx.Rngs(0), input_shape=(6,), classes=3, hidden=(6, 6))
  assert not np.allclose(model.layers[0].kernel[...], model.layers[1].kernel[...])


def options(**more):
  return {"rngs": nnx.Rngs(0), "input_shape": SHAPE, "classes": 3, **more}


def test_the_nearest_name_is_told():
  with pytest.raises(ValueError, match=r"no model 'resnet19', did you mean 'resnet18'\?"):
    make("resnet19", **options())
  with pytest.raises(ValueError, match=r"no option of cnn 'hiden', did you mean 'hidden'\?"):
    make("cnn", **options(hiden=3))


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_dtype_is_refused(name):
  own = {"input_shape": SHAPES[name], **OPTIONS[name]} if MODELS[name].takes_tokens else {}
  with pytest.raises(ValueError, match=r"float32 or bfloat16, got dtype='float16'"):
    make(name, **{**options(dtype="float16"), **own})


@pytest.mark.parametrize("name", ["cnn", "resnet18", "resnet50"])
def test_feature_rows_are_refused_by_convolutions(name):
  with pytest.raises(ValueError, match=r"takes images \[h, w, c\], got input_shape=\(7,\)"):
    make(name, **{**options(), "input_shape": (7,)})


def test_other_rows_than_the_model_was_made_for_are_refused(made):
  with pytest.raises(ValueError, match=r"rows of shape \(8, 8, 1\), got x of shape \(2, 8, 8, 3\)"):
    made["cnn"](jnp.zeros((2, 8, 8, 3)), train=False)
  with pytest.raises(ValueError, match=r"dtype uint8: give float rows"):
    made["mlp"](jnp.zeros((2, *SHAPE), jnp.uint8), train=False)
