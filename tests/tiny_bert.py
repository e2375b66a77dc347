"""A BERT of two layers with random weights, in the files that an encoder comes in."""

import json
from pathlib import Path

import numpy as np

WORDS = [f"w{number}" for number in range(200)]
MAX_LENGTH = 64
SIZES = {
  "model_type": "bert",
  "vocab_size": len(WORDS) + 4,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "max_position_embeddings": MAX_LENGTH,
  "type_vocab_size": 2,
  "layer_norm_eps": 1e-12,
  "hidden_act": "gelu",
}


def write(folder: Path, *, seed: int = 0) -> Path:
  """Writes config.json, model.safetensors and tokenizer.json: `WORDS`, whole and lower case."""
  import tokenizers
  from safetensors.numpy import save_file

  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(SIZES))
  width, hidden = SIZES["hidden_size"], SIZES["intermediate_size"]
  shapes = {
    "embeddings.word_embeddings.weight": (SIZES["vocab_size"], width),
    "embeddings.position_embeddings.weight": (MAX_LENGTH, width),
    "embeddings.token_type_embeddings.weight": (2, width),
  }
  norms = ["embeddings"]
  for layer in range(SIZES["num_hidden_layers"]):
    at = f"encoder.layer.{layer}"
    linears = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
    linears |= {"attention.output.dense": (width, width), "intermediate.dense": (hidden, width)}
    linears |= {"output.dense": (width, hidden)}
    for name, shape in linears.items():
      shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
    norms += [f"{at}.attention.output", f"{at}.output"]
  rng = np.random.default_rng(seed)
  tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
  for name in norms:
    tensors[f"{name}.LayerNorm.weight"] = np.ones(width, np.float32)
    tensors[f"{name}.LayerNorm.bias"] = np.zeros(width, np.float32)
  save_file(tensors, str(folder / "model.safetensors"))
  words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.normalizer = tokenizers.normalizers.Lowercase()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder
