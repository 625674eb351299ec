"""Arithmetic: arrays in, results out.

No paths, no printing, no models: what reads a run or a model to feed it is in `questions`.

visibility      which keys a query can see, by kind of attention and window; padding is cut away before
conventions     the three conventions in which activity becomes numbers, and their thresholds
methods         the words for how clusters and directions are found
rows            rows of attention in numbers: one formula for all verbs
repeats         how many queries of a text can see a repeat, without looking at every pair of tokens
heads           head metrics: one pass over a pattern, tile by tile, and never a second square
head_tally      the same added up over examples, in an order that threads cannot change
head_metrics    all metrics of all heads as one table
head_curves     the same along the steps of a training
statistics      attention, activations and logits in numbers, without holding them all
run_statistics  those of a run as values, rows and JSON
clusters        heads in clusters: Ward, k-means, mixtures; how many, and what each is like
head_clusters   heads of several tables in clusters, as one value
directions      directions fitted in three ways, and tried on examples that they were not fitted on
logistic        logistic regressions over rows that are read again in every pass
probes          linear probes of a label, as a value
probe_controls  how texts are split for probes, and what is beside these
projection      activations along directions, and how that develops along a text
lens            the logit lens: which norm, which unembedding, and what each layer of an example says
lens_tally      the likeliest tokens, entropies, ranks and divergences of rows without all logits
translators     an affine map per layer into the place of the last one: tuned, ridge or Jacobian lens
ridge           such a map by ridge regression, from sums that rows are added to
attribution     what each part of a model adds to a logit, as a value
logit_split     how that is split: norms as linear maps at the scale they had
thumbnails      patterns in at most 32 x 32 pixels, which lose no line
massive         the few entries of the stream that are hundreds of times the median
roles           behaviour, weights and ablation of every head in one table
circuits        what heads copy, how full their matrices are, which feed which: from weights
paths           which tokens led to a token
effects         what came of touching one place after the other
agreement       how far estimates agree with what was measured
alignment       which tokens of one text are which of another's
similarity      how alike two sets of rows are: linear CKA and Procrustes distance
divergence      how far apart two predictions are, and two patterns
comparison      two runs compared, as a value
edges           from a part that adds to the residual stream to one that reads it, and the effects of these
dose            a trait and fluency against the scale of steering
"""
