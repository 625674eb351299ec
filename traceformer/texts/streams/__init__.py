"""Texts that are read as they come, in bounded memory, and gone on with at the record where a run stopped.

    open_stream("texts/*.jsonl.gz", shuffle=Shuffle(seed=7, buffer=1000)).read()

How a model reads them, and which of them a shard holds, is in `capture`.

load     from what a user names, or an iterable, to the stream that is meant
reading  records in order, shuffled or not, and the point that a stream was read to
parts    one file of a stream, or all of what is none: records from any number on
tars     WebDataset's archives as such a part
forward  a file's bytes, unpacked, from the beginning on
"""
