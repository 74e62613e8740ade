"""The Linux control groups of this process, versions 1 and 2, which hold a container's limits.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/cgroups.html
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

Version = Literal[1, 2]


def groups(root: Path, controller: str) -> Iterator[tuple[Path, Version]]:
    """Directories of this process's groups and of all their parents, whose limits apply too.

    `root` is where /proc and /sys are found. A directory need not exist; without control groups the result is empty.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version: Version = 2 if number == "0" else 1
        if version == 2:  # noqa: PLR2004
            tops = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            tops = list(dict.fromkeys([f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}"]))
        else:
            continue
        # Inside a container the path is often that of the host, and only the top is mounted.
        inner = PurePosixPath(path.lstrip("/"))
        for top in tops:
            for part in (inner, *inner.parents):
                yield root / top / part, version
