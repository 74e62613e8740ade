import dataclasses
import json

from toy_model import edit_manifest, manifest_of, write_bundle

from piston.cli.inspect import describe
from piston.core.bundle.manifest import FileRecord, Manifest


def test_people_are_told_what_the_bundle_is(piston, bundle):
    result = piston("inspect", bundle)
    assert (result.status, result.err) == (0, "")
    assert "bundle toy: ToyForCausalLM, 2 layers" in result.out
    assert "ort-cpu (ort-cpu/model.onnx)" in result.out
    assert "hashes match" in result.out


def test_json_is_the_manifest(piston, bundle):
    result = piston("inspect", bundle, "--json")
    assert result.err == ""
    assert Manifest.from_json(json.loads(result.out)) == Manifest.read(bundle)


def test_a_model_directory_can_be_inspected(piston, tmp_path):
    write_bundle(tmp_path, kind="model", engines=())
    assert piston("inspect", tmp_path).out.startswith("model toy:")


def test_damage_is_a_failure(refused, bundle):
    (bundle / "tokenizer.json").write_text("{}")
    status, message = refused("inspect", bundle)
    assert status == 1
    assert "tokenizer.json" in message


def test_damage_is_not_looked_for_on_request(piston, bundle):
    (bundle / "tokenizer.json").write_text("{}")
    result = piston("inspect", bundle, "--no-verify")
    assert result.status == 0
    assert "not verified" in result.out


def test_a_name_that_no_terminal_can_show_does_not_crash(piston, bundle):
    edit_manifest(bundle, lambda data: data["model"].update(name="half \ud83d"))
    assert piston("inspect", bundle).status == 0
    assert piston("inspect", bundle, "--json").status == 0


def test_numbers_are_for_people():
    manifest = manifest_of(files={"a": FileRecord(sha256="", size=1_500_000)})
    lines = "\n".join(describe(manifest, verified=True))
    assert "1, 1.5 MB" in lines
    assert "0.5 kB a token" in lines


def test_what_was_asked_and_got_is_shown_in_full():
    got = {"bits": {"lm_head": 8}, "skipped": [], "ops": ["a", "b"], "error": 0.123456}
    (engine,) = manifest_of().engines
    changed = dataclasses.replace(engine, actual=got)
    lines = describe(manifest_of(engines=(changed,)), verified=True)
    shown = {line.strip() for line in lines}
    assert {"requested max_batch 2", "actual   bits: lm_head 8", "actual   skipped: none"} <= shown
    assert {"actual   ops: a, b", "actual   error: 0.123"} <= shown
