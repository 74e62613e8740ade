import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_piston import script_engines
from toy_model import replying, write_bundle

from piston.core.bundle.signing import PublicKey, SecretKey, check_signature
from piston.core.errors import Error, MisuseError, SignatureError
from piston.runtime.model import load

KEY = SecretKey.new()
DATA = b'{"manifest": 1}'
SIGNATURE = KEY.sign(DATA, "model:toy")


def test_what_was_signed_is_checked_and_its_comment_is_told():
    assert check_signature(DATA, SIGNATURE, KEY.public_key, "sig") == "model:toy"


@pytest.mark.parametrize("position", [0, len(DATA) // 2, len(DATA) - 1])
def test_a_changed_byte_is_told(position):
    changed = bytes(byte ^ (1 if index == position else 0) for index, byte in enumerate(DATA))
    with pytest.raises(SignatureError, match="changed after it was signed"):
        check_signature(changed, SIGNATURE, KEY.public_key, "sig")


def test_a_changed_comment_is_told():
    with pytest.raises(SignatureError, match="trusted comment"):
        check_signature(DATA, SIGNATURE.replace("model:toy", "model:boy"), KEY.public_key, "sig")


def test_a_signature_of_another_key_is_told_by_both_names():
    other = SecretKey.new()
    with pytest.raises(SignatureError, match=KEY.public_key.shown_name):
        check_signature(DATA, SIGNATURE, other.public_key, "sig")
    disguised = PublicKey(KEY.name, other.public)
    with pytest.raises(SignatureError, match="not over these bytes"):
        check_signature(DATA, SIGNATURE, disguised, "sig")


def test_keys_are_read_back():
    assert SecretKey.parse(KEY.to_text(), "key") == KEY
    assert PublicKey.parse(f"untrusted comment: x\n{KEY.public_key}\n", "pub") == KEY.public_key


def test_a_damaged_secret_key_is_refused():
    raw = bytearray(base64.b64decode(KEY.to_text().split("\n")[1]))
    raw[70] ^= 1
    with pytest.raises(MisuseError, match="checksum"):
        SecretKey.parse(base64.b64encode(bytes(raw)).decode(), "key")
    raw[126:] = bytes(32)
    with pytest.raises(MisuseError, match="halves"):
        SecretKey.parse(base64.b64encode(bytes(raw)).decode(), "key")


def test_a_secret_key_is_never_shown():
    assert KEY.seed.hex() not in repr(KEY)
    assert base64.b64encode(KEY.seed).decode() not in repr(KEY)


@given(st.text(max_size=400) | st.binary(max_size=200).map(lambda raw: f"a\n{base64.b64encode(raw).decode()}\n" * 2))
def test_any_text_is_refused_as_ours(text):
    with pytest.raises(SignatureError):
        check_signature(DATA, text, KEY.public_key, "sig")
    for parse in (SecretKey.parse, PublicKey.parse):
        with pytest.raises(Error):
            parse(text, "key")


minisign = pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")


def run_minisign(*words):
    subprocess.run(["minisign", *words], check=True, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def keys(tmp_path, piston):
    assert piston("sign", "--new-key", tmp_path / "k").status == 0
    return tmp_path / "k.key", tmp_path / "k.pub"


@pytest.fixture
def signed(piston, bundle, keys):
    assert piston("sign", bundle, "--key", keys[0]).status == 0
    return bundle


@minisign
def test_minisign_accepts_our_signature(signed, keys):
    run_minisign("-V", "-m", str(signed / "manifest.json"), "-p", str(keys[1]))


@minisign
def test_minisign_signs_with_our_key(bundle, keys):
    run_minisign("-S", "-m", str(bundle / "manifest.json"), "-s", str(keys[0]))
    run_minisign("-V", "-m", str(bundle / "manifest.json"), "-p", str(keys[1]))


@minisign
def test_minisign_refuses_what_we_refuse(signed, keys):
    (signed / "manifest.json").write_text("{}")
    with pytest.raises(subprocess.CalledProcessError):
        run_minisign("-V", "-m", str(signed / "manifest.json"), "-p", str(keys[1]))


@minisign
@pytest.mark.parametrize("form", [(), ("-l",)])
def test_we_accept_the_signature_of_minisign(bundle, tmp_path, form):
    public, secret = tmp_path / "m.pub", tmp_path / "m.key"
    run_minisign("-G", "-W", "-p", str(public), "-s", str(secret))
    run_minisign("-S", *form, "-m", str(bundle / "manifest.json"), "-s", str(secret), "-t", "theirs")
    key = PublicKey.parse(public.read_text(), "m.pub")
    text = (bundle / "manifest.json.minisig").read_text()
    assert check_signature((bundle / "manifest.json").read_bytes(), text, key, "sig") == "theirs"
    assert SecretKey.parse(secret.read_text(), "m.key").public_key == key


def test_a_new_key_is_for_its_owner_alone_and_replaces_none(keys, refused):
    secret, public = keys
    assert secret.stat().st_mode & 0o077 == 0
    status, message = refused("sign", "--new-key", secret.with_suffix(""))
    assert (status, "exists already" in message) == (2, True)
    assert public.read_text().startswith("untrusted comment: minisign public key ")


@pytest.mark.parametrize("output", ["k.key", "bundle/manifest.json", "bundle/ort-cpu/model.onnx"])
def test_a_signature_replaces_neither_the_key_nor_what_is_signed(refused, bundle, keys, tmp_path, output):
    before = (tmp_path / output).read_bytes()
    status, message = refused("sign", bundle, "--key", keys[0], "-o", tmp_path / output)
    assert (status, "would replace" in message) == (2, True)
    assert (tmp_path / output).read_bytes() == before


def test_a_damaged_bundle_is_not_signed(refused, bundle, keys):
    (bundle / "tokenizer.json").write_text("{}")
    status, message = refused("sign", bundle, "--key", keys[0])
    assert (status, "tokenizer.json" in message) == (1, True)


def test_verify_checks_the_signature_before_anything_is_read(refused, signed, keys):
    path = signed / "manifest.json"
    data = json.loads(path.read_text())
    data["model"]["name"] = "another"
    path.write_text(json.dumps(data))
    status, message = refused("verify", signed, "--public-key", keys[1])
    assert (status, "Do not trust the bundle" in message) == (1, True)


def test_verify_without_a_signature_says_so(refused, bundle, keys):
    status, message = refused("verify", bundle, "--public-key", keys[1])
    assert (status, "There is no signature" in message) == (1, True)
    assert refused("verify", bundle, "--signature", keys[1])[0] == 2


def test_sign_wants_a_bundle_and_a_key_or_a_new_key(refused, bundle, tmp_path):
    assert refused("sign", bundle)[0] == 2
    assert refused("sign", bundle, "--new-key", tmp_path / "x")[0] == 2
    assert refused("sign", bundle, "--key", tmp_path / "nowhere")[0] == 2
    write_bundle(tmp_path / "b")


def changed(path, name="another"):
    data = json.loads(path.read_text())
    data["model"]["name"] = name
    path.write_text(json.dumps(data))


@pytest.fixture
def replies(monkeypatch):
    script_engines(replying("hello you"), monkeypatch.setattr)


def test_load_takes_what_the_key_has_signed_and_nothing_else(signed, keys, replies):
    with load(signed, public_key=keys[1]) as model:
        assert model.manifest.model.name == "toy"
    changed(signed / "manifest.json")
    with pytest.raises(SignatureError, match="Do not trust the bundle"):
        load(signed, public_key=str(keys[1]))


def test_load_of_an_unsigned_bundle_with_a_key_is_refused(bundle, keys, replies):
    with pytest.raises(SignatureError, match="There is no signature"):
        load(bundle, public_key=keys[1])


@pytest.mark.parametrize("use", [lambda path, key: load(path, public_key=key), None])
def test_what_is_checked_is_what_is_loaded_though_the_manifest_is_exchanged_after_its_first_read(
    signed, keys, replies, piston, monkeypatch, use
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
        with use(signed, keys[1]) as model:
            assert model.manifest.model.name == "toy"
    else:
        piston("verify", signed, "--public-key", keys[1])
    assert len(reads) == 1


def test_what_is_signed_is_the_manifest_that_was_verified(bundle, keys, piston, monkeypatch):
    path, read_bytes = bundle / "manifest.json", Path.read_bytes
    verified = read_bytes(path)

    def exchanged(self):
        data = read_bytes(self)
        if self == path:
            changed(path)
        return data

    monkeypatch.setattr(Path, "read_bytes", exchanged)
    assert piston("sign", bundle, "--key", keys[0]).status == 0
    monkeypatch.undo()
    key = PublicKey.parse(keys[1].read_text(), "pub")
    assert check_signature(verified, path.with_name("manifest.json.minisig").read_text(), key, "sig")


def test_run_and_chat_take_the_key_too(signed, keys, piston, refused):
    assert piston("run", signed, "--prompt", "a", "--max-tokens", "4", "--public-key", keys[1]).status == 0
    assert piston("chat", signed, "--public-key", keys[1]).status == 0
    changed(signed / "manifest.json")
    for words in (["run", signed, "--prompt", "a"], ["chat", signed]):
        status, message = refused(*words, "--public-key", keys[1])
        assert (status, "Do not trust the bundle" in message) == (1, True)
