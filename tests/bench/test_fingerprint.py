import dataclasses
import os

from piston.bench.fingerprint import take_fingerprint
from piston.core.machine import num_cores, num_cpus


def test_a_machine_does_not_differ_from_itself_whatever_its_load():
    here = take_fingerprint(2)
    assert here.differences(dataclasses.replace(here, load_average=99.0)) == []


def test_what_bears_on_speed_is_told_with_both_values():
    here = take_fingerprint(2)
    versions = here.versions | {"onnxruntime": "0.1"}
    there = dataclasses.replace(here, cpu="Z80", threads=1, gpu="Voodoo", versions=versions)
    notes = here.differences(there)
    assert [note.partition(":")[0] for note in notes] == ["cpu", "threads", "gpu", "onnxruntime"]
    assert notes[0] == f"cpu: Z80, here {here.cpu}"
    assert notes[1] == "threads: 1, here 2"


def test_another_piston_is_no_difference_of_the_machine():
    here = take_fingerprint(2)
    assert here.differences(dataclasses.replace(here, versions=here.versions | {"piston": "0"})) == []


def test_cores_are_those_this_process_may_use():
    assert 1 <= num_cores() <= num_cpus() <= (os.cpu_count() or 1)
