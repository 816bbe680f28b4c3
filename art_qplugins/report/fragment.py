"""Checks the HTML of another package for the page, and writes it out again.

The content security policy of the page already blocks scripts and requests. The check gives an error message instead of an
empty place. It also refuses HTML that would break the page: elements that are not closed, and ids that the page has
already. The checked HTML is written anew, so a browser reads exactly what was checked.
"""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

from markupsafe import Markup

__all__ = ["Refused", "checked"]

_VOID = {"area", "br", "col", "hr", "img", "input", "source", "track", "wbr"}
#: These elements run, fetch or send something, or change the page outside of the fragment.
_REFUSED_TAGS = (
    {"script", "style", "link", "meta", "base", "template", "noscript"}
    | {"iframe", "frame", "frameset", "object", "embed", "applet", "portal", "form"}
    | {"html", "head", "body", "plaintext", "xmp", "noembed", "noframes"}
)
_REFUSED_ATTRIBUTES = {"srcset", "imagesrcset", "srcdoc", "ping"}
_ADDRESSES = {"src", "href", "xlink:href", "poster", "action", "formaction", "background", "data", "longdesc"}
_INSIDE = ("#", "data:")  # prefixes of addresses that stay in the page
_URL = re.compile(r"url\(\s*['\"]?\s*([^'\")]*)", re.IGNORECASE)
_TAG, _NAME = re.compile(r"[a-z][a-z0-9:-]*"), re.compile(r"[a-z_][a-z0-9_:.-]*")


class Refused(ValueError):
    """The fragment cannot go into the page. The message is the reason."""


def checked(html: str, prefix: str) -> Markup:
    """``html`` after the check, ready for the page.

    :param prefix: required prefix of each id, so that no id is used twice.
    :raises Refused: where it runs, fetches or sends anything, leads elsewhere, or leaves an element open.
    """
    writer = _Writer(prefix)
    writer.feed(html)
    writer.close()
    if writer.open:
        raise Refused(f"<{writer.open[-1]}> is not closed")
    return Markup("".join(writer.written))


class _Writer(HTMLParser):
    """Writes the HTML that it reads, without comments and declarations."""

    def __init__(self, prefix: str) -> None:
        super().__init__(convert_charrefs=True)
        self.prefix = prefix
        self.open: list[str] = []
        self.written: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._write_start(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._write_start(tag, attrs)
        if tag not in _VOID:  # HTML takes <div/> for <div>
            self.written.append(f"</{tag}>")

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1:] != [tag]:
            raise Refused(
                f"</{tag}> closes what is not open" if tag not in self.open else f"<{self.open[-1]}> is not closed"
            )
        self.open.pop()
        self.written.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.written.append(escape(data, quote=False))

    def _write_start(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _REFUSED_TAGS or not _TAG.fullmatch(tag):
            raise Refused(f"<{tag}> is not allowed in a section")
        for name, value in attrs:
            self._check(tag, name, value or "")
        shown = "".join(f' {name}="{escape(value or "")}"' for name, value in attrs)
        self.written.append(f"<{tag}{shown}>")

    def _check(self, tag: str, name: str, value: str) -> None:
        if name.startswith("on") or name in _REFUSED_ATTRIBUTES or not _NAME.fullmatch(name):
            raise Refused(f"the attribute {name[:60]} of <{tag}> is not allowed in a section")
        attribute = f"{name}={value[:60]!r} of <{tag}>"
        addresses = [value] if name in _ADDRESSES else _URL.findall(value)
        if not all(address.strip().lower().startswith(_INSIDE) for address in addresses):
            raise Refused(f"{attribute} leads out of the page; an address must start with # or data:")
        if name == "id" and not value.startswith(self.prefix):
            raise Refused(f"{attribute} may be in the page already; an id must begin with {self.prefix}")
