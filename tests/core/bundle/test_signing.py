import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st
from scripted_piston import script_engines
from toy_model import replying

from piston.core.bundle.signing import PublicKey, check_signature
from piston.core.errors import Error, SignatureError
from piston.runtime.model import load

# Made by minisign 0.11 (-G -W; -S, and -S -l for the older form): what it accepts, we accept.
PUBLIC = "RWQw+9GWGHlcoITBeTfATaw2gjJAkKYwfeiOqru1Mpn1J+TbLMSsdEyf"
OTHER = "RWQ24LsjK4U1JJKyUxe1XZyHfQysX29Repe1KVg2c+KysOGZR34LEWIu"
DATA = b'{"manifest": 1}'
SIGNATURE = """untrusted comment: signature from minisign secret key
RUQw+9GWGHlcoDMqkejZzBq78sDb0E1rVmetIVQ35IdkFGV72FfzxAN3Ev/Bf4eSApTzT/I1HrWREUvsh2XzPUReSWzz2NvpYQ8=
trusted comment: model:toy
AtegWyMq+oH35qcBEZl6VHBq7cbFZZsfrhBZ4RS9LzzjTbn93QigzfWIeKrp57j2I3j7mGAGivlqf52BzslhAQ==
"""
OLDER = """untrusted comment: signature from minisign secret key
RWQw+9GWGHlcoMlSVrBFDCUfF4ZVR4AmDvU1vRq9yO/xFiOYCUc1JOszhhNvKIgrMOjDwwYepj8Ow+VF13aLhZqYqJt5hENKTgA=
trusted comment: model:toy
IuVLnCic6hbVth1imvDSF2fXbdIFhFUCPQoj/T/1gxRoSTSTdwhIdZlihoYyoMd49p7p3OeAlUdGnBbJWlhsAA==
"""
KEY = PublicKey.parse(PUBLIC, "pub")


@pytest.mark.parametrize("signature", [SIGNATURE, OLDER])
def test_a_signature_of_minisign_is_accepted_and_its_comment_is_told(signature):
    assert check_signature(DATA, signature, KEY, "sig") == "model:toy"


def test_a_key_is_read_from_its_file_and_named_as_minisign_names_it():
    key = PublicKey.parse(f"untrusted comment: minisign public key A05C791896D1FB30\n{PUBLIC}\n", "pub")
    assert (key, key.shown_name) == (KEY, "A05C791896D1FB30")


