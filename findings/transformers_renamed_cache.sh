#!/bin/sh
# transformers 5.24.0: `generate` hands a model its cache as `cache`, where 5.23.0 said `past_key_values`.
# Guess: a minor release goes on serving models of one's own (in a script, or trusted remote code) whose forward takes
#        past_key_values, or raises.
# Seen: such a model, if its forward also takes **kwargs as most do, is given one token a step and no cache under the
#       name that it knows: greedy search says something else than under 5.23.0, without an error or a warning.
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cat > "$folder/say.py" <<'PY'
import sys
import warnings

import torch
import transformers
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class Own(PreTrainedModel, GenerationMixin):
    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.inner = LlamaModel(config)
        self.head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs):
        memory = {} if past_key_values is None else {"past_key_values": past_key_values}
        own = {} if past_key_values is None else {"attention_mask": attention_mask}
        out = self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=past_key_values is not None, **memory, **own)
        return CausalLMOutputWithPast(logits=self.head(out.last_hidden_state))


torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = Own(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=None, pad_token_id=0)).eval()
ids = torch.tensor([[5, 6, 7, 8]])
wanted = ids
with torch.no_grad():
    for _ in range(12):  # every step over the whole text: what greedy search means
        wanted = torch.cat([wanted, model(input_ids=wanted).logits[:, -1:].argmax(-1)], dim=1)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    got = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
about = [str(each.message) for each in said if "cache" in str(each.message) or "past_key" in str(each.message)]
print("transformers", transformers.__version__, "greedy search as meant:", torch.equal(got, wanted), "warnings of it:", about)
sys.exit(0 if torch.equal(got, wanted) else 3)
PY
"$folder/venv/bin/python" "$folder/say.py"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
status=0
"$folder/venv/bin/python" "$folder/say.py" || status=$?
if [ "$status" -eq 3 ]; then echo "seen: another text under 5.24.0"; exit 0; fi
echo "no longer seen"
exit 1
