"""SmolLM2-135M fine-tuned in rounds on WordNet's glosses, picked by DAC with the perplexity scorer.

python train.py --config=configs/smollm_dac.py --workdir=runs/smollm_dac
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
