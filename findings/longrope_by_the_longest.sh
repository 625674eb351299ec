#!/bin/sh
# transformers 5.23.0, Phi-3 with longrope (as the 128k checkpoints have it): two texts in one padded batch.
# Guess: with an attention mask a text's hidden states do not depend on the other texts of its batch.
# Seen: rotary frequencies are chosen once per pass, by the longest row: a short text beside a long one is computed with
#       the long frequencies, and its hidden states are others than alone. A batch of short texts is as alone.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
import transformers
from transformers import Phi3Config, Phi3Model

print("transformers", transformers.__version__)
torch.manual_seed(0)
rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 16}
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
config = Phi3Config(**sizes, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=rope,
                    initializer_range=0.5, pad_token_id=0)
model = Phi3Model(config).eval()


def off(short: int, longer: int) -> float:
    """How far the short text's hidden states in the batch are from those alone."""
    ids, mask = torch.randint(1, 64, (2, longer)), torch.ones(2, longer, dtype=torch.long)
    mask[0, short:] = 0
    with torch.no_grad():
        batched = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[0, :short]
        alone = model(input_ids=ids[:1, :short], use_cache=False).last_hidden_state[0]
    return (batched - alone).abs().max().item()


one_side, both_sides = off(8, 15), off(8, 24)
print(f"8 tokens beside 15: off by {one_side:.1e}; beside 24, past the original 16: off by {both_sides:.2f}")
sys.exit(0 if one_side < 1e-3 < 0.1 < both_sides else 1)
PY
