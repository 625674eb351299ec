"""What is asked of a run, or of a model while it runs: one file a verb.

The arithmetic is in `analysis`, recording in `capture`, pictures in `figures`.

check       does every site of a model mean what it says?
heads       what does each head look for? Every pattern is read once
live_heads  the same of a model while it runs; no pattern is kept
statistics  what does a run look like in numbers, in bounded memory?
lens        what would the model say after each layer?
traits      which direction tells two kinds of texts apart, and how far along it is each token?
paths       which tokens led to a token of a run? No model, no torch
live_paths  one text through a model, only as far as its attention is asked for
vocabulary  what tokens are called that a run names by id only
"""