@pytest.mark.parametrize("position", [0, len(DATA) // 2, len(DATA) - 1])
def test_a_changed_byte_is_told(position):
    changed = bytes(byte ^ (1 if index == position else 0) for index, byte in enumerate(DATA))
    with pytest.raises(SignatureError, match="changed after it was signed"):
        check_signature(changed, SIGNATURE, KEY, "sig")


def test_a_changed_comment_is_told():
    with pytest.raises(SignatureError, match="trusted comment"):
        check_signature(DATA, SIGNATURE.replace("model:toy", "model:boy"), KEY, "sig")


def test_a_signature_of_another_key_is_told_by_both_names():
    other = PublicKey.parse(OTHER, "pub")
    with pytest.raises(SignatureError, match="A05C791896D1FB30, not of 2435852B23BBE036"):
        check_signature(DATA, SIGNATURE, other, "sig")
    disguised = PublicKey(KEY.name, other.key)
    with pytest.raises(SignatureError, match="not over these bytes"):
        check_signature(DATA, SIGNATURE, disguised, "sig")


@given(st.text(max_size=400) | st.binary(max_size=200).map(lambda raw: f"a\n{base64.b64encode(raw).decode()}\n" * 2))
def test_any_text_is_refused_as_ours(text):
    with pytest.raises(SignatureError):
        check_signature(DATA, text, KEY, "sig")
    with pytest.raises(Error):
        PublicKey.parse(text, "key")


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
def test_what_minisign_signs_is_accepted(tmp_path):
    def minisign(*words):
        subprocess.run(["minisign", *map(str, words)], check=True, capture_output=True, stdin=subprocess.DEVNULL)

    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(DATA)
    minisign("-G", "-W", "-p", tmp_path / "k.pub", "-s", tmp_path / "k.key")
    minisign("-S", "-m", manifest, "-s", tmp_path / "k.key", "-t", "theirs")
    key = PublicKey.parse((tmp_path / "k.pub").read_text(), "k.pub")
    assert check_signature(DATA, (tmp_path / "manifest.json.minisig").read_text(), key, "sig") == "theirs"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "k.pub"
    path.write_text(PUBLIC)
    return path


def test_verify_checks_the_signature_before_anything_is_read(refused, bundle, key_file):
    (bundle / "manifest.json.minisig").write_text(SIGNATURE)
    (bundle / "manifest.json").write_text(json.dumps({"manifest": 2}))
    status, message = refused("verify", bundle, "--public-key", key_file)
    assert (status, "Do not trust the bundle" in message) == (1, True)


def test_verify_without_a_signature_says_how_to_sign(refused, bundle, key_file):
    status, message = refused("verify", bundle, "--public-key", key_file)
    assert (status, f"minisign -Sm {bundle}/manifest.json" in message) == (1, True)
    assert refused("verify", bundle, "--signature", key_file)[0] == 2


@pytest.fixture(scope="module")
def private_key():
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
def signer(tmp_path, private_key):
    """The file of a public key, whose secret key is at hand."""
    raw = b"Ed" + bytes(8) + private_key.public_key().public_bytes_raw()
    path = tmp_path / "signer.pub"
    path.write_text(f"untrusted comment: public key\n{base64.b64encode(raw).decode()}\n")
    return path


@pytest.fixture
def signed(bundle, signer, private_key):
    """A bundle signed as minisign signs: Ed25519 over BLAKE2b-512, and over the signature and its comment."""
    signature = private_key.sign(hashlib.blake2b((bundle / "manifest.json").read_bytes()).digest())
    whole = private_key.sign(signature + b"model:toy")
    lines = ["untrusted comment: signature", base64.b64encode(b"ED" + bytes(8) + signature).decode()]
    lines += ["trusted comment: model:toy", base64.b64encode(whole).decode(), ""]
    (bundle / "manifest.json.minisig").write_text("\n".join(lines))
    return bundle


def changed(path, name="another"):
    data = json.loads(path.read_text())
    data["model"]["name"] = name
    path.write_text(json.dumps(data))


@pytest.fixture
def replies(monkeypatch):
    script_engines(replying("hello you"), monkeypatch.setattr)


def test_load_takes_what_the_key_has_signed_and_nothing_else(signed, signer, replies):
    with load(signed, public_key=signer) as model:
        assert model.manifest.model.name == "toy"
    changed(signed / "manifest.json")
    with pytest.raises(SignatureError, match="Do not trust the bundle"):
        load(signed, public_key=str(signer))


def test_load_of_an_unsigned_bundle_with_a_key_is_refused(bundle, signer, replies):
    with pytest.raises(SignatureError, match="There is no signature"):
        load(bundle, public_key=signer)


@pytest.mark.parametrize("use", [lambda path, key: load(path, public_key=key), None])
def test_what_is_checked_is_what_is_loaded_though_the_manifest_is_exchanged_after_its_first_read(
    signed, signer, replies, piston, monkeypatch, use
):
    """Whoever reads manifest.json once more gets another one, which nobody has signed."""
    path, reads, read_bytes = signed / "manifest.json", [], Path.read_bytes

    def exchanged(self):
        data = read_bytes(self)
        if self == path:
            reads.append(data)
            changed(path)
        return data

    monkeypatch.setattr(Path, "read_bytes", exchanged)
    if use is not None:
        with use(signed, signer) as model:
            assert model.manifest.model.name == "toy"
    else:
        piston("verify", signed, "--public-key", signer)
    assert len(reads) == 1


def test_run_and_chat_take_the_key_too(signed, signer, piston, refused):
    assert piston("run", signed, "--prompt", "a", "--max-tokens", "4", "--public-key", signer).status == 0
    assert piston("chat", signed, "--public-key", signer).status == 0
    changed(signed / "manifest.json")
    for words in (["run", signed, "--prompt", "a"], ["chat", signed]):
        status, message = refused(*words, "--public-key", signer)
        assert (status, "Do not trust the bundle" in message) == (1, True)
