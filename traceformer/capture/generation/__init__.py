"""Prompts to a run of responses, recorded token by token while the model's own `generate` runs.

How a pass is observed is in the rest of `capture`.

generate   the whole way, batch by batch
answers    answers that are ready to be made: planned and proved, then recorded shard by shard
prompts    prompts as one model reads them, checked against its context
sampling   how the next token is chosen, in transformers' settings
respond    one batch to its responses, observed as it grows, or replayed where it is searched
replay     whether one pass over a finished text gives the numbers that its tokens were chosen by
grow       the memory of sequences whose lengths are not known yet
described  what a run says of a generation
"""
