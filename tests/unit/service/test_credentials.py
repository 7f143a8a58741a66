"""Tokens, certificates and the files that hold them."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from pathlib import Path

import pytest

from framework._service import credentials


def test_a_token_is_written_and_read() -> None:
    token = credentials.new_token()
    assert credentials.parse_token(credentials.token_text(token, None)) == (token, None)
    assert credentials.new_token() != token


@pytest.mark.parametrize(
    "text", ["", "xyz", "ab", "ab" * 31 + "-", "ab" * 32 + "-ab", "ab" * 32 + "-xy", "-"]
)
def test_what_is_no_token_is_not_shown(text: str) -> None:
    if text == "ab" * 31 + "-":
        assert credentials.parse_token(text)[1] is None, "an empty second part is none"
        return
    with pytest.raises(ValueError) as caught:
        credentials.parse_token(text)
    assert "FRAMEWORK_TOKEN" in str(caught.value)
    assert len(text) < 4 or text not in str(caught.value)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRAMEWORK_TOKEN", raising=False)
    assert credentials.token_from_environment() is None
    monkeypatch.setenv("FRAMEWORK_TOKEN", " " + "0a" * 32 + "\n")
    assert credentials.token_from_environment() == (b"\x0a" * 32, None)
    monkeypatch.setenv("FRAMEWORK_TOKEN", "secret")
    with pytest.raises(ValueError):
        credentials.token_from_environment()


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["cryptography", "openssl"])
def test_a_certificate_can_be_used_and_is_pinned_by_the_token(maker: str, tmp_path: Path) -> None:
    if maker == "cryptography":
        pytest.importorskip("cryptography")
        certificate, key = credentials._by_cryptography()
    elif shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    else:
        certificate, key = credentials._by_openssl()
    der = ssl.PEM_cert_to_DER_cert(certificate.decode())
    token = credentials.new_token()
    secret, pin = credentials.parse_token(credentials.token_text(token, certificate))
    import hashlib

    assert (secret, pin) == (token, hashlib.sha256(der).hexdigest())
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "c", tmp_path / "k")


def test_what_is_no_certificate() -> None:
    for text in (b"", b"-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----"):
        with pytest.raises(ValueError, match="PEM"):
            credentials.fingerprint(text)


def test_without_either_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="framework\\[tls\\]"):
        credentials._by_openssl()


def test_private_files(tmp_path: Path) -> None:
    path = str(tmp_path / "f.json")
    before = os.umask(0)
    try:
        credentials.write_private(path, {"a": 1})
        credentials.write_private(path, {"a": 2})
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert credentials.read_private(path) == {"a": 2}
    assert os.listdir(tmp_path) == ["f.json"]
    Path(path).write_text("[1]")
    with pytest.raises(ValueError, match="object"):
        credentials.read_private(path)
