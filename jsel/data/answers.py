"""What a language model makes of answers to prompts: their losses, and answers of its own."""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track

from jsel.data.tokens import LENGTHS, Batch, bucketed
from jsel.models.generate import Generated, generate
from jsel.models.llama import Llama
from jsel.models.token_loss import token_loss

Span = Literal["text", "answer"]


class Pairs(NamedTuple):
  """Token ids of prompts with their answers."""

  ids: list[list[int]]  # prompt and answer, cut to the longest allowed
  prompt: np.ndarray  # [n] int32, how many of them are the prompt's
  truncated: np.ndarray  # [n] bool

  def take(self, rows: np.ndarray) -> "Pairs":
    """Some of them, ``rows [m]``."""
    return Pairs([self.ids[row] for row in rows], self.prompt[rows], self.truncated[rows])


class AnswerScores(NamedTuple):
  """What a model makes of answers, a row each; NaN for an answer of which no token is left."""

  loss: np.ndarray  # [n] float32, nats a token of the answer, given the prompt
  perplexity: np.ndarray  # [n] float32, exp(loss)
  text_loss: np.ndarray  # [n] float32, nats a token of prompt and answer, the first one aside
  tokens: np.ndarray  # [n] int32, of the answer, after the cut
  truncated: np.ndarray  # [n] bool


class Gaps(NamedTuple):
  """What a model makes of given answers beside its own, a row each."""

  gap: np.ndarray  # [n] float32, loss of the given answer less that of its own; NaN if one has none
  given_loss: np.ndarray  # [n] float32, nats a token
  own_loss: np.ndarray  # [n] float32
  own: list[str]  # its answers


def tokenize_pairs(
  tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, max_length: int
) -> Pairs:
  """The ids of each prompt and, after them, of its answer, so that no token is of both.

  Args:
    tokenizer: of `jsel.data.tokens.open_tokenizer`.
    prompts, answers: ``[n]`` texts.
    max_length: tokens of the two together; what is more is cut from the end.

  Raises:
    ValueError: if there are not as many answers as prompts.
  """
  if len(prompts) != len(answers):
    raise ValueError(f"{len(prompts)} prompts and {len(answers)} answers: give an answer to each")
  before = [found.ids for found in tokenizer.encode_batch_fast(list(prompts))]
  after = tokenizer.encode_batch_fast(list(answers), add_special_tokens=False)
  ids = [a + b.ids for a, b in zip(before, after, strict=True)]
  prompt = np.asarray([min(len(a), max_length) for a in before], np.int32)
  truncated = np.asarray([len(row) > max_length for row in ids], bool)
  return Pairs([row[:max_length] for row in ids], prompt, truncated)


def score_answers(
  model: Llama,
  pairs: Pairs,
  *,
  batch_tokens: int = 4096,
  show: bool = True,
) -> AnswerScores:
  """Losses and perplexities of the answers of ``pairs``.

  Args:
    model: the decoder.
    pairs: of `tokenize_pairs`.
    batch_tokens: in a batch, padding included.
    show: progress and a last line, with throughput.

  Raises:
    ValueError: if a text is longer than the model's positions.
  """
  n = len(pairs.ids)
  text, answer = np.zeros((2, n)), np.zeros((2, n))  # sums of losses, and tokens
  graph, state = nnx.split(model)
  most = model.config.positions
  for batch in shown(pairs.ids, "scoring", most=most, batch_tokens=batch_tokens, show=show):
    prompt = np.zeros(len(batch.tokens), np.int32)
    prompt[: len(batch.rows)] = pairs.prompt[batch.rows]
    found = _losses(graph, state, batch.tokens, batch.mask, prompt)
    for total, part in zip((text, answer), found, strict=True):
      total[:, batch.rows] = np.asarray(part)[:, : len(batch.rows)]
  with np.errstate(invalid="ignore", over="ignore"):
    text_loss, loss = (np.float32(total[0] / total[1]) for total in (text, answer))
    loss = np.where(answer[1] > 0, loss, np.float32("nan"))
    return AnswerScores(loss, np.exp(loss), text_loss, np.int32(answer[1]), pairs.truncated)


