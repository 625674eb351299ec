"""Models changed while they run, and what became of it.

metrics   one number of each pass: what sweeps look at
pairing   pairs of texts as token ids, and how their positions are matched
"""
