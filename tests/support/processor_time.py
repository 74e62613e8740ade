"""--processor-time: a table of the processor seconds of each file's tests, their fixtures and their child processes.

On a machine with other work these seconds say more than elapsed ones.
"""

import resource
from collections import Counter

import pytest

SECONDS = "processor seconds"
DURATIONS_MIN = 1.0  # of a test that has a line of its own


def pytest_addoption(parser):
    parser.addoption("--processor-time", action="store_true", help="show the processor seconds of files and tests")


def processor_seconds() -> float:
    """User and system seconds of this process and of the children it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[SECONDS] = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":
        item.user_properties.append((SECONDS, processor_seconds() - item.stash[SECONDS]))
    return (yield)


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--processor-time"):
        return
    reports = [report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "when")]
    tests = Counter(
        {report.nodeid: dict(report.user_properties)[SECONDS] for report in reports if report.when == "teardown"}
    )
    files: Counter[str] = Counter()
    for name, seconds in tests.items():
        files[name.partition("::")[0]] += seconds
    slow = Counter({name: seconds for name, seconds in tests.items() if seconds >= DURATIONS_MIN})
    for title, rows in (("files", files), ("tests", slow)):
        terminalreporter.section(f"processor seconds of {title}: {sum(tests.values()):.0f} in all")
        for name, seconds in rows.most_common():
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
