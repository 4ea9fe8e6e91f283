"""Signatures are RFC 8032's, and openssl agrees with both the keys and the signatures."""

import hashlib
import shutil
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pipeline import signing
from pipeline.errors import InputError

RFC_8032 = [
    (  # section 7.1, TEST 2
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (  # TEST 3
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("secret", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(secret, message, signature):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert signing.sign(key, bytes.fromhex(message)).hex() == signature
    assert signing.is_signed(bytes.fromhex(message), bytes.fromhex(signature), key.public_key())


def test_a_changed_byte_or_another_key_is_noticed():
    key = Ed25519PrivateKey.generate()
    signature = signing.sign(key, b"payload")
    assert signing.is_signed(b"payload", signature, key.public_key())
    assert not signing.is_signed(b"paylaod", signature, key.public_key())
    assert not signing.is_signed(b"payload", signature[:-1], key.public_key())
    assert not signing.is_signed(b"payload", signature, Ed25519PrivateKey.generate().public_key())


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "keys" / "site.key"
    key = signing.private_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {p.name for p in path.parent.iterdir()} == {"site.key", "site.pub"}
    public = signing.public_key(path.with_suffix(".pub"))
    assert signing.is_signed(b"x", signing.sign(signing.private_key(path), b"x"), public)
    assert signing.fingerprint(public) == signing.fingerprint(key.public_key())


def openssl(*words, **how):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return subprocess.run(["openssl", *map(str, words)], capture_output=True, check=True, **how).stdout


def test_openssl_verifies_what_we_sign(tmp_path):
    key = signing.private_key(tmp_path / "site.key")
    (tmp_path / "SUMS").write_bytes(b"digests")
    (tmp_path / "SUMS.sig").write_bytes(signing.sign(key, b"digests"))
    said = openssl(
        "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", tmp_path / "site.pub",
        "-in", tmp_path / "SUMS", "-sigfile", tmp_path / "SUMS.sig",
    )  # fmt: skip
    assert b"Signature Verified Successfully" in said
    der = openssl("pkey", "-pubin", "-in", tmp_path / "site.pub", "-outform", "DER")
    assert hashlib.sha256(der).hexdigest() == signing.fingerprint(key.public_key())


def test_we_verify_what_openssl_signs(tmp_path):
    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "a.key")
    openssl("pkey", "-in", tmp_path / "a.key", "-pubout", "-out", tmp_path / "a.pub")
    (tmp_path / "SUMS").write_bytes(b"digests")
    signature = openssl("pkeyutl", "-sign", "-rawin", "-inkey", tmp_path / "a.key", "-in", tmp_path / "SUMS")
    assert signature == signing.sign(signing.private_key(tmp_path / "a.key"), b"digests")
    assert signing.is_signed(b"digests", signature, signing.public_key(tmp_path / "a.pub"))


def other_kind():
    return X25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key in PEM"),
        (b"x" * 20_000, "too large for a key"),
        (other_kind().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "another kind than Ed25519"),
        (other_kind().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "not a private key"),
    ],
)
def test_what_is_no_private_key(content, sentence, tmp_path):
    path = tmp_path / "some.key"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        signing.private_key(path)


def test_a_key_with_a_password(tmp_path):
    openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", tmp_path / "a.key")
    with pytest.raises(InputError, match="has a password"):
        signing.private_key(tmp_path / "a.key")


def test_what_is_no_public_key(tmp_path):
    signing.private_key(tmp_path / "a.key")
    with pytest.raises(InputError, match="no such key"):
        signing.public_key(tmp_path / "b.pub")
    with pytest.raises(InputError, match="not a public key in PEM"):
        signing.public_key(tmp_path / "a.key")


def test_a_key_is_never_made_beside_the_public_key_of_another(tmp_path):
    signing.private_key(tmp_path / "a.key")
    (tmp_path / "a.key").rename(tmp_path / "safe")
    with pytest.raises(InputError, match="but its public one"):
        signing.private_key(tmp_path / "a.key")
    with pytest.raises(InputError, match="suffix of public keys"):
        signing.private_key(tmp_path / "a.pub")
