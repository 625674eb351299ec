"""What is asked of a run, or of a model while it runs: one file a verb.

The arithmetic is in `analysis`, recording in `capture`, pictures in `figures`.

check           does every site of a model mean what it says?
heads           what does each head look for? Every pattern is read once
heads_of_run    these of a run, by this process or by workers
recorded_heads  the same of a run whose head metrics were worked out while it was recorded
statistics      what does a run look like in numbers, in bounded memory?
thumbnails      what do all heads look like in small? Kept beside the run
clusters        which heads are alike, in one table or in several?
compare         how do two runs over the same texts differ?
common_texts    which texts both have, and which tokens stand for each other
compared_streams  the layers of the one against those of the other
compared_heads  where each head looks, against where another does
compared_readouts  what both predict
training_texts  what a byte-level model was measured on while it was trained
lens            what would the model say after each layer?
lens_checks     what has to hold before: translators and readout are the model's own
fit_lens        what would it say, once each layer is put in the place of the last one?
fit_jacobian    the matrices of a Jacobian lens, of the model while it reads the texts again
fitting_rows    the rows that such a lens is fitted on, chosen by and measured on
attribute       what does each part of the model add to a logit? No model run, no torch
roles           all of it in one row per head: the role card
circuits        what do the weights alone say of each head?
model_of_run    the model that a run was recorded with, known to be the same as then
recorded        a run to ask: the run itself, or one in memory of a model over texts
sights          which keys do the queries of a run see? Measured in its patterns
patch           what does one place know of what tells two texts apart?
ablate          what is lost without a head, an MLP or a layer?
ablation        this made ready in one process, or in each worker
sweeps          the axes, groups and results that both have
effects_folder  effects in a folder: written pair by pair, and opened again
traits          which direction tells two kinds of texts apart, and how far along it is each token?
probes          which label can be read off at each layer, by planes?
probe_labels    what is a label: a column, an array, a mapping, a function
probe_rows      the rows of a run that probes are fitted on
dose            how far does steering move a trait, and what does it cost in fluency?
estimates       the same estimated from slopes, and the largest effects measured
edges           what does one part's contribution do in what one other part reads?
edits           the kinds of edits, and those that are made of a direction
trait_rows      the rows of a run that traits are made of
paths           which tokens led to a token of a run? No model, no torch
live_paths      one text through a model, only as far as its attention is asked for
vocabulary      what tokens are called that a run names by id only
"""
