#!/bin/sh
# transformers 5.23.0: PaliGemma, given input_ids alone (no token_type_ids), attends causally under "eager" and to all
# tokens under "sdpa" (its text config has use_bidirectional_attention=True, so that no mask means no mask there):
# the same weights and tokens give other logits. Exits 0 while that is seen, 1 when it is no longer.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

text = {"model_type": "gemma", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
torch.manual_seed(0)
model = PaliGemmaForConditionalGeneration(
    PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32, image_token_id=98)).eval()
with torch.no_grad():
    for p in model.parameters():
        p.normal_(std=0.2)
ids = torch.arange(5, 12)[None]
logits = {}
for implementation in ("eager", "sdpa"):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        logits[implementation] = model(input_ids=ids).logits
        changed = model(input_ids=torch.cat([ids[:, :-1], ids[:, -1:] + 7], 1)).logits
    ahead = (changed - logits[implementation])[:, :-1].abs().max().item()
    print(f"{implementation}: another last token changes earlier logits by {ahead:.3f}")
far = (logits["eager"] - logits["sdpa"]).abs().max().item()
print(f"transformers {transformers.__version__}, torch {torch.__version__}: eager and sdpa differ by {far:.3f}")
sys.exit(0 if far > 1e-2 else 1)
PY
