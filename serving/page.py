"""The page at /: one file that loads nothing from elsewhere, and a policy that lets it load nothing else."""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import Response


def page() -> Response:
    """The page; its own script and style alone may run, known by their hashes."""
    text = (files("piston.serving") / "page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {_hash(text, 'script')}; style-src {_hash(text, 'style')}"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


def _hash(text: str, tag: str) -> str:
    (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
