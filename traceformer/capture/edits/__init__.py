"""Edits of a model's forward passes. What is recorded meanwhile are the edited numbers.

What a change is worth is measured in `questions`.

session     `with tf.edit(model, *edits)`: edits at work, on the right texts, heads and positions
kinds       the kinds of edits, as a user writes them: `tf.edits`
changes     what each kind does to the numbers that it is about
positions   which tokens are meant: numbers, slices, masks, words
columns     where the columns of a pass stand in their texts
touching    tensors of a pass handed to callables that may put others in their place
started     passes that begin at the block, and the position, that is touched
sweeping    one place after the other touched, in rows of batches; what comes of it, and whether that is right
slopes      how a metric changes with every place of a pass at once
jacobians   how the last layer follows from earlier ones: the matrices of a Jacobian lens
estimating  sweeps estimated from slopes
edges       what one part adds to the stream, changed in what one other part reads
metrics     one number of each pass: what sweeps look at
pairing     pairs of texts as token ids, and how their positions are matched
"""
