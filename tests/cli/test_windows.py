"""Bundles of every kind are read on Windows: on a Python without what Windows lacks."""

from windows import on_windows

LINES = [
    "run BUNDLE --prompt a --max-tokens 2 --quiet",
    "run ENCODER --text hello --json",
    "run ANSWERER --question who --context hello",
    "run RERANKER --query who --document hello",
    "run EMBEDDER --text girl",
    "run TRANSLATOR --text sea --max-tokens 2 --quiet",
    "run SPEECH --audio SOUND.wav --language en --format srt --quiet",
    "run MODULE --input ARRAYS.npz",
    "chat BUNDLE --max-tokens 2",
    "eval ENCODER --data TEXT --reference ENCODER --quiet",
    "diff ENCODER ENCODER --data TEXT --quiet",
    "explain ENCODER --text hello --quiet",
    "verify ENCODER --quiet",
    "plan TRANSLATOR --memory 1GB",
    "doctor SPEECH",
    "sbom MODULE",
]
COMMANDS = """
from piston.cli.main import main
for line in sys.argv[1:]:
    if main(line.split()) != 0:
        sys.exit(f"{line} failed")
"""


def test_what_reads_a_bundle_works(places):
    found = on_windows(COMMANDS, *LINES, cwd=places, input="hello\n")
    assert found.returncode == 0, found.stderr
    assert "error:" not in found.stderr
