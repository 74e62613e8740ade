"""Commands of a user who has no HOME and no entry in /etc/passwd, as in containers that run with a random id."""

import os
import shutil
import subprocess
import sys

import pytest

from piston.core.bundle.manifest import Manifest

NOBODY = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
COMMANDS = """
import os, pwd, sys
from piston.cli.main import main
try:
    sys.exit(f"{pwd.getpwuid(os.getuid()).pw_name} has an entry")
except KeyError:
    pass
for line in sys.argv[1:]:
    if main(line.split()) != 0:
        sys.exit(f"{line} failed")
"""
LINES = [
    "export CHECKPOINT -o exported --quiet",
    "build exported -o built --quiet",
    "run built --prompt a --max-tokens 2 --quiet",
    "run ENCODER --text hello",
    "plan TRANSLATOR --memory 1GB",
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="user namespaces are Linux's")
def test_commands_work_without_a_home_and_without_a_name(places, tmp_path):
    if not shutil.which("unshare") or subprocess.run([*NOBODY, "true"], check=False, capture_output=True).returncode:
        pytest.skip("making a user namespace is not allowed here")
    for name in ("CHECKPOINT", "ENCODER", "TRANSLATOR"):
        (tmp_path / name).symlink_to(places / name)
    (tmp_path / "temporary").mkdir()
    bare = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "PISTON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in bare}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    words = [*NOBODY, sys.executable, "-c", COMMANDS, *LINES]
    result = subprocess.run(words, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Manifest.read(tmp_path / "built").engines
