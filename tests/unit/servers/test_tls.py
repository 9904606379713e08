"""TLS: what files and contexts are taken, and what is said of others."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from duodao.errors import UsageError
from duodao.servers import options, tls


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate with its chain, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def asked(address: str = "tcp://127.0.0.1:0", **given: object) -> options.Options:
    """Checked options."""
    return options.check(address, given)


def test_files_make_a_context_of_tls_1_2(files: tuple[str, str]) -> None:
    """The context is a server's and refuses what is older than TLS 1.2."""
    made = tls.context(asked(tls=files))
    assert made is not None
    assert made.minimum_version == ssl.TLSVersion.TLSv1_2
    assert made.verify_mode == ssl.CERT_NONE
    assert tls.context(asked()) is None
    tls.check(asked("https://127.0.0.1:0", tls=files, processes=2))


def test_a_context_is_for_tcp_in_this_process() -> None:
    """An SSLContext is used as it is; with several processes or https it is an error that names what can be given."""
    given = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    assert tls.context(asked(tls=given)) is given
    tls.check(asked(tls=given))
    for address, more in (("tcp://127.0.0.1:0", {"processes": 2}), ("https://127.0.0.1:0", {})):
        with pytest.raises(UsageError, match="certificate file, key file"):
            tls.check(asked(address, tls=given, **more))


def test_plain_http_with_a_certificate_is_a_mistake(files: tuple[str, str]) -> None:
    """tls= with http:// says that https:// is meant."""
    with pytest.raises(UsageError, match="https://"):
        tls.check(asked("http://127.0.0.1:0", tls=files))


def test_files_that_dont_fit(files: tuple[str, str], tmp_path: Path) -> None:
    """A key of another certificate, garbage and an encrypted key are told before anything listens; none asks."""
    other = trustme.CA().issue_cert("localhost")
    other.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    (tmp_path / "garbage.pem").write_text("no key")
    (tmp_path / "locked.pem").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhzVp1mHoBm9AICCAAw\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    for name in ("other.pem", "garbage.pem", "locked.pem"):
        with pytest.raises(UsageError, match=r"tls=\(.*PEM key"):
            tls.check(asked(tls=(files[0], str(tmp_path / name))))
