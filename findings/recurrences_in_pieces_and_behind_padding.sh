#!/bin/sh
# transformers 5.23.0: a text in two pieces beside a cache, and a text behind padding, in models with recurrences.
# Guess: a second piece of several tokens, given with the cache of the first, has the logits of one pass over both, as it
#        has in Llama; and a text behind padding that the attention mask leaves out has the logits that it has alone.
# Seen: Jamba, Mamba and Falcon-Mamba give other logits for the second piece, without an error or a warning: only one token
#       at a time goes on from the state. RecurrentGemma and RWKV give other logits behind padding: their states begin with it.
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
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

transformers.logging.set_verbosity_error()
ids = torch.tensor([[5, 6, 7, 8, 11, 13, 12, 10, 9]])
sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": 0}
heads = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
mamba = {**sizes, "state_size": 8, "time_step_rank": 4}
jamba = {**heads, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False}


def off(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


@torch.no_grad()
def of_pieces(model, cache):
    begun = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], use_cache=True, **{cache: getattr(begun, cache)})
    return off(rest.logits, model(ids, use_cache=False).logits[:, 5:])


@torch.no_grad()
def behind_padding(model):
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(12) >= 3).long()[None]
    return off(model(padded, attention_mask=mask, use_cache=False).logits[:, 3:], model(ids, use_cache=False).logits)


torch.manual_seed(0)
print("transformers", transformers.__version__)
llama = LlamaForCausalLM(LlamaConfig(**heads)).eval()
pieces = {
    "Jamba": (JambaForCausalLM(JambaConfig(**jamba)), "past_key_values"),
    "Mamba": (MambaForCausalLM(MambaConfig(**mamba)), "cache_params"),
    "Falcon-Mamba": (FalconMambaForCausalLM(FalconMambaConfig(**mamba)), "cache_params"),
}
padded = {
    "RecurrentGemma": RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**{**heads, "intermediate_size": 96}, head_dim=8, lru_width=32)),
    "RWKV": RwkvForCausalLM(RwkvConfig(**{name: sizes[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")})),
}
plain = of_pieces(llama, "past_key_values"), behind_padding(llama)
print(f"Llama: in pieces off by {plain[0]:.0e}, behind padding by {plain[1]:.0e}")
found = [max(plain) < 1e-4]
for model in (*(each for each, _ in pieces.values()), *padded.values()):
    for parameter in model.eval().parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
for name, (model, cache) in pieces.items():
    found.append(of_pieces(model, cache) > 1e-3)
    print(f"{name}: in pieces off by {of_pieces(model, cache):.0e}")
for name, model in padded.items():
    found.append(behind_padding(model) > 1e-3)
    print(f"{name}: behind padding off by {behind_padding(model):.0e}")
sys.exit(0 if all(found) else 1)
PY
