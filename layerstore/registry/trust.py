"""Whom TLS trusts, and where it may be done without.

Certificates are checked against the system's authorities (OpenSSL's, which SSL_CERT_FILE and
SSL_CERT_DIR replace) and those that containers-certs.d(5) names for a host. Only a registry on this
machine may be spoken to without: nobody sits between.
"""

from __future__ import annotations

import ipaddress
import os
import ssl

from layerstore.errors import StoreError, show

HTTPS_PORT = 443
_SYSTEM_DIRECTORIES = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def is_loopback(host: str) -> bool:
    """Whether a host, without its port, can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_host(registry: str) -> tuple[str, int | None]:
    """The host without brackets, and the port if there is one, of a `HOST[:PORT]`."""
    host, colon, port = registry.rpartition(":")
    if not colon or "]" in port:
        return registry.strip("[]"), None
    return host.strip("[]"), int(port)


def tls_context(host: str, port: int, directory: str | None = None) -> ssl.SSLContext:
    """The context for connections to a host.

    Args:
        host, port: of the connection.
        directory: with *.crt of authorities and *.cert and *.key of a client's certificate; None:
            the directory of this host in certs.d, if there is one.

    Raises:
        StoreError: a certificate in it cannot be read.
    """
    context = ssl.create_default_context()
    if directory is not None:
        if not os.path.isdir(directory):
            raise StoreError(f"{show(directory)}: there is no such directory of certificates")
        _add(context, directory)
    else:
        found = _certificate_directory(host, port)
        if found is not None:
            _add(context, found)
    return context


def unverified_context() -> ssl.SSLContext:
    """A context that takes any certificate, for registries on this machine."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _certificate_directory(host: str, port: int) -> str | None:
    configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for top in (os.path.join(configuration, "containers/certs.d"), *_SYSTEM_DIRECTORIES):
        for name in (f"{host}:{port}", *([host] if port == HTTPS_PORT else [])):
            path = os.path.join(top, name)
            if os.path.isdir(path):
                return path
    return None


def _add(context: ssl.SSLContext, directory: str) -> None:
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        try:
            if name.endswith(".crt"):
                context.load_verify_locations(path)
            elif name.endswith(".cert"):
                key = path.removesuffix(".cert") + ".key"
                # An encrypted key is an error, not a question on the terminal.
                context.load_cert_chain(path, key, password=lambda: b"")
        except FileNotFoundError:
            raise StoreError(
                f"{show(path)}: its key, the same name with .key, is missing"
            ) from None
        except (ssl.SSLError, OSError) as error:
            reason = (error.strerror or str(error)).partition("(_ssl")[0].strip()
            raise StoreError(f"{show(path)}: cannot be used as a certificate: {reason}") from None
