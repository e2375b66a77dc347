"""The tokenizer inside a GGUF file."""

from pathlib import Path
from typing import Any

from jsel.models.gguf_file import GGUFFile

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens that are found in a text as they are

# Where texts are cut before pairs are joined, by the name that GGUF has for it: contractions in
# either case, letters, up to three digits or single ones, signs, ends of lines, white space.
AROUND = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PATTERNS = {"llama-bpe": "{1,3}".join(AROUND), "qwen2": "".join(AROUND)}
GPT2 = {"default": False, "gpt-2": False, "smollm": True}  # as GPT-2 does; are digits apart?


def gguf_tokenizer(path: str | Path) -> Any:
  """A `tokenizers.Tokenizer` of the vocabulary and the merges in the GGUF file ``path``.

  Raises:
    ValueError: if they are of a kind that is not known; then a tokenizer.json is to be given.
  """
  import tokenizers  # of the extra `gguf`
  from tokenizers import decoders, models, pre_tokenizers, processors

  file = GGUFFile(Path(path))
  kind, cut = file["tokenizer.ggml.model"], file.get("tokenizer.ggml.pre", "default")
  if kind != "gpt2":
    raise ValueError(
      f"{path} has a tokenizer of kind {kind!r}, only gpt2 (pairs of bytes) is known: give the"
      " model's tokenizer.json"
    )
  tokens, merges = file["tokenizer.ggml.tokens"], file.get("tokenizer.ggml.merges", [])
  vocabulary = {token: number for number, token in enumerate(tokens)}
  pairs = [tuple(merge.split(" ", 1)) for merge in merges]
  # Llama 3 takes a piece that is in the vocabulary as it is, without joining it.
  model = models.BPE(vocabulary, pairs, ignore_merges=cut == "llama-bpe")
  tokenizer = tokenizers.Tokenizer(model)
  if cut in PATTERNS:
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[cut]), "isolated")
    steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  elif cut in GPT2:
    steps = [pre_tokenizers.Digits(individual_digits=True)] if GPT2[cut] else []
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  else:
    raise ValueError(
      f"{path} cuts texts by {cut!r}, only {', '.join((*GPT2, *PATTERNS))} are known:"
      " give the model's tokenizer.json"
    )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
  tokenizer.decoder = decoders.ByteLevel()
  kinds = file.get("tokenizer.ggml.token_type", [1] * len(tokens))
  special = lambda token: tokenizers.AddedToken(token, normalized=False, special=True)
  tokenizer.add_special_tokens(
    [special(t) for t, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
  )
  if file.get("tokenizer.ggml.add_bos_token", False):
    number = file["tokenizer.ggml.bos_token_id"]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{tokens[number]} $A", special_tokens=[(tokens[number], number)]
    )
  return tokenizer
