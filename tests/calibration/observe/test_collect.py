import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from piston.calibration.graph.linears import by_input, find_linears
from piston.calibration.observe import checkpoint_file as progress_file
from piston.calibration.observe.collect import collect
from piston.calibration.observe.consumers import Gram, Tee
from piston.calibration.observe.observers import make_observer
from piston.core.errors import CalibrationError, MisuseError

ROWS = np.random.default_rng(2).integers(6, 250, (6, 40))


class Recorder:
    """Keeps everything; calls back after each array."""

    kind = "recorder"

    def __init__(self, after=lambda arrays: None):
        self.arrays = []
        self.after = after

    def update(self, array):
        self.arrays.append(array.copy())
        self.after(self.arrays)

    def state(self):
        return {"values": np.concatenate(self.arrays)} if self.arrays else {}

    def restore(self, state):
        self.arrays = list(state["values"][:, None]) if state else []


@pytest.fixture
def groups(model_dir):
    return by_input(find_linears(ir.load(model_dir / "model.onnx")))


def consumers_of(groups):
    return {
        name: Tee(make_observer("mse", name), make_observer("moving", name, per_channel=True), Gram(name))
        for name in groups
    }


def states(consumers):
    return {(name, part): array for name, consumer in consumers.items() for part, array in consumer.state().items()}


def assert_same(one, other):
    one, other = states(one), states(other)
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key], err_msg=str(key))


@pytest.fixture
def whole(model_dir, groups):
    consumers = consumers_of(groups)
    collect(model_dir, ROWS, consumers)
    return consumers


def test_a_consumer_sees_every_token_of_every_row_in_order(model_dir, groups):
    name = next(iter(groups))
    recorder, last = Recorder(), Recorder()
    collect(model_dir, ROWS, {name: recorder})
    collect(model_dir, ROWS[-1:], {name: last})
    seen = np.concatenate(recorder.arrays)
    assert seen.shape == (6, 40, 64)
    np.testing.assert_array_equal(seen[-1], last.arrays[0][0])


def test_observers_find_the_range_of_what_was_recorded(model_dir, groups):
    recorders = {name: Recorder() for name in groups}
    observers = {name: make_observer("minmax", name, per_channel=True) for name in groups}
    collect(model_dir, ROWS, recorders)
    collect(model_dir, ROWS, observers)
    for name, recorder in recorders.items():
        values = np.concatenate(recorder.arrays)
        np.testing.assert_array_equal(observers[name].range().high, values.max(axis=(0, 1)), err_msg=name)


def with_recorder(groups, after=lambda arrays: None):
    """Consumers of every group, and a recorder beside those of the first."""
    consumers, name, recorder = consumers_of(groups), next(iter(groups)), Recorder(after)
    consumers[name] = Tee(*consumers[name].consumers, recorder)
    return consumers, recorder


def assert_as_if_never_stopped(model_dir, groups, whole, work_dir):
    """Run what was stopped again: it begins where it was saved, ends as `whole`, and leaves no file."""
    (saved,) = work_dir.iterdir()
    assert saved.suffix == ".npz"
    consumers, recorder = with_recorder(groups)
    collect(model_dir, ROWS, consumers, work_dir=work_dir)
    assert len(recorder.arrays) == len(ROWS)
    found, expected = states(consumers), states(whole)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))
    assert list(work_dir.iterdir()) == []


@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_run_goes_on_to_exactly_the_same_result(model_dir, groups, whole, tmp_path, stop_after):
    def press(arrays):
        if len(arrays) == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    consumers, recorder = with_recorder(groups, press)
    with pytest.raises(KeyboardInterrupt):
        collect(model_dir, ROWS, consumers, work_dir=tmp_path)
    assert len(recorder.arrays) == stop_after
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_as_if_never_stopped(model_dir, groups, whole, tmp_path)


