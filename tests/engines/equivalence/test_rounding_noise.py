import onnx_ir as ir
import pytest

from piston.core.bundle.manifest import Manifest
from piston.core.errors import ParityError
from piston.engines import build
from piston.engines.equivalence import answers as prove
from piston.engines.equivalence import rounding_noise
from piston.engines.equivalence.lockstep import compare
from piston.engines.ort.cpu_graph import build_ort

MAX_LENGTH = 64


@pytest.fixture(scope="module")
def canonical(toy):
    return toy("llama")


@pytest.fixture
def off_by(canonical, tmp_path):
    """off_by(times): a lowered graph whose logits are that many times their bound away, all else equal."""
    built = build_ort(canonical.path, tmp_path, MAX_LENGTH)
    exact = compare(canonical.path, built.path, canonical.cache, max_length=MAX_LENGTH)

    def off_by(times):
        model = ir.load(built.path)
        logits = next(value for value in model.graph.outputs if value.name == "logits")
        node = logits.producer()
        logits.name = "exact"
        # All logits move alike, so that the greedy token stays.
        shift = ir.tensor([times * exact.bound], dtype=ir.DataType.FLOAT)
        moved = ir.node("Add", [logits, ir.Value(name="shift", const_value=shift)])
        model.graph.register_initializer(moved.inputs[1])
        model.graph.insert_after(node, moved)
        moved.outputs[0].name, moved.outputs[0].type, moved.outputs[0].shape = "logits", logits.type, logits.shape
        model.graph.outputs[list(model.graph.outputs).index(logits)] = moved.outputs[0]
        ir.save(model, tmp_path / "off.onnx")
        return tmp_path / "off.onnx"

    return off_by


def proved(canonical, path):
    return prove.check_parity(canonical.path, path, canonical.cache, max_length=MAX_LENGTH)


def test_a_sound_model_hardly_moves_when_its_first_activations_are_rounded_otherwise(canonical):
    assert rounding_noise.slack_of(canonical.path, canonical.cache, max_length=MAX_LENGTH, windows=()) == 1


def test_the_nudge_is_one_rounding_and_moves_something(canonical, tmp_path):
    rounding_noise._nudge(canonical.path, tmp_path / "model.onnx", 0)
    found = compare(canonical.path, tmp_path / "model.onnx", canonical.cache, max_length=MAX_LENGTH)
    assert 0 < found.worst < 0.1


def test_a_model_that_makes_much_of_a_rounding_gets_as_much_more(canonical, monkeypatch):
    options = {"max_length": MAX_LENGTH, "windows": ()}
    monkeypatch.setattr(rounding_noise, "ROUNDING", 2.0**-14)
    loud = rounding_noise.slack_of(canonical.path, canonical.cache, **options)
    assert 1 < loud <= rounding_noise.MOST
    monkeypatch.setattr(rounding_noise, "FACTOR", 2 * rounding_noise.FACTOR)
    monkeypatch.setattr(rounding_noise, "MOST", 1e9)
    assert rounding_noise.slack_of(canonical.path, canonical.cache, **options) == pytest.approx(2 * loud, rel=0.01)


def test_the_widest_slack_has_an_end(canonical, monkeypatch):
    monkeypatch.setattr(rounding_noise, "ROUNDING", 0.5)
    options = {"max_length": MAX_LENGTH, "windows": ()}
    assert rounding_noise.slack_of(canonical.path, canonical.cache, **options) == rounding_noise.MOST


def test_beside_an_int8_cache_nothing_is_widened(canonical):
    cache = canonical.cache.with_dtype("int8")
    assert rounding_noise.slack_of(canonical.path, cache, max_length=MAX_LENGTH, windows=()) == 1


@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
def test_rounded_activations_are_shared_there_too(toys, tmp_path, scheme):
    """Else one code more or less, of a value on the edge, would be taken for the model's noise."""
    source = toys.model_dir(scheme=scheme)
    manifest = Manifest.read(source)
    with prove.reference_of(source / "model.onnx", manifest, tmp_path) as reference:
        assert rounding_noise.slack_of(reference, manifest.cache, max_length=40, windows=()) == 1


def test_the_copies_lie_in_the_work_directory_and_not_beside_the_users_model(canonical, tmp_path, monkeypatch):
    seen = []

    def compared(one, other, *arguments, **options):
        seen.append(other)
        return compare(one, other, *arguments, **options)

    monkeypatch.setattr(rounding_noise, "compare", compared)
    rounding_noise.slack_of(canonical.path, canonical.cache, max_length=MAX_LENGTH, windows=(), work=tmp_path)
    assert len(seen) == len(rounding_noise.SEEDS)
    assert all(path.is_relative_to(tmp_path) for path in seen)


def test_what_is_within_the_bound_is_not_asked_for_its_noise(canonical, off_by, monkeypatch):
    monkeypatch.setattr(prove, "slack_of", lambda *_, **__: pytest.fail("asked"))
    assert proved(canonical, off_by(0.9)).slack == 1


def test_a_difference_that_rounding_explains_is_allowed_and_recorded(canonical, off_by, monkeypatch):
    monkeypatch.setattr(prove, "slack_of", lambda *_, **__: 3.0)
    parity = proved(canonical, off_by(2.0))
    assert parity.slack == 3
    assert parity.bound / 3 < parity.max_abs < parity.bound


@pytest.mark.parametrize("slack", [1.0, 3.0])
def test_a_larger_one_is_not(canonical, off_by, monkeypatch, slack):
    monkeypatch.setattr(prove, "slack_of", lambda *_, **__: slack)
    with pytest.raises(ParityError, match="logits differ by"):
        proved(canonical, off_by(4.0))


def test_what_the_widest_bounds_do_not_allow_is_not_asked_for_its_noise(canonical, off_by, monkeypatch):
    monkeypatch.setattr(prove, "slack_of", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ParityError, match="logits differ by"):
        proved(canonical, off_by(1.1 * rounding_noise.MOST))


def test_the_slack_stands_in_the_manifest(model_dir, tmp_path):
    build(model_dir, tmp_path / "bundle", ["ort-cpu"], max_length=MAX_LENGTH)
    (engine,) = Manifest.read(tmp_path / "bundle").engines
    assert engine.actual["parity"]["slack"] == 1
