"""A certificate for a server on this machine, made by the real openssl."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.real import require

__all__ = ["Tls", "make_tls"]


@dataclass(frozen=True)
class Tls:
    """A server's certificate that nobody but ``trusting`` trusts."""

    serving: ssl.SSLContext
    trusting: ssl.SSLContext


def make_tls(folder: Path) -> Tls:
    """A new one, in files in ``folder``."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    _make_certificate(require("openssl"), key, certificate)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return Tls(server, ssl.create_default_context(cafile=certificate))


def _make_certificate(openssl: Path, key: Path, certificate: Path) -> None:
    options = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=shop.test"
    names = "subjectAltName=DNS:shop.test,IP:127.0.0.1"
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run([openssl, *options.split(), "-addext", names, *files], check=True, capture_output=True)
