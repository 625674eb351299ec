#!/bin/sh
# transformers 5.23: `generate(generation_config=config)` refills every field that is None in `config` from the model's
# own generation_config. One would guess that a config given whole is the whole of it: that None switches a setting off.
# Seen: a config with stop_strings=None, num_beams=None, cache_implementation=None still gets the model's own values.
# Exits 0 while the behaviour is there, 1 when it is gone.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PY'
import copy, sys
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
model.generation_config.suppress_tokens = list(range(25))
given = copy.deepcopy(model.generation_config)
given.suppress_tokens = None  # "suppress nothing"
given.max_new_tokens = 20
ids = torch.tensor([[5, 6, 7]])
seen = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=given)
model.generation_config.suppress_tokens = None
wanted = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=given)
print("transformers", transformers.__version__)
print("guess:", wanted[0, 3:].tolist())
print("seen: ", seen[0, 3:].tolist())
sys.exit(0 if not torch.equal(seen, wanted) else 1)
PY
