import os

import pytest

from piston.bench.fingerprint import take_fingerprint
from piston.core import machine as cpus
from piston.core.machine import num_cores, num_cpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Lay out /proc and /sys of a machine of 32 processors, two to a core, of which this process may use `bound`."""

    def lay_out(cgroup, files, bound=range(32)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(bound), raising=False)
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        topology = {
            f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": number
            for cpu in range(32)
            for name, number in (("physical_package_id", 0), ("core_id", cpu % 16))
        }
        for name, content in (topology | files).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        return num_cpus(tmp_path), num_cores(tmp_path)

    return lay_out


def test_without_a_quota_what_the_process_is_bound_to_counts(machine):
    assert machine("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000"}) == (32, 16)


def test_processors_of_one_core_are_one_core(machine):
    assert machine("0::/\n", {}, bound=[0, 1, 16, 17]) == (4, 2)


@pytest.mark.parametrize(
    ("quota", "count"), [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("50000 25000", 2)]
)
def test_a_quota_of_version_2_is_rounded_up_to_whole_processors(machine, quota, count):
    assert machine("0::/\n", {"sys/fs/cgroup/cpu.max": quota}) == (count, count)


def test_a_quota_between_cores_and_processors_limits_processors_alone(machine):
    assert machine("0::/\n", {"sys/fs/cgroup/cpu.max": "2000000 100000"}) == (20, 16)


def test_a_quota_above_what_the_process_is_bound_to_changes_nothing(machine):
    assert machine("0::/\n", {"sys/fs/cgroup/cpu.max": "800000 100000"}, bound=range(3)) == (3, 3)


def test_the_tightest_group_around_the_process_counts(machine):
    files = {"sys/fs/cgroup/a/b/cpu.max": "800000 100000", "sys/fs/cgroup/a/cpu.max": "300000 100000"}
    assert machine("0::/a/b\n", files) == (3, 3)


def test_a_path_of_the_host_falls_back_on_what_is_mounted(machine):
    assert machine("0::/docker/1234\n", {"sys/fs/cgroup/cpu.max": "400000 100000"}) == (4, 4)


@pytest.mark.parametrize("mounted", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_is_read_too(machine, mounted):
    group = f"sys/fs/cgroup/{mounted}/docker/12"
    files = {f"{group}/cpu.cfs_quota_us": 250000, f"{group}/cpu.cfs_period_us": 100000}
    assert machine("9:name=systemd:/\n4:cpu,cpuacct:/docker/12\n0::/\n", files) == (3, 3)


def test_version_1_writes_a_negative_quota_for_no_limit(machine):
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000}
    assert machine("4:cpu:/\n", files) == (32, 16)


@pytest.mark.parametrize("content", ["", "many 100000", "100000", "100000 0"])
def test_what_is_no_quota_limits_nothing(machine, content):
    assert machine("0::/\n", {"sys/fs/cgroup/cpu.max": content}) == (32, 16)


def test_a_benchmark_names_what_the_quota_leaves(monkeypatch):
    monkeypatch.setattr(cpus, "_quota", lambda *_: 1.0)
    here = take_fingerprint(1)
    assert (here.num_cpus, here.num_cores) == (1, 1)
