"""Decoders' files: folders and GGUF give one model; what cannot be read is told."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

safetensors = pytest.importorskip("safetensors.numpy", reason="pip install 'jsel[text]'")
pytest.importorskip("gguf", reason="pip install 'jsel[gguf]'")

from jsel.data.encode import embeddings, encode  # noqa: E402
from jsel.data.tokens import open_tokenizer  # noqa: E402
from jsel.models.encoders import open_encoder, path_of  # noqa: E402
from jsel.models.generate import generate  # noqa: E402
from jsel.models.llama_weights import folder_config, load_llama  # noqa: E402
from jsel.models.token_loss import token_loss  # noqa: E402
from tests import packaged  # noqa: E402
from tests.models import decoders  # noqa: E402

# Bytes as pairs of them are joined: "Ġ" is a space.
WORDS = ["<|end|>", *"abcdefghijk123", "Ġ", "ab", "abc", "Ġabc", "Ġa"]
MERGES = ("a b", "ab c", "Ġ abc", "Ġ a")
TOKENS = WORDS + [f"unused{i}" for i in range(50 - len(WORDS))]


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))
  assert a.config == b.config


@pytest.mark.parametrize(
  ("kind", "tied"), [("llama", False), ("llama", True), ("qwen2", True), ("qwen3", False)]
)
def test_a_gguf_file_gives_the_model_of_the_folder(tmp_path, rng, kind, tied):
  tensors = decoders.random_tensors(rng, kind, tied=tied)
  # Sizes are float32 in a file.
  folder = decoders.write_folder(
    tmp_path / "m", tensors, kind, rms_norm_eps=float(np.float32(1e-5))
  )
  same(load_llama(folder), load_llama(decoders.write_gguf(tmp_path / "m.gguf", tensors, kind)))


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16])
def test_half_precision_is_widened(tmp_path, rng, kind):
  halves = {name: x.astype(kind) for name, x in decoders.random_tensors(rng).items()}
  widened = {name: x.astype(np.float32) for name, x in halves.items()}
  expected = nnx.state(load_llama(decoders.write_folder(tmp_path / "m", widened)))
  found = [load_llama(decoders.write_folder(tmp_path / "h", halves))]
  if kind is np.float16:
    found.append(load_llama(decoders.write_gguf(tmp_path / "h.gguf", halves)))
  for model in found:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), expected)


def test_parts_of_a_file_are_read_by_their_index(tmp_path, rng):
  tensors = decoders.random_tensors(rng)
  whole, parts = (decoders.write_folder(tmp_path / name, tensors) for name in ("whole", "parts"))
  (parts / "model.safetensors").unlink()
  weight_map = {}
  for start in (0, 1):
    half = dict(list(tensors.items())[start::2])
    safetensors.save_file(half, str(parts / f"{start}.safetensors"))
    weight_map |= dict.fromkeys(half, f"{start}.safetensors")
  (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  same(load_llama(whole), load_llama(parts))


def test_positions_are_scaled_as_the_settings_say(tmp_path, rng):
  tensors = decoders.random_tensors(rng)
  scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
  scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
  plain = 100.0 ** (-np.arange(3) / 3)
  # 64 positions are 10.2, 2.2 and 0.47 turns: kept, between, and slowed down.
  ramp = (64 * plain[1] / (2 * np.pi) - 1) / 3
  expected = plain * [1, ramp + (1 - ramp) / 8, 1 / 8]
  folder = decoders.write_folder(tmp_path / "m", tensors, rope_scaling=scaling)
  np.testing.assert_allclose(folder_config(folder).frequencies, expected, rtol=1e-12)
  tokens, mask = map(jnp.asarray, decoders.padded([[3, 9, 9, 41]], 4))
  states = decoders.oracle(tensors, [3, 9, 9, 41], expected)[0][-1]
  # Three layers of sums of at most 24 float32 products.
  np.testing.assert_allclose(load_llama(folder)(tokens, mask)[0, 0], states, rtol=1e-4, atol=5e-5)
  file = decoders.write_gguf(
    tmp_path / "m.gguf", {**tensors, "rope_freqs.weight": (plain / expected).astype(np.float32)}
  )
  np.testing.assert_allclose(load_llama(file).config.frequencies, expected, rtol=1e-6)
  folder = decoders.write_folder(
    tmp_path / "l", tensors, rope_scaling={"type": "linear", "factor": 2.0}
  )
  np.testing.assert_allclose(folder_config(folder).frequencies, plain / 2, rtol=1e-12)


def test_texts_are_cut_to_the_window_that_a_mistral_sees(tmp_path, rng):
  tensors = decoders.random_tensors(rng)
  folder = decoders.write_folder(tmp_path / "m", tensors, "mistral", sliding_window=16)
  assert folder_config(folder).positions == 16
  folder = decoders.write_folder(tmp_path / "m", tensors, "mistral", sliding_window=None)
  assert folder_config(folder).positions == 32


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "gemma"}, r"is of a 'gemma' model: only llama, mistral, qwen2, qwen3"),
    ({"hidden_act": "gelu"}, r"hidden_act='gelu': only silu"),
    ({"attention_bias": True}, r"has biases, which a llama is not expected to have"),
    ({"vocab_size": 51}, r"embed_tokens.weight has shape \(50, 12\), config.json says \(51, 12\)"),
    ({"num_hidden_layers": 4}, r"has no tensor model.layers.3"),
    ({"rope_scaling": {"rope_type": "yarn"}}, r"scales positions by 'yarn': only linear and llama"),
  ],
)
def test_models_of_another_kind_are_refused(tmp_path, rng, changes, message):
  folder = decoders.write_folder(tmp_path / "m", decoders.random_tensors(rng), **changes)
  with pytest.raises(ValueError, match=message):
    load_llama(folder)


def test_missing_broken_and_other_files_are_told(tmp_path, rng, monkeypatch):
  tensors = decoders.random_tensors(rng)
  with pytest.raises(ValueError, match=r"there is no .*m.gguf: give a GGUF file"):
    load_llama(tmp_path / "m.gguf")
  (tmp_path / "b.gguf").write_bytes(b"GGUF and no more")
  with pytest.raises(ValueError, match=r"b.gguf is broken or cut short"):
    load_llama(tmp_path / "b.gguf")
  with pytest.raises(ValueError, match=r"o.gguf is of a 'gemma' model: only llama, "):
    load_llama(decoders.write_gguf(tmp_path / "o.gguf", tensors, "gemma"))
  del tensors["model.layers.1.mlp.up_proj.weight"]
  with pytest.raises(ValueError, match=r"c.gguf has no tensor blk.1.ffn_up.weight"):
    load_llama(decoders.write_gguf(tmp_path / "c.gguf", tensors))
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"gguf is not installed, .*: pip install 'jsel\[gguf\]'"):
    load_llama(tmp_path / "c.gguf")


def test_a_tokenizer_inside_a_file_joins_cuts_and_begins_texts(tmp_path, rng):
  tensors = decoders.random_tensors(rng)
  file = decoders.write_gguf(tmp_path / "m.gguf", tensors, tokens=TOKENS, merges=MERGES)
  tokenizer = open_tokenizer(file, max_length=8)
  encoded = tokenizer.encode("abc abc<|end|>12 aab")
  words = ["abc", "Ġabc", "<|end|>", "1", "2", "Ġa", "ab"]
  assert encoded.tokens == words
  assert encoded.ids == [TOKENS.index(word) for word in words]
  assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == "abc abc<|end|>12 aab"
  assert len(tokenizer.encode("abc" * 20).ids) == 8
  begins = decoders.write_gguf(
    tmp_path / "b.gguf", tensors, tokens=TOKENS, merges=MERGES, bos_token_id=0, add_bos_token=True
  )
  assert open_tokenizer(begins, max_length=8).encode("abc").tokens == ["<|end|>", "abc"]
  other = decoders.write_gguf(
    tmp_path / "o.gguf", tensors, tokens=TOKENS, merges=MERGES, pre="tekken"
  )
  with pytest.raises(ValueError, match=r"cuts texts by 'tekken', only .*: give the model's token"):
    open_tokenizer(other, max_length=8)


def test_a_decoder_encodes_texts_with_the_weights_of_sgpt(tmp_path, rng):
  tensors = decoders.random_tensors(rng)
  file = decoders.write_gguf(tmp_path / "m.gguf", tensors, tokens=TOKENS, merges=MERGES)
  texts = ["abc abc", "a b a", "123"]
  encoder = open_encoder(str(file), layers=(1, 3))
  assert (encoder.width, encoder.max_length) == (24, 32)
  encode(texts, encoder, cache_dir=tmp_path / "c", show=False)
  got = np.concatenate([*embeddings(texts, encoder, cache_dir=tmp_path / "c")])
  tokenizer = open_tokenizer(file, max_length=32)
  for row, text in enumerate(texts):
    ids = tokenizer.encode(text).ids
    states = decoders.oracle(tensors, ids)[0][[1, 3]]
    weight = np.arange(1, len(ids) + 1)
    pooled = np.concatenate([*(weight[:, None] * states).sum(1) / weight.sum()])
    np.testing.assert_allclose(got[row], pooled / np.linalg.norm(pooled), atol=1e-5)


def test_an_encoder_of_another_kind_is_refused_with_those_that_are_known(tmp_path, rng):
  folder = decoders.write_folder(tmp_path / "m", decoders.random_tensors(rng), "t5")
  with pytest.raises(ValueError, match=r"is of a 't5' model: only bert, llama, mistral, qwen2, q"):
    open_encoder(str(folder))


@packaged.needs(packaged.SMOLLM)
def test_smollm2_knows_the_capital_of_france_and_english_from_its_words_shuffled(rng):
  model = load_llama(path_of(packaged.SMOLLM))
  tokenizer = open_tokenizer(path_of(packaged.SMOLLM), max_length=64)
  real = "The sun rises in the east and sets in the west."
  shuffled = " ".join(rng.permutation(real.split()))
  ids = [tokenizer.encode(text).ids for text in ("The capital of France is", real, shuffled)]
  tokens, mask = map(jnp.asarray, decoders.padded(ids, 32, fill=0))
  graph, state = nnx.split(model)
  say = jax.jit(lambda state, *x: generate(nnx.merge(graph, state), *x, count=2, stop=(2,)))
  loss = jax.jit(lambda state, *x: token_loss(nnx.merge(graph, state), *x))
  said = say(state, tokens[:1], mask[:1])
  assert tokenizer.decode(said.tokens[0].tolist()) == " Paris."
  found = np.asarray(loss(state, tokens, mask)).sum(1) / (np.asarray(mask).sum(1) - 1)
  np.testing.assert_allclose(found[1], 2.19, atol=0.005)  # as other programs say of these weights
  assert found[2] > 6
