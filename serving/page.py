"""The page at /: style and script are written into it, it loads nothing, and a policy lets it load nothing."""

import base64
import hashlib
from importlib.resources import files

from starlette.responses import Response


def page() -> Response:
    """The page; its own script and style alone may run, known by their hashes."""
    text, style, script = (_read(f"page.{kind}") for kind in ("html", "css", "js"))
    text = text.replace("<style></style>", f"<style>{style}</style>").replace(
        "<script></script>", f"<script>{script}</script>"
    )
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


def _read(name: str) -> str:
    return (files("piston.serving") / name).read_text(encoding="utf-8")


def _hash(body: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
