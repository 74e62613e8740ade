"""Pages, charts, Markdown and JUnit, one of each for every command."""

from markupsafe import Markup


def code(text: str) -> Markup:
    """Text as code, in HTML and in Markdown."""
    return Markup("<code>{}</code>").format(text)
