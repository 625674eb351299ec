"""Arithmetic: arrays in, results out.

No paths, no printing, no models: what reads a run or a model to feed it is in `questions`.

visibility  which keys a query can see, by the kind of attention and the window of its layer
heads       head metrics: one pass over a pattern, tile by tile, and never a second square
head_tally  the same added up over examples, in an order that threads cannot change
statistics  attention, activations and logits in numbers, without holding them all
clusters    heads in clusters: Ward, k-means, mixtures; how many, and what each is like
directions  directions fitted in three ways, and tried on examples that they were not fitted on
projection  activations along directions, and how that develops along a text
lens        the logit lens: which norm, which unembedding, and the likeliest tokens without all logits
paths       which tokens led to a token
"""
