#!/bin/sh
# transformers 5.23.0: a cache made from the config of WhisperForCausalLM, the decoder alone.
# Guess: DynamicCache(config=model.config) has a place for every layer of the model that the config is of.
# Seen: it has as many as the config says that an encoder has. With fewer encoder than decoder layers a pass with such
#       a cache ends in an IndexError; without one, or with the cache that the model makes itself, it runs.
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
from transformers import DynamicCache, WhisperConfig, WhisperForCausalLM

SIZES = {"vocab_size": 99, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
torch.manual_seed(0)
config = WhisperConfig(**SIZES, **HEADS, **TOKENS, encoder_layers=2, decoder_layers=3, max_target_positions=32)
model = WhisperForCausalLM(config).eval()
ids = torch.randint(3, 90, (1, 5))
cache = DynamicCache(config=model.config)
seen = {}
for name, how in {
    "without": {"use_cache": False},
    "its own": {"use_cache": True},
    "given": {"use_cache": True, "past_key_values": cache},
}.items():
    try:
        with torch.no_grad():
            model(ids, **how)
        seen[name] = "runs"
    except IndexError as error:
        seen[name] = f"IndexError: {error}"
places = len(DynamicCache(config=model.config).layers)
print("transformers", transformers.__version__)
print("decoder layers:", len(model.model.decoder.layers), "- places in the cache:", places, "-", seen)
sys.exit(0 if places == 2 and seen["without"] == seen["its own"] == "runs" and seen["given"].startswith("IndexError") else 1)
PY
