"""A KV filter of one's own: passes on the slots whose keys differ most from the slot before them.

latentmas run --method latent_mas --model_name tiny --task tiny_split --max_samples 20 --temperature 0
    --filter examples/own_filter.py:Changes --keep 0.6
"""

import torch


class Changes:
    """Scores a slot by how far the middle layer's key moved since the slot before."""

    def score(self, sight):
        keys = sight.memory.keys(sight.memory.layers // 2).mean(dim=1)  # [B, S, D]
        return torch.cat([keys[:, :1], keys[:, 1:] - keys[:, :-1]], dim=1).norm(dim=-1)
