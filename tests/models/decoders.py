"""Small random Llama-type decoders in files, and the same in NumPy in float64."""

import json

import gguf
import numpy as np
from safetensors.numpy import save_file

from jsel.models.llama_weights import PARTS

SIZES = {
  "vocab_size": 50,
  "hidden_size": 12,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 6,
  "intermediate_size": 20,
  "max_position_embeddings": 32,
  "rms_norm_eps": 1e-5,
  "rope_theta": 100.0,
}


def random_tensors(rng, kind="llama", *, tied=False):
  """Weights of a folder, by name."""
  width, hidden, queries, keys = 12, 20, 24, 12
  shapes = {"model.embed_tokens.weight": (50, width), "model.norm.weight": (width,)}
  if not tied:
    shapes["lm_head.weight"] = (50, width)
  for layer in range(3):
    own = {"self_attn.q_proj.weight": (queries, width), "self_attn.k_proj.weight": (keys, width)}
    own |= {"self_attn.v_proj.weight": (keys, width), "self_attn.o_proj.weight": (width, queries)}
    own |= {f"mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
    own |= {"mlp.down_proj.weight": (width, hidden)}
    own |= {f"{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    if kind == "qwen2":
      own |= {f"self_attn.{part}_proj.bias": (keys,) for part in "kv"}
      own |= {"self_attn.q_proj.bias": (queries,)}
    if kind == "qwen3":
      own |= {f"self_attn.{part}_norm.weight": (6,) for part in "qk"}
    shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
  mean = lambda name: 1.0 if "norm" in name else 0.0
  draw = lambda name, shape: rng.normal(mean(name), 0.5, shape).astype(np.float32)
  return {name: draw(name, shape) for name, shape in shapes.items()}


def write_folder(folder, tensors, kind="llama", **changes):
  folder.mkdir(exist_ok=True)
  said = {"model_type": kind, "tie_word_embeddings": "lm_head.weight" not in tensors}
  (folder / "config.json").write_text(json.dumps({**SIZES, **said, **changes}))
  save_file(tensors, str(folder / "model.safetensors"))
  return folder


def write_gguf(path, tensors, kind="llama", *, tokens=None, merges=(), pre="smollm", **fields):
  """As llama.cpp's converter has it: a Llama's rotations with their columns side by side."""
  writer = gguf.GGUFWriter(path, kind)
  writer.add_block_count(3)
  writer.add_context_length(32)
  writer.add_embedding_length(12)
  writer.add_feed_forward_length(20)
  writer.add_head_count(4)
  writer.add_head_count_kv(2)
  writer.add_key_length(6)
  writer.add_rope_freq_base(100.0)
  writer.add_layer_norm_rms_eps(1e-5)
  tokens = tokens or [f"t{i}" for i in range(50)]
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
  writer.add_token_merges(list(merges))
  writer.add_eos_token_id(fields.pop("eos", 0))
  for name, value in fields.items():
    getattr(writer, f"add_{name}")(value)
  names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
  names |= {
    f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}"
    for layer in range(3)
    for theirs, ours in PARTS.values()
  }
  for name, x in tensors.items():
    stem, kind_of = name.rsplit(".", 1)
    if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
      x = x.reshape(-1, 2, 3, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    writer.add_tensor(f"{names.get(stem, stem)}.{kind_of}", np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def oracle(tensors, ids, frequencies=None):
  """Hidden states ``[4, l, 12]`` and logits ``[l, 50]`` of one text without padding, float64."""
  w = {name: np.float64(tensor) for name, tensor in tensors.items()}
  frequencies = 100.0 ** (-np.arange(3) / 3) if frequencies is None else frequencies

  def norm(x, name):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]

  def turn(x):  # complex numbers of the two halves, times exp(i angle)
    z = x[..., :3] + 1j * x[..., 3:]
    z = z * np.exp(1j * np.arange(len(ids))[:, None, None] * frequencies)
    return np.concatenate([z.real, z.imag], -1)

  x = w["model.embed_tokens.weight"][ids]
  states = [x]
  for layer in range(3):
    at = f"model.layers.{layer}"
    linear = lambda y, name, at=at: y @ w[f"{at}.{name}.weight"].T + w.get(f"{at}.{name}.bias", 0)
    y = norm(x, f"{at}.input_layernorm")
    q, k, v = (linear(y, f"self_attn.{part}_proj").reshape(len(ids), -1, 6) for part in "qkv")
    if f"{at}.self_attn.q_norm.weight" in w:
      q, k = norm(q, f"{at}.self_attn.q_norm"), norm(k, f"{at}.self_attn.k_norm")
    q, k = turn(q), turn(k)
    means = np.zeros((len(ids), 4, 6))
    for head in range(4):
      for t in range(len(ids)):
        score = np.exp(k[: t + 1, head // 2] @ q[t, head] / np.sqrt(6))
        means[t, head] = score / score.sum() @ v[: t + 1, head // 2]
    x = x + linear(means.reshape(len(ids), -1), "self_attn.o_proj")
    y = norm(x, f"{at}.post_attention_layernorm")
    gate = linear(y, "mlp.gate_proj")
    x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, "mlp.up_proj"), "mlp.down_proj")
    states.append(x)
  states[-1] = norm(x, "model.norm")
  head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
  return np.stack(states), states[-1] @ head.T


def padded(texts, length, side="right", fill=49):
  """Token ids ``[b, length]`` and their mask."""
  tokens, mask = np.full((len(texts), length), fill, np.int32), np.zeros((len(texts), length), bool)
  for row, text in enumerate(texts):
    at = slice(0, len(text)) if side == "right" else slice(length - len(text), length)
    tokens[row, at], mask[row, at] = text, True
  return tokens, mask
