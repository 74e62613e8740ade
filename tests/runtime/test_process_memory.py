import pytest

from piston.runtime.process_memory import container_memory

MB = 1_000_000


@pytest.fixture
def machine(tmp_path):
    """Lay out /proc and /sys; gives what `container_memory` makes of them."""

    def read(cgroup, **files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        return container_memory(tmp_path)

    return read


def v2(directory, limit, usage, inactive=0):
    return {
        f"{directory}/memory.max": limit,
        f"{directory}/memory.current": usage,
        f"{directory}/memory.stat": f"anon 1\ninactive_file {inactive}\n",
    }


def v1(directory, limit, usage, inactive=0):
    return {
        f"{directory}/memory.limit_in_bytes": limit,
        f"{directory}/memory.usage_in_bytes": usage,
        f"{directory}/memory.stat": f"cache 1\ntotal_inactive_file {inactive}\n",
    }


def test_a_limit_leaves_what_is_not_used_yet(machine):
    assert machine("0::/\n", **v2("sys/fs/cgroup", 1000 * MB, 300 * MB)) == 700 * MB


def test_page_cache_that_the_kernel_gives_up_counts_as_free(machine):
    assert machine("0::/\n", **v2("sys/fs/cgroup", 1000 * MB, 300 * MB, 200 * MB)) == 900 * MB


def test_the_tightest_group_around_the_process_counts(machine):
    files = v2("sys/fs/cgroup/a/b", 5000 * MB, 0) | v2("sys/fs/cgroup/a", 400 * MB, 100 * MB)
    assert machine("0::/a/b\n", **files) == 300 * MB


def test_a_path_of_the_host_falls_back_on_what_is_mounted(machine):
    assert machine("0::/docker/1234\n", **v2("sys/fs/cgroup", 800 * MB, 0)) == 800 * MB


def test_version_1_is_read_too(machine):
    files = v1("sys/fs/cgroup/memory/docker/12", 600 * MB, 200 * MB, 50 * MB)
    assert machine("9:name=systemd:/\n4:cpu,memory:/docker/12\n0::/\n", **files) == 450 * MB


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", v2("sys/fs/cgroup", "max", 5)),
        ("3:memory:/\n", v1("sys/fs/cgroup/memory", 9223372036854771712, 5)),
        ("0::/\n", {}),
        ("", {}),
        ("nonsense", {"sys/fs/cgroup/memory.max": "much"}),
    ],
)
def test_no_limit_is_none(machine, cgroup, files):
    assert machine(cgroup, **files) is None


def test_more_used_than_allowed_leaves_nothing(machine):
    assert machine("0::/\n", **v2("sys/fs/cgroup", 100, 300)) == 0


def test_a_machine_without_proc_has_no_limit(tmp_path):
    assert container_memory(tmp_path) is None
