"""Where each site lies in a block: paths of modules, data only; families whose blocks are built alike share them.

A row names the blocks of a stack and, relative to a block, the module at whose output or input a site is seen.
`resid_pre`, `resid_post`, `embed`, `hidden` and `logits` need no entry (they are the blocks' and the model's own
inputs and outputs), nor do `q k v z attn_scores attn_pattern` (they pass through the attention function).

parts             short ways to write blocks down
decoders          decoders whose attention passes through transformers' attention function
hybrids           decoders whose blocks have attention, or something in its place, or none
outside           decoders that compute attention in code of their own
encoders          encoders
encoder_decoders  pairs of stacks
"""
