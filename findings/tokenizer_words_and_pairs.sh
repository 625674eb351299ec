#!/bin/sh
# transformers 5.23.0: words and pairs, as two tokenizers read them.
# 1. GPT-2 and words: tokenizer(["the", "cat"], is_split_into_words=True), made without add_prefix_space.
#    Guess: refused, or the words kept apart. Seen: the text `thecat`, without an error or a warning.
# 2. A pair whose second text is empty. Guess: tokenizer(a, "") is the row of tokenizer([a], [""]).
#    Seen: alone it is encoded as a single text, in a list as a pair, with one more [SEP].
# Exits 0 while both are seen, 1 when one is not.
set -e
home=$(mktemp -d); trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
cd "$home" && HF_HUB_OFFLINE=1 "$home/venv/bin/python" - <<'PY'
import json, sys
from pathlib import Path
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

print("transformers", transformers.__version__)
seen = []

gpt2 = Path("gpt2"); gpt2.mkdir()
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
(gpt2 / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(alphabet)} | {"<|endoftext|>": 256}))
(gpt2 / "merges.txt").write_text("#version: 0.2\n")
(gpt2 / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
(gpt2 / "config.json").write_text('{"model_type": "gpt2"}')
tokenizer = AutoTokenizer.from_pretrained("gpt2")
try:
    text = tokenizer.decode(tokenizer(["the", "cat"], is_split_into_words=True)["input_ids"])
    print("1. words `the`, `cat` are read as", repr(text))
    seen.append(text == "thecat")
except Exception as error:
    print("1. refused:", error)

bert = Path("bert"); bert.mkdir()
(bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "short"]))
(bert / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
(bert / "config.json").write_text('{"model_type": "bert"}')
tokenizer = AutoTokenizer.from_pretrained("bert")
alone, listed = tokenizer("short", "")["input_ids"], tokenizer(["short"], [""])["input_ids"][0]
print("2. alone", tokenizer.convert_ids_to_tokens(alone), "in a list", tokenizer.convert_ids_to_tokens(listed))
seen.append(alone != listed)
sys.exit(0 if len(seen) == 2 and all(seen) else 1)
PY
