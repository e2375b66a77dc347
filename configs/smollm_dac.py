"""SmolLM2-135M fine-tuned in rounds on WordNet's glosses, picked by DAC with the perplexity scorer.

python train.py --config=configs/smollm_dac.py --workdir=runs/smollm_dac
Four minutes of processor time and 3.8 GB; weights are 4-bit (Q4_1), dequantised. Seen: 4.09 nats a
token on 32 held-out glosses before, 3.91 after three rounds of 24 glosses (one seed).

Rewards in place of perplexities: --config.method.scorer=column:KEY, of a jsonl file, or
MODULE:FUNCTION, called with prompts, answers and own answers (docs/language_models.md).
"""

from jsel.training.rounds_config import base_config


def get_config():
  config = base_config()
  config.data.rows = 512
  config.data.test_rows = 32
  config.rounds = 3
  config.budget = 72
  config.batch_size = 8
  config.max_length = 96
  config.model.trained_layers = 6
  config.method.clusters = 16
  config.method.new_tokens = 12
  config.optimizer.learning_rate = 1e-4
  return config
