"""What proves that a process belongs to a cluster: its token, and a certificate that is pinned by it.

``FRAMEWORK_TOKEN`` holds ``<secret>`` or ``<secret>-<fingerprint>``: the shared secret in hexadecimal digits
and, where connections are encrypted, the SHA-256 of the head's certificate (DER), by which a process that
joins knows the head. Neither ever stands in a command line or in a log.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
from typing import Any

from framework._base import limits
from framework._base.secret import Secret, SecretText, hidden

TOKEN_VARIABLE = "FRAMEWORK_TOKEN"

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def new_token() -> bytes:
    """A fresh secret."""
    return Secret(os.urandom(limits.TOKEN_SIZE))


def parse_token(text: str) -> tuple[bytes, str | None]:
    """The secret, and the fingerprint of the head's certificate, if it is given. `ValueError`, which does not
    show it, for what is not a token."""
    text = SecretText(text)
    found, problem = _taken_apart(text)
    if found is None:
        raise ValueError(problem)  # (not from where parts of it are in variables)
    return found


def _taken_apart(text: str) -> tuple[tuple[bytes, str | None] | None, str]:
    secret, _, fingerprint = text.strip().partition("-")
    try:
        token = Secret(bytes.fromhex(secret))
        pin = bytes.fromhex(fingerprint)
    except ValueError:
        return None, (
            f"{TOKEN_VARIABLE} does not hold a token: hexadecimal digits are expected, as "
            "`python -m framework start --head` prints them"
        )
    if len(token) < limits.TOKEN_MINIMUM:
        return None, (
            f"the secret in {TOKEN_VARIABLE} is too short: at least {2 * limits.TOKEN_MINIMUM} hexadecimal "
            "digits are needed"
        )
    if fingerprint and len(pin) != hashlib.sha256().digest_size:
        return None, (
            f"what follows the secret in {TOKEN_VARIABLE} is no SHA-256 of a certificate: 64 "
            "hexadecimal digits"
        )
    return (token, fingerprint.lower() or None), ""


def token_from_environment() -> tuple[bytes, str | None] | None:
    """What ``FRAMEWORK_TOKEN`` holds, if it is set. `ValueError` when that is no token."""
    text = SecretText(os.environ.get(TOKEN_VARIABLE, ""))
    return parse_token(text) if text else None


def token_text(token: bytes, certificate: bytes | None) -> str:
    """The value of ``FRAMEWORK_TOKEN`` for those who join."""
    return SecretText(token.hex() if certificate is None else f"{token.hex()}-{fingerprint(certificate)}")


def fingerprint(certificate: bytes) -> str:
    """The SHA-256 of a certificate (PEM), of its DER form, in hexadecimal digits. `ValueError` when there is
    no certificate in it."""
    text = certificate.decode("ascii", "replace")
    _, found, rest = text.partition(_BEGIN)
    body, ended, _ = rest.partition(_END)
    if not found or not ended:
        raise ValueError("no certificate in PEM form")
    try:
        der = base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"no certificate in PEM form: {error}") from None
    return hashlib.sha256(der).hexdigest()


def make_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, both PEM, for one cluster. Names in it mean nothing: whoever
    connects compares its fingerprint. By the package ``cryptography`` or, where that is missing, by the
    program ``openssl``; `RuntimeError` when neither is there."""
    try:
        return _by_cryptography()
    except ImportError:
        return _by_openssl()


def _by_cryptography() -> tuple[bytes, bytes]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=limits.CERTIFICATE_DAYS))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return certificate.public_bytes(pem), Secret(key.private_bytes(pem, form, plain))


def _by_openssl() -> tuple[bytes, bytes]:
    import shutil
    import subprocess

    program = shutil.which("openssl")
    if program is None:
        raise RuntimeError(
            "encryption (TLS) needs a certificate: install the package `cryptography` (the extra "
            "framework[tls]) or the program `openssl`, or turn encryption off (--no-tls)"
        )
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={_NAME}", "-days", str(limits.CERTIFICATE_DAYS), "-keyout", "-", "-out", "-"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=30)
    done.stdout = Secret(done.stdout)
    text = SecretText(done.stdout.decode("ascii", "replace"))
    start = text.find(_BEGIN)
    key = SecretText(text.partition(_BEGIN)[0])
    if done.returncode or start < 0 or "PRIVATE KEY" not in key:
        raise RuntimeError(f"openssl made no certificate: {done.stderr.decode(errors='replace').strip()}")
    return text[start:].encode(), Secret(key.encode())


_NAME = "framework cluster"


# ---- files that hold secrets -------------------------------------------------------------------------


def write_private(path: str, facts: dict[str, Any]) -> None:
    """Write JSON to a file that only this user may read, complete from the first moment on."""
    fresh = f"{path}.{os.getpid()}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    data = SecretText(json.dumps(facts))
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(data)
        os.rename(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


def read_private(path: str) -> dict[str, Any]:
    """What such a file holds. OSError when it cannot be read, `PermissionError` among them when it is not
    private, or not this user's: whoever else could have written it would have us believe what he likes.
    `ValueError` when it is no JSON object."""
    with open(path, opener=_open_own) as file:
        facts = json.load(file)
    if not isinstance(facts, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return hidden(facts)


def _open_own(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        os.close(fd)
        raise PermissionError(f"{path} is not a file of this user alone")
    return fd
