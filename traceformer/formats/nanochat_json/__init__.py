"""Nanochat traces: one JSON object per prompt and response. A folder of them is `compat.trace_storage`.

write         a run's examples as traces
read          traces as a run, where less than all rows were captured
traces        a trace's file, read without parsing its numbers until they are asked for
trace_writer  a trace's file, written as it streams
"""
