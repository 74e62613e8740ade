"""A page taken apart, for tests of HTML."""

from html.parser import HTMLParser

VOID = {"meta", "br", "hr"}


class Outline(HTMLParser):
    """Tags with their attributes, and a check that every one is closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
