"""A bucket by its address: endpoint and credentials by the standard chain, as every other tool finds them.

1. `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`,
   `AWS_REGION`, a web identity, a container's or a machine's role: the client's own chain. With
   `AWS_SKIP_SIGNATURE=true`, what is public.
2. Profiles in `~/.aws`, where the environment has no keys: boto3 reads them, if it is installed.
3. Google's: `GOOGLE_APPLICATION_CREDENTIALS`, what `gcloud` left, or the machine's role.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound
from traceformer.store.objects.client import ObjectStore, Stores

if TYPE_CHECKING:
    from obstore.store import ObjectStore as AnyStore

    from traceformer.store.objects.hub import HubBucket

__all__ = ["SCHEMES", "open_bucket"]

SCHEMES = ("s3", "gs", "hf")
_QUICK, _READING, _SENDING = "30s", "30s", "15m"
_OWN_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
_OWN_KEYS_TOO = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE")


@lru_cache(maxsize=64)
def open_bucket(scheme: str, bucket: str) -> "ObjectStore | HubBucket":
    """Returns the bucket; nothing is asked of it yet.

    Raises:
        NotFound: obstore is not installed, or the profile that holds the credentials cannot be read without boto3.
    """
    if scheme == "hf":
        from traceformer.store.objects.hub import open_hub_bucket

        return open_hub_bucket(bucket.removeprefix("buckets/"))
    try:
        import obstore  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError as error:
        raise NotFound(
            "buckets need obstore", why="it is not installed", hint='pip install "traceformer[buckets]"'
        ) from error
    open_one = _open_s3 if scheme == "s3" else _open_gs
    stores = Stores(
        quick=open_one(bucket, {"timeout": _QUICK}),
        reading=open_one(bucket, {"timeout": _SENDING, "read_timeout": _READING}),
        sending=open_one(bucket, {"timeout": _SENDING}),
    )
    return ObjectStore(f"{scheme}://{bucket}", stores)


def _open_s3(bucket: str, waiting: dict[str, Any]) -> "AnyStore":
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: Any = {**waiting, "allow_http": True} if (endpoint or "").startswith("http://") else waiting
    stated: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    profile = _profile()
    if profile is not None:
        provider, region = profile
        stated |= {"credential_provider": provider, **({"region": region} if region else {})}
    return S3Store(bucket, client_options=options, retry_config=_once(), **stated)


def _open_gs(bucket: str, waiting: dict[str, Any]) -> "AnyStore":
    from obstore.store import GCSStore

    options: Any = waiting
    return GCSStore(bucket, client_options=options, retry_config=_once())


def _once() -> Any:
    """The client itself tries once: only who knows what a lost answer means may try again."""
    from datetime import timedelta

    return {"max_retries": 0, "retry_timeout": timedelta(0)}


def _profile() -> tuple[Any, str | None] | None:
    """Returns what reads a profile of `~/.aws`, and its region; None where credentials come from elsewhere."""
    if any(name in os.environ for name in (*_OWN_KEYS, *_OWN_KEYS_TOO)):
        return None
    files = [
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    ]
    if "AWS_PROFILE" not in os.environ and not any(Path(file).expanduser().exists() for file in files):
        return None
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ModuleNotFoundError as error:
        why = f"credentials are in a profile ({' or '.join(files)}), which boto3 reads"
        raise NotFound("no credentials for a bucket", why=why, hint="pip install boto3") from error
    session = boto3.Session()
    if session.get_credentials() is None:  # a file that says where, and not who
        return None
    return Boto3CredentialProvider(session), session.region_name