def test_a_run_that_died_goes_on_from_its_last_save(model_dir, groups, whole, tmp_path, monkeypatch):
    def die(arrays):
        if len(arrays) == 4:
            raise RuntimeError("killed")

    monkeypatch.setattr(progress_file, "INTERVAL", 0.0)
    monkeypatch.setattr(progress_file, "SPARING", 0.0)
    with pytest.raises(RuntimeError, match="killed"):
        collect(model_dir, ROWS, with_recorder(groups, die)[0], work_dir=tmp_path)
    assert_as_if_never_stopped(model_dir, groups, whole, tmp_path)


def test_the_second_interrupt_stops_at_once(model_dir, groups, tmp_path):
    def press_twice(arrays):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        collect(model_dir, ROWS, {next(iter(groups)): Recorder(press_twice)}, work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def interrupted(model_dir, rows, consumers, work_dir):
    name = next(iter(consumers))
    before = consumers[name].update

    def update(array):
        before(array)
        os.kill(os.getpid(), signal.SIGINT)

    consumers[name].update = update
    with pytest.raises(KeyboardInterrupt):
        collect(model_dir, rows, consumers, work_dir=work_dir)


@pytest.mark.parametrize("change", ["rows", "kind", "damage"])
def test_the_state_of_other_work_is_not_taken(model_dir, groups, tmp_path, change):
    name = next(iter(groups))
    interrupted(model_dir, ROWS, {name: make_observer("moving", name)}, tmp_path)
    (saved,) = tmp_path.iterdir()
    rows = ROWS[::-1] if change == "rows" else ROWS
    per_channel = change == "kind"
    if change == "damage":
        saved.write_bytes(saved.read_bytes()[:-40])
    found = {name: make_observer("moving", name, per_channel=per_channel)}
    expected = {name: make_observer("moving", name, per_channel=per_channel)}
    collect(model_dir, rows, found, work_dir=tmp_path)
    collect(model_dir, rows, expected)
    assert_same(found, expected)


def test_values_that_are_not_finite_name_the_tensor(model_dir, groups, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model_dir, broken)
    model = ir.load(model_dir / "model.onnx")
    weight = model.graph.initializers["model.layers.1.input_layernorm.weight"]
    weight.const_value = ir.tensor(np.full(64, np.inf, np.float32), name=weight.name)
    ir.save(model, broken / "model.onnx", external_data="model.onnx.data")
    observers = {name: make_observer("mse", f"the input of {group[0].name}") for name, group in groups.items()}
    with pytest.raises(CalibrationError, match=r"the input of model\.layers\.1\.self_attn\.q_proj has .* not|infinite"):
        collect(broken, ROWS, observers)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 97), np.int64), "have 97 tokens; .* up to 96"),
        (np.zeros((0, 5), np.int64), r"shape \[0, 5\]"),
        (np.zeros(5, np.int64), r"shape \[5\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(model_dir, groups, rows, message):
    with pytest.raises(MisuseError, match=message):
        collect(model_dir, rows, {next(iter(groups)): Recorder()})


MEASURE = """
import sys
from pathlib import Path
import numpy as np
import onnx_ir as ir
from piston.calibration.observe.collect import collect
from piston.calibration.graph.linears import by_input, find_linears
from piston.calibration.observe.observers import make_observer

model_dir = Path(sys.argv[1])
rows = np.random.default_rng(0).integers(6, 250, (int(sys.argv[2]), 96))
names = by_input(find_linears(ir.load(model_dir / "model.onnx")))
collect(model_dir, rows, {name: make_observer("mse", name) for name in names})
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")
def test_peak_memory_does_not_grow_with_the_number_of_rows(model_dir):
    def peak(num_rows):
        words = [sys.executable, "-c", MEASURE, str(model_dir), str(num_rows)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    few, many = peak(5), peak(205)
    # What the 200 rows more exposed is 53 MB; a copy of it kept would show.
    assert many - few < 8_000, f"{few} kB for 5 rows, {many} kB for 205"
