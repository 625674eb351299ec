"""Runs on disk and in memory: written so that they survive a crash, read without torch.

What the numbers mean is in `sites`; who records them, in `capture`; what is asked of them, in `questions`.

run           `Run`: everything a run holds, by example, site, the model's own layer, and head
meta          `RunMeta`: all that a run says of its model, its texts and its settings, typed
place         where a run goes: a folder of its own, a folder of runs, or memory
folders       folders of runs: what `latest` is, and what a name means
training      runs of the checkpoints of one training: a folder of runs with an axis of steps
folder        a run in a folder, opened
memory        the source of a run in memory, with the interface of one on disk, and what writes it
source        where a run's numbers and tokens come from; reading is the same from here on
saving        from memory to disk, or a copy, shard by shard
upgrading     a run of an older format in the newest one
syncing       a finished run copied to a bucket, or back: file by file, the manifest last
arrays        which array a site means, and which parts of it a layer, a head and an example need
columns       one layer over all examples, in batches, or shuffled without reading twice
training_data  rows or squares of patterns as data for training, in batches, resumed anywhere
training_order  an epoch's order, of which any stretch is known by itself, and its shares
squares       squares of one size out of the matrices of all texts
index         which examples a run holds and where their tokens lie
examples      which example is meant: by its number, or by its id
lookup        where the example of an id is, and all lengths, in one file of a finished run of many shards
tables        token tables of several shards, joined though their columns differ
topk          the largest keys of each query, where they were stored in place of patterns
xarrays       a run as xarray sees it, lazy and without gaps
aliases       each row once: which layers are another array's, and where they are read
layout        names, shapes, chunks and sizes of a run: writer and reader both ask here
room          the memory that there is, and what is refused because it would take more
sizes         how much a run takes: what examples fill, and an estimate of what is stored
names         how each array's path and name are spelt; which one a site means is in `arrays`
zarr3         metadata that every zarr reader understands, and tensorstore's handles
recipes       patterns by recipe: what a run states of patterns that it does not hold
rebuilding    patterns made anew of q and k, defined to the bit
triangles     the lower triangle of a square, row after row: all that a causal pattern has
codecs        how chunks are compressed, and what zarr's metadata says of it
dtypes        how numbers are stored: bfloat16 as bits, patterns as rounded roots, never an inf
q8            rows as bytes: codes, a scale for every 32 of them, and massive channels exactly
q8_rows       arrays that are stored so, read as the numbers that they stand for
writer        shard by shard, killed at any moment and resumed to the same bytes
leased        the same for any number of writers, by leases: to a folder, or to a bucket
writing       what all writers do with one shard: its arrays, its token table, its memory
begun         how a run begins that several may write: created once, joined, or refused
leases        who works on what, by files that run out
placing       files of a run that several may write: who comes second replaces nothing
buffer        the memory of one open shard, allocated once and used again
pages         memory of a recording's own, taken from the system once and used again
made          patterns that the compiled core makes, in the form in which they are stored
matrices      the matrices of an open shard, packed and compressed as they come
appended      files of matrices that are written while they are recorded, where no memory holds a text's
filled        what a shard's memory must be before it is kept
shards        a shard straight from memory, in zarr's sharding format
chunks        matrices read from their files, chunk by chunk
fetching      chunks in a bucket: few requests, many at once
lazy          arrays that are read when they are asked for, as views
ranged        arrays in a bucket that are no matrices, as such views
hosts         what computed a shard: facts that change how fast that goes, and last bits at most
commits       records of committed shards, the manifest, and what they promise
verification  what became of a run's files since they were written
ending        where a stream ends: the number of its examples is stated, and the run is finished
finishing     from the shards of all writers to a finished run; each step can be done again
replacing     what may be replaced, or removed: a run and nothing else; and where a run can lie at all
locks         who may write a run, and whether it was begun with the same configuration
files         durable files, sealed JSON, checksums, and locks that die with their process
durable       files that become durable together
marks         a few bytes of each array file's own, which a reader compares first
forks         processes that were forked: tensorstore and buckets are refused there, instead of an abort or a wait
beside        what was worked out of a run, kept beside its folder while there is room
direct        large files past the operating system's page cache
objects       buckets: objects written on a condition, and a place there that is read like a path
system        what operating systems do differently, each behind one name
"""
