"""Ed25519 signatures, with keys as `openssl` writes and reads them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from pipeline.atomic import atomic
from pipeline.errors import InputError

PUBLIC = ".pub"
"""The suffix of the public key that stands beside a private one."""

OWNER_ONLY = 0o600
"""Whoever reads a private key can sign in its owner's name."""

LARGEST_KEY = 10_000
"""Bytes; an Ed25519 key in PEM has about 120, so more than this is another file given by mistake."""


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with; where there is no such file, a new key, and the public one beside it.

    Args:
        path: PEM, PKCS8 without a password, as `openssl genpkey -algorithm ed25519` writes it. A new file is readable
            by its owner alone; the public key goes to the same name with the suffix `.pub`.

    Raises:
        InputError: the file is no such key, or is meant for a public one.
    """
    if path.suffix == PUBLIC:
        raise InputError(f"{path}: {PUBLIC} is the suffix of public keys; name the private one, say {path.stem}.key")
    if not path.exists():
        return _made(path)
    try:
        key = load_pem_private_key(_read(path), password=None)
    except TypeError:
        raise InputError(f"{path}: the key has a password; give one without, kept where only its owner reads") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(
            f"{path}: not a private key in PEM; make one with openssl genpkey -algorithm ed25519"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is a key of another kind than Ed25519; make one with openssl genpkey") from None
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The key to verify with: PEM, SubjectPublicKeyInfo, as `openssl pkey -pubout` writes it.

    Raises:
        InputError: the file is missing or is no such key.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such key")
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: not a public key in PEM; give the {PUBLIC} file of whoever signed") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is a key of another kind than Ed25519")
    return key


def sign(key: Ed25519PrivateKey, payload: bytes) -> bytes:
    """The signature: 64 bytes, the same every time (RFC 8032)."""
    return key.sign(payload)


def is_signed(payload: bytes, signature: bytes, public: Ed25519PublicKey) -> bool:
    """Whether the owner of the private key has signed exactly these bytes."""
    try:
        public.verify(signature, payload)
    except InvalidSignature:
        return False
    return True


def fingerprint(public: Ed25519PublicKey) -> str:
    """SHA-256 of the key, to be compared over the telephone.

    It is what `openssl pkey -pubin -in KEY.pub -outform DER | sha256sum` prints.
    """
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _made(path: Path) -> Ed25519PrivateKey:
    """A new pair of keys on disk; the public one first, so that no private key stands there without it."""
    public = path.with_suffix(PUBLIC)
    if public.exists():
        raise InputError(
            f"{path}: there is no such key, but its public one, {public}; give the right path, or remove it"
        )
    key = Ed25519PrivateKey.generate()
    with atomic(public) as temporary:
        temporary.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with (
        atomic(path) as temporary,
        os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY), "wb") as file,
    ):
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def _read(path: Path) -> Any:
    if path.stat().st_size > LARGEST_KEY:
        raise InputError(f"{path}: too large for a key")
    return path.read_bytes()
