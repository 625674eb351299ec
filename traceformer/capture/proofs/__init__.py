"""Proofs on a given model that every recorded array means what its site says.

Nothing is recorded for keeping.

check       runs the model with and without recording, and gathers what holds
place       what a claim is, and where it is tested
attention   claims about attention, from its input to what it adds to the stream
stream      claims about the residual stream, the MLP and the logits
experts     claims about mixtures of experts: where tokens go, with what weights
edits       what is proved of edits: to the bit where they change nothing
recipes     patterns by recipe, made anew of what is recorded, against it and the model's own
limits      the limits that a config names, and both sides of them
first       what is proved of a model before its first batch, always
given       what is proved of a processor's batch before it is recorded
handed_on   which blocks take what the block before them made: watched meanwhile
tested      claims tested on what was recorded, and what rounding explains
watch       one pass watched: what each module reads, what it makes, and when
find        the row of a model without one, from such a pass
find_block  which module of a block plays which part in it
find_mlp    which module plays which part in a block's MLP
find_steps  what a block adds to the stream, one thing after the other
find_gate   a gate between the heads' mixed values and the output projection
block       one block as it was watched, and by what its tensors and modules are told apart
fit         a row proved on the user's texts, without what does not hold
readout     whether another family's readout is a model's own
probe       what can be found out about a family that has no row
"""
