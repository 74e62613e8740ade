"""--processor-time: a table of the seconds of each file's tests, their fixtures and their child processes.

On a machine with other work the processor's seconds say more than elapsed ones; on an idle one, the difference is what
tests wait for.
"""

import resource
import time
from collections import defaultdict

import pytest

SECONDS = "seconds"  # (of the processor, elapsed)
DURATIONS_MIN = 1.0  # of a test that has a line of its own


def pytest_addoption(parser):
    parser.addoption("--processor-time", action="store_true", help="show the processor seconds of files and tests")


def seconds() -> tuple[float, float]:
    """User and system seconds of this process and of the children it has waited for, and a clock."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used), time.perf_counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[SECONDS] = seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":
        spent = [now - before for now, before in zip(seconds(), item.stash[SECONDS], strict=True)]
        item.user_properties.append((SECONDS, spent))
    return (yield)


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--processor-time"):
        return
    reports = [report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "when")]
    tests = {report.nodeid: dict(report.user_properties)[SECONDS] for report in reports if report.when == "teardown"}
    files = defaultdict(lambda: [0.0, 0.0])
    for name, spent in tests.items():
        of_file = files[name.partition("::")[0]]
        of_file[:] = [before + more for before, more in zip(of_file, spent, strict=True)]
    slow = {name: spent for name, spent in tests.items() if max(spent) >= DURATIONS_MIN}
    processor, elapsed = (sum(column) for column in zip(*tests.values(), strict=True)) if tests else (0, 0)
    for title, rows in (("files", files), ("tests", slow)):
        terminalreporter.section(f"seconds of {title}: processor {processor:.0f}, elapsed {elapsed:.0f} in all")
        for name, spent in sorted(rows.items(), key=lambda row: -max(row[1])):
            terminalreporter.write_line(f"{spent[0]:8.1f} {spent[1]:8.1f}  {name}")
