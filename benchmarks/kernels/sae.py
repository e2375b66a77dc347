"""A training step of a TopK sparse autoencoder with Adam, against PyTorch's embedding_bag.

    python -m benchmarks.kernels.sae

Batch 1024: encode, the k highest, decode, loss, gradients, Adam, decoder rows brought back to unit
length. Nothing is revived. The error is that of the loss of the first batch, against float64. In
the second case the product with the encoder may be one of bfloat16.
"""

import jax
import numpy as np
import optax

from benchmarks.kernels.cases import Case, Work, peer, run, temporaries
from benchmarks.turns import Contender
from jsel.kernels import sae

RATE = 1e-3


def step(batch: int, d: int, latents: int, k: int, narrow: bool) -> Work:
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, d), np.float32)
  optimizer = optax.adam(RATE)
  begin = sae.init(jax.random.key(0), x.mean(0), latents, optimizer, normalize=False)
  weights = np.asarray(begin.sae.encoder), x.mean(0)
  on_device = jax.device_put(x)
  precision = "bfloat16" if narrow else "float32"

  def ours(state, x):
    return sae.update(state, x, optimizer, k=k, dead_after=None, precision=precision)

  compiled = jax.jit(ours, donate_argnums=0)
  held = {"state": begin}
  memory = temporaries(ours, begin, on_device)

  def work():
    held["state"] = compiled(held["state"], on_device)
    return held["state"].loss

  def of_torch():
    import torch

    data = torch.from_numpy(x)

    def contender(name, rounded):
      encoder, decoder = (torch.tensor(weights[0], requires_grad=True) for _ in range(2))
      encoder_bias = torch.zeros(latents, requires_grad=True)
      bias = torch.tensor(weights[1], requires_grad=True)
      trained = [encoder, encoder_bias, decoder, bias]
      adam = torch.optim.Adam(trained, lr=RATE, fused=True)

      def one():
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
          every = torch.nn.functional.linear(data - bias, encoder, encoder_bias)
        value, index = torch.topk(every.float(), k, sorted=False)
        output = torch.nn.functional.embedding_bag(
          index, decoder, per_sample_weights=value.relu(), mode="sum"
        )
        error = data - output - bias
        loss = ((error**2).mean(1) / (data**2).mean(1)).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        with torch.no_grad():
          decoder.div_(decoder.norm(dim=1, keepdim=True))
        return float(loss.detach())

      settings = f"embedding_bag, fused Adam, {torch.get_num_threads()} threads"
      return Contender(name, one, settings, lambda result: result)

    found = [contender("torch float32", False)]
    if narrow:
      found.append(contender("torch bfloat16", True))
    return found

  def error(name, loss):
    del name
    wide = weights[0].astype(np.float64)
    centred = x.astype(np.float64) - weights[1]
    every = centred @ wide.T
    index = np.argpartition(every, latents - k, axis=1)[:, latents - k :]
    code = np.maximum(np.take_along_axis(every, index, 1), 0)
    output = np.einsum("bk,bkd->bd", code, wide[index])
    power = (x.astype(np.float64) ** 2).mean(1)
    exact = (((centred - output) ** 2).mean(1) / power).mean()
    return abs(float(loss) / exact - 1)

  mine = Contender("jsel", work, f"precision={precision}, Optax's Adam, state donated")
  encode = {precision: 2.0 * batch * d * latents}
  return Work(mine, peer("torch", of_torch), error, memory, encode)


SIZES = {"batch": 1024, "d": 512, "latents": 4096, "k": 32}
SMALL = {"batch": 64, "d": 16, "latents": 64, "k": 4}
CASES = {
  f"SAE step 1024 x 512, 4096 latents, k 32, {title}": Case(
    step, {**SIZES, "narrow": narrow}, {**SMALL, "narrow": narrow}, most_error, 1.2
  )
  for title, narrow, most_error in (("float32", False, 1e-5), ("bfloat16", True, 1e-2))
}

if __name__ == "__main__":
  run("sae", CASES)
