"""`python -m tests.store.bucket_writer s3://BUCKET/RUN` writes a run of tests there, or resumes it: to be killed."""

import sys

from tests.store import runs
from tests.store.contract.worlds import write_shards
from traceformer.errors import NotFound
from traceformer.store.leased import LeasedWriter
from traceformer.store.objects.path import ObjectPath


def main(address: str) -> None:
    place, layout = ObjectPath.parse(address), runs.long_plan()
    try:
        writer = LeasedWriter.resume(place, layout, runs.META, digest=runs.DIGEST)
    except NotFound:
        writer = LeasedWriter.create(place, layout, runs.META, digest=runs.DIGEST)
    with writer:
        write_shards(writer)
        print(writer.finish(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
