#!/bin/sh
# transformers 5.23.0: MoshiForCausalLM, a decoder with a sliding window, with a cache and without.
# Guess: logits of a token are the same whether the text runs at once or token by token with the model's own cache.
# Seen: they are up to the window's length, and from there on they differ: a model's responses are not what one pass
#       over the same text says.
# Exits 0 while this is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
import transformers
from transformers import MoshiConfig, MoshiForCausalLM

SIZES = {"vocab_size": 99, "audio_vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 48}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
WINDOW, LENGTH = 8, 19
torch.manual_seed(0)
config = MoshiConfig(**SIZES, **HEADS, max_position_embeddings=64, sliding_window=WINDOW)
model = MoshiForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    ids = torch.randint(3, 90, (1, LENGTH))
    at_once = model(ids, use_cache=False).logits[0]
    cache, rows = None, []
    for token in range(LENGTH):
        step = model(ids[:, token : token + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        rows.append(step.logits[0])
    apart = (torch.cat(rows) - at_once).abs().amax(-1)
print("transformers", transformers.__version__)
print("apart, token by token:", " ".join(f"{each:.0e}" for each in apart.tolist()))
sys.exit(0 if apart[:WINDOW].max() < 1e-4 and apart[WINDOW + 2 :].max() > 1e-2 else 1)
PY
