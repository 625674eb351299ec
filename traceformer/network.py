"""Whether the Hugging Face Hub can be reached, found out before its clients try for half a minute."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

__all__ = ["hub_answers"]

_PATIENCE = 3.0  # seconds


def hub_answers() -> bool:
    """Returns whether a connection to the Hub can be opened; True where a proxy stands between, which is not asked."""
    from huggingface_hub.constants import ENDPOINT

    place = urlsplit(ENDPOINT)
    if place.scheme in getproxies():
        return True
    try:
        socket.create_connection((place.hostname, place.port or _PORTS.get(place.scheme, 443)), _PATIENCE).close()
    except OSError:
        return False
    return True


_PORTS = {"https": 443, "http": 80}
