"""The Linux control groups around this process, of both versions: where a container's limits are written.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/cgroups.html
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

Version = Literal[1, 2]


def groups(root: Path, controller: str) -> Iterator[tuple[Path, Version]]:
    """Directories of the groups of this process and all around them, whose limits hold as well.

    `root` is where /proc and /sys are found. A directory need not exist; no control groups give none.
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
