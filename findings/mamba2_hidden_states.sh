#!/bin/sh
# transformers 5.23.0: the hidden states of Mamba2.
# Guess: output_hidden_states=True gives the embeddings, then what each block but the last hands on, then the normed
#        output of the last: n_layers + 1 entries, as of other models.
# Seen: n_layers + 1 entries, but the embeddings are not among them: they begin behind the first block, and the last
#       block's output comes twice, as it is and normed. What reads "layer i" by index reads layer i + 1.
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
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM

ids = torch.tensor([[5, 6, 7, 8]])


def first_entry_is_the_embedding(model):
    with torch.no_grad():
        hidden = model.eval()(ids, output_hidden_states=True).hidden_states
        found = torch.equal(hidden[0], model.get_input_embeddings()(ids))
    print(type(model).__name__, len(hidden), "entries for", model.config.num_hidden_layers, "layers; embedding first:", found)
    return found


torch.manual_seed(0)
print("transformers", transformers.__version__)
small = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3}
llama = LlamaForCausalLM(LlamaConfig(**small, intermediate_size=48, num_attention_heads=4))
mamba = Mamba2ForCausalLM(Mamba2Config(**small, num_heads=8, head_dim=8, state_size=16, n_groups=1))
ok = first_entry_is_the_embedding(llama) and not first_entry_is_the_embedding(mamba)
sys.exit(0 if ok else 1)
PY
