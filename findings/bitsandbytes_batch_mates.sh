#!/bin/sh
# bitsandbytes 0.50.2, a model of transformers 5.23.0 loaded in 8 bits (LLM.int8, here on the processor).
# Guess: weights are rounded once; in eval mode, with an attention mask, a text's hidden states do not depend on what
#        else is in its batch but for the last bits.
# Seen: columns of activations beyond a threshold are found over all tokens of the pass, and computed in full precision
#       for all of them: an outlier in another text changes how this one is rounded, far beyond the last bits.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 bitsandbytes==0.50.2
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import bitsandbytes
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

print("bitsandbytes", bitsandbytes.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
made = LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0))
with torch.no_grad():
    made.model.layers[0].input_layernorm.weight[:3] = 12.0  # a few large channels, as trained models have them
    made.model.embed_tokens.weight[7, :3] = 1.0  # which token 7 makes outliers of
made.save_pretrained(f"{sys.argv[1]}/model")


def off(quantised: bool, other: list[int]) -> float:
    """How far a text's hidden states beside `other`, which is as long, are from those alone."""
    how = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if quantised else {}
    model = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/model", device_map="cpu", **how).model.eval()
    text = [20, 21, 22, 23, 24, 25, 26, 27]
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]
        beside = model(input_ids=torch.tensor([text, other]), use_cache=False).last_hidden_state[0]
    return (alone - beside).abs().max().item()


plain = off(False, [7] * 8)
calm, outlier = off(True, [30] * 8), off(True, [7] * 8)
print(f"not quantised: off by {plain:.1e}; 8 bits: {calm:.1e} beside an ordinary text, {outlier:.1e} beside outliers")
sys.exit(0 if outlier > 1e-3 and plain < 1e-5 else 1)
PY
