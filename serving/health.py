"""`python -m piston.serving.health [URL]`: exit status 0 where a server answers that it is well, for containers."""

import http.client
import sys
import urllib.request

URL = "http://127.0.0.1:8000/health"


def main(words: list[str]) -> int:
    """Ask once; what is wrong goes to stderr."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(words[0] if words else URL, timeout=5) as answer:
            answer.read()
    except (OSError, ValueError, http.client.HTTPException) as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
