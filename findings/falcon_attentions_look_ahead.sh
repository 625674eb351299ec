#!/bin/sh
# transformers 5.23.0: Falcon under sdpa, its default attention, asked for attentions.
# Guess: output_attentions=True returns the patterns of the same pass, and changes no logits; ALiBi is ALiBi under
#        either implementation.
# Seen: 1. with output_attentions=True its boolean mask is added to the scores instead of masking them: patterns have
#       weight on later tokens, and the logits are others than without. 2. With alibi=True the eager attention adds the
#       bias twice and sdpa once, so that the two give different logits.
# Exits 0 while both are seen, 1 when one is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
import transformers
from transformers import FalconConfig, FalconForCausalLM

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ids = torch.tensor([[5, 6, 7, 8]])


def falcon(attention, **more):
    torch.manual_seed(0)
    config = FalconConfig(**SIZES, initializer_range=0.3, **more)
    config._attn_implementation = attention
    return FalconForCausalLM(config).eval()


def furthest(one, two):
    return (one.logits - two.logits).abs().max().item()


with torch.no_grad():
    model = falcon("sdpa")
    asked, plain = model(ids, output_attentions=True), model(ids)
    ahead = asked.attentions[0].triu(1).max().item()
    alibi = furthest(falcon("eager", alibi=True)(ids), falcon("sdpa", alibi=True)(ids))
    print("transformers", transformers.__version__)
    print(f"largest weight on a later token: {ahead:.3f}; logits differ from those without by {furthest(asked, plain):.3f}")
    print(f"eager beside sdpa: {furthest(falcon('eager')(ids), plain):.1e} apart, with ALiBi {alibi:.3f}")
sys.exit(0 if ahead > 0.01 and alibi > 0.01 else 1)
PY
