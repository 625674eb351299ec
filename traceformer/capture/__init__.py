"""Forward passes observed: the recording of texts and of generations, and the proof that it is right.

What is kept goes to `store`; what it means is asked in `questions`. A recording changes no result of the model.

extract     texts to a run
extraction  one that is ready: planned and proved, then opened and recorded shard by shard
checkpoints  the checkpoints of one training over the same texts, a run each
prepared    what is known before the first byte is written
generation  prompts to a run
proofs      proofs on a given model that every site means what it says
attention   the registered attention function: patterns beside a pass, never in its place
compiled    patterns by the compiled core: which calls it takes, and what a run states of it
scores      scores and patterns: from what, and how they are computed
own_attention  attention modules that compute scores themselves, watched
recorder    the `with` block that observes forward passes, and leaves no hook behind
tensors     the tensors of a module's call, and which part of them is which array
spots       where stream and MLPs are seen, and which of their arrays are one tensor
passes      one pass: what it has yet to show, and where its true tokens are
sinks       who takes what it shows: as it is, or to make something else of it
packing     which rows share a batch: so many, or so many tokens with little padding
batches     batches of rows, and the one loop that runs them
sharing     which rows may share a pass: those whose numbers no other row of it changes
sight       which attentions let a query look at later keys: measured
gaps        which layers of a model have a place: attention, and MLPs, may be in some of them only
plan        from what was asked for to the arrays that a given model can give
tokenizing  the texts that a model is to read, and their tokens, made when they are asked for
encoding    texts, pairs, words and ids into tokens, as the model will read them
given       a processor's batch of text, images and sounds, as a model's forward takes it
streaming   texts that come as a stream to a run: shard by shard, with an end that is said or found
streamed    the examples of a stream with their tokens, and where it stood before them
shards      what is looked at and counted with each shard of texts
processed   the examples in such batches: their tokens, and what these stand for
chats       conversations as one model reads them: in its chat template
windows     consecutive windows of one long file
rereading   how likely a model finds responses, and where they lie
edits       edits of forward passes, and what is recorded meanwhile
derived     what is kept in place of rows: projections onto directions, and the logit lens
topk        what is kept in place of patterns: the largest keys of each query
measured    the same: head metrics, a row per head and text
following   calls held against the recipes of a recording whose patterns are not stored
recipes     how patterns follow from q and k, read from a model's longest text
reduced     both made ready for the texts and the store of one run
tuning      affine maps tuned until a layer says what the model says in the end
workers     one recording, or other work, by many processes, which Ray starts
pipeline    from the device to the store: bounded, asynchronous, in order
crossing    tensors from a device to the host: gathered, sent in lots, taken in order
hosts       what computes a shard here, and what to say where another host went before
provenance  what must be equal to resume a run, and what fills in `store.meta`: where it came from
"""
