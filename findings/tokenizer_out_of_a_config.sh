#!/bin/sh
# transformers 5.23.0: AutoTokenizer.from_pretrained of a folder that holds a config.json and no tokenizer.
# Guess: an error that says so.
# Seen: for most families a tokenizer with an empty vocabulary, without a word: GPT-2's reads every text as no token at
#       all, BERT's every word as [UNK].
# Exits 0 while the behaviour is seen, 1 when it is not.
set -e
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; "$d/v/bin/pip" -q install transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$d/v/bin/python" - "$d" <<'P'
import sys
from transformers import AutoTokenizer, BertConfig, GPT2Config
seen = []
for name, config in {"gpt2": GPT2Config(), "bert": BertConfig()}.items():
    config.save_pretrained(f"{sys.argv[1]}/{name}")
    tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{name}")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("The cat sat on the mat.", add_special_tokens=False)["input_ids"])
    print(name, type(tokenizer).__name__, len(tokenizer.get_vocab()), "entries:", tokens)
    seen.append(set(tokens) <= {"[UNK]"})
sys.exit(0 if all(seen) else 1)
P
