"""Work that many processes do, on one machine or on many: an engine that exists starts them, and starts them again.

What a process does with a shard is `extraction`'s, and that no shard is committed twice the store's: here is who does
what next, and what becomes of it when a process dies.

engine     `Ray`: how many workers there are, where, and what each of them may use
recording  a worker: one process with the model, told which shards to record, and asked how far it is
ledger     which shards are whose: waiting, handed out, committed
driving    the recording of a run by workers, watched to its end
team       other work in parts: what each of them does with what it has prepared once
"""
