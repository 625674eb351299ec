"""Objects in buckets: what the store asks of S3, of Google's storage and of whatever speaks like them.

Nothing here knows what a run is. Credentials and endpoints come from where every other tool finds them, and are
written nowhere.

at_once  requests of one caller that are under way together
client   one bucket: objects read, written, written only if absent, or only in place of what was seen; patiently
opening  a bucket by its address: endpoint and credentials by the standard chain
hub      a bucket of the Hugging Face Hub, which answers like any other
path     a place in a bucket, with as much of `pathlib.Path` as the store uses; and what `s3://bucket/run` means
"""
