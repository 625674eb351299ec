#!/bin/sh
# transformers 5.23.0: a BigBird in block_sparse mode that is given a long text, a short one, and the long one again.
# Guess: in eval mode the same text has the same hidden states, whatever was read in between.
# Seen: a text shorter than its blocks can take switches the model to full attention for all texts that follow; the long
#       text asked twice in a row is the same, and with the short one in between it is another.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import sys

import torch
import transformers
from transformers import BigBirdConfig, BigBirdModel

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
config = BigBirdConfig(**sizes, block_size=2, num_random_blocks=1, max_position_embeddings=64, attention_type="block_sparse")
model = BigBirdModel(config).eval()
long, short = torch.arange(5, 45)[None], torch.arange(5, 9)[None]
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    first = model(long).last_hidden_state
    again = (model(long).last_hidden_state - first).abs().max().item()
    model(short)
    after = (model(long).last_hidden_state - first).abs().max().item()
print(f"transformers {transformers.__version__}: asked twice off by {again}, after a short text by {after:.2f}")
sys.exit(0 if again == 0 and after > 1e-3 else 1)
PY
