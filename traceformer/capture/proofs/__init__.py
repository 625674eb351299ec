"""Proofs on a given model that every recorded array means what its site says.

Nothing is recorded for keeping.

check      runs the model with and without recording, and gathers what holds
first      what is proved of a model before its first batch, always
tested     claims tested on what was recorded, and what rounding explains
place      what a claim is, and where it is tested
attention  claims about attention, from its input to what it adds to the stream
stream     claims about the residual stream, the MLP and the logits
limits     the limits that a config names, and both sides of them
probe      what can be found out about a family that has no row
"""
