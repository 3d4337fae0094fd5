"""The bytes of a request's images: out of data URLs, below one folder, or off the web.

The last two only where whoever runs the server allows them, and the web never at an address of this
machine or its network: a name is resolved once, and what was checked is what is connected to.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from base64 import b64decode
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_address
from urllib.parse import quote, unquote, urljoin, urlsplit

import h11

from mvw_cli.errors import BadImage
from mvw_cli.images.reading import read_file
from mvw_cli.serve.protocol import Refused

_REDIRECTS = 3
_CARRIERS = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
"""Addresses of IPv6 that stand for one of IPv4: NAT64, 6to4, Teredo."""
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Sources:
    """Where images may come from."""

    files: str | None = None
    """The folder below which `file://` is read; None: nowhere."""
    urls: bool = False
    """Whether `http://` and `https://` are fetched."""
    most_bytes: int = 32 << 20
    """Of one file."""
    fetch_s: float = 30.0
    """For one image off the web, redirects included."""

    async def read(self, url: str) -> bytes:
        """Return the bytes behind a URL.

        Raises:
            Refused: it is not allowed, or there is no JPEG, PNG or WebP.
        """
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            data = _embedded(url)
        elif scheme == "file":
            data = await asyncio.to_thread(self._file, url)
        elif scheme in ("http", "https"):
            data = await self._web(url)
        else:
            raise _refused("an image's URL begins with none of data:, file:, http: and https:")
        webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
        if not webp and not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
            raise _refused("an image is neither JPEG nor PNG nor WebP")
        return data

    def _file(self, url: str) -> bytes:
        if self.files is None:
            raise _refused("file:// is not read here: the server runs without --allow-files")
        # One sentence for all: what lies elsewhere, or does not, is nobody's business.
        nothing = _refused(f"there is no image {_short(url)} below the folder that is allowed")
        try:
            parts = urlsplit(url)
            path = os.path.realpath(unquote(parts.path))
            root = os.path.realpath(self.files)
            if parts.netloc not in ("", "localhost") or os.path.commonpath([root, path]) != root:
                raise nothing
            if os.path.getsize(path) > self.most_bytes:
                raise _refused(f"an image has more than {self.most_bytes:,} bytes")
            return read_file(path)
        except (BadImage, OSError, ValueError):
            raise nothing from None

    async def _web(self, url: str) -> bytes:
        if not self.urls:
            raise _refused("the web is not read here: the server runs without --allow-urls")
        at = url
        try:
            async with asyncio.timeout(self.fetch_s):
                for _ in range(_REDIRECTS + 1):
                    found = await self._fetch(at)
                    if isinstance(found, bytes):
                        return found
                    at = urljoin(at, found)
        except TimeoutError:
            raise _refused(f"an image did not come within {self.fetch_s:g} s") from None
        except (OSError, ValueError, h11.ProtocolError):
            raise _refused(f"an image can't be fetched: {_short(url)}") from None
        raise _refused(f"an image lies behind more than {_REDIRECTS} redirects: {_short(url)}")

    async def _fetch(self, url: str) -> bytes | str:
        """Ask once; return what is there, or where else it is.

        Raises:
            OSError, ValueError, h11.ProtocolError: it can't be had.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError(url)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        address = await _public_address(parts.hostname, port)
        reader, writer = await asyncio.open_connection(
            address, port, ssl=secure, server_hostname=parts.hostname if secure else None
        )
        try:
            connection = h11.Connection(h11.CLIENT)
            target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            if parts.query:
                target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
            headers = {"Host": parts.netloc, "Accept": "image/*", "Connection": "close"}
            asked = h11.Request(method="GET", target=target, headers=list(headers.items()))
            writer.write(connection.send(asked) + connection.send(h11.EndOfMessage()))
            body = bytearray()
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(_CHUNK))
                elif isinstance(event, h11.Response):
                    elsewhere = dict(event.headers).get(b"location")
                    if event.status_code in (301, 302, 303, 307, 308) and elsewhere:
                        return str(elsewhere, "ascii")
                    if event.status_code != 200:
                        raise ValueError(event.status_code)
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > self.most_bytes:
                        raise _refused(f"an image has more than {self.most_bytes:,} bytes")
                elif isinstance(event, h11.EndOfMessage):
                    return bytes(body)
        finally:
            writer.transport.abort()


def is_public(address: str) -> bool:
    """Whether an address is one of the internet at large, and stands for no other."""
    ip = ip_address(address)
    if ip.version == 6 and (ip.ipv4_mapped or any(ip in network for network in _CARRIERS)):
        return False
    return ip.is_global and not ip.is_multicast


async def _public_address(host: str, port: int) -> str:
    """Resolve a name; return an address to connect to.

    Raises:
        Refused: one of its addresses is not public.
        OSError, ValueError: there is no such name.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    if not all(map(is_public, addresses)):
        raise _refused("an image's URL leads to this machine or its own network")
    # Where there is no route by IPv6, a name that has both would be out of reach.
    return next((one for one in addresses if ":" not in one), addresses[0])


def _embedded(url: str) -> bytes:
    head, comma, text = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _refused("an image's data URL is not of the form data:image/png;base64,…")
    try:
        return b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise _refused(f"an image's base64 is damaged: {error}") from None


def _short(url: str) -> str:
    return url if len(url) <= 200 else f"{url[:199]}…"


def _refused(what: str) -> Refused:
    return Refused(400, what, param="messages")