def generate_answers(
  model: Llama,
  prompts: Sequence[Sequence[int]],
  *,
  count: int,
  stop: tuple[int, ...],
  batch_tokens: int = 4096,
  show: bool = True,
) -> list[list[int]]:
  """The token ids of the model's own answers, the most probable token at a time.

  Args:
    model: the decoder.
    prompts: their token ids.
    count: tokens of an answer at most.
    stop: ids that end an answer, and are not of it.
    batch_tokens: of prompts in a batch, padding included.
    show: progress and a last line, with throughput.

  Raises:
    ValueError: if a prompt leaves the model no positions for ``count`` tokens.
  """
  graph, state = nnx.split(model)
  said: list[list[int]] = [[] for _ in prompts]
  most = model.config.positions - count
  for batch in shown(prompts, "answering", most=most, batch_tokens=batch_tokens, show=show):
    found = jax.device_get(_generated(graph, state, batch.tokens, batch.mask, count, stop))
    for place, row in enumerate(batch.rows):
      said[row] = found.tokens[place][found.mask[place]].tolist()
  return said


def answer_gaps(
  model: Llama,
  tokenizer: Any,
  pairs: Pairs,
  *,
  count: int,
  stop: tuple[int, ...],
  span: Span = "text",
  batch_tokens: int = 4096,
  show: bool = True,
) -> Gaps:
  r"""How much less probable the given answers are than the model's own: DAC's perplexity scorer.

  .. math:: S(x) = -\log \frac{\mathrm{PPL}(x + y_\text{own})}{\mathrm{PPL}(x + y_\text{given})}

  High where the model would say something else and more surely, so where it has not yet learnt
  the row.

  Args:
    model: the decoder.
    tokenizer: that turns its answers into text.
    pairs: of `tokenize_pairs`.
    count, stop: of `generate_answers`.
    span: the perplexity of "text", prompt and answer, as the paper writes it, or of the "answer"
      given the prompt.
    batch_tokens: in a batch, padding included.
    show: progress and last lines, with throughput.

  Source: Yu et al., *Diversify and Conquer*, 2024, arXiv 2409.11378, equation 7.
  """
  prompts = [row[:length] for row, length in zip(pairs.ids, pairs.prompt, strict=True)]
  options = {"batch_tokens": batch_tokens, "show": show}
  own = generate_answers(model, prompts, count=count, stop=stop, **options)
  said = [a + b for a, b in zip(prompts, own, strict=True)]
  given = score_answers(model, pairs, **options)
  generated = score_answers(model, pairs._replace(ids=said), **options)
  given_loss, own_loss = (
    scores.text_loss if span == "text" else scores.loss for scores in (given, generated)
  )
  own_texts = [tokenizer.decode(row) for row in own]
  return Gaps(given_loss - own_loss, given_loss, own_loss, own_texts)


@functools.partial(jax.jit, static_argnums=0)
def _losses(
  graph: Any, state: Any, tokens: jax.Array, mask: jax.Array, prompt: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sums of losses and counts of tokens ``[2, b]``, of all the text and of the answer."""
  loss = token_loss(nnx.merge(graph, state), tokens, mask)
  place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  summed = lambda which, x: jnp.where(which, x, 0).sum(1)
  total = lambda which: jnp.stack([summed(which, loss), summed(which, jnp.ones_like(loss))])
  return total(mask & (place > 0)), total(mask & (place >= jnp.maximum(prompt, 1)[:, None]))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _generated(
  graph: Any, state: Any, tokens: jax.Array, mask: jax.Array, count: int, stop: tuple[int, ...]
) -> Generated:
  return generate(nnx.merge(graph, state), tokens, mask, count=count, stop=stop)


def shown(
  ids: Sequence[Sequence[int]], doing: str, *, most: int, batch_tokens: int, show: bool
) -> Iterator[Batch]:
  """Batches of texts of about one length, with progress and the throughput at the end."""
  begun = time.perf_counter()
  lengths = [*(length for length in LENGTHS if length < most), most]
  # A batch has room for no more rows than there are.
  longest = next((length for length in lengths if length >= max(map(len, ids), default=0)), most)
  room = min(batch_tokens, len(ids) * longest)
  batches = list(bucketed(ids, batch_tokens=room, lengths=lengths))
  console = Console(stderr=True)
  yield from track(batches, doing, console=console, disable=not show)
  seconds = time.perf_counter() - begun
  tokens = sum(map(len, ids))
  if show and tokens:
    padding = 1 - tokens / sum(batch.mask.size for batch in batches)
    print(
      f"{doing}: {len(ids):,} texts in {seconds:.1f} s ({len(ids) / seconds:,.1f} texts/s,"
      f" {tokens / seconds:,.0f} tokens/s, {100 * padding:.0f} % padding)"
    )
