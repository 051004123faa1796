"""GET / and /ui: one self-contained page that streams. It loads nothing from elsewhere, and the policy says so."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

PAGE = Path(__file__).parent.parent / "static" / "index.html"


def content_security_policy(html: str) -> str:
    """Only the page's own inline script and style, by their hashes, and requests to this server."""

    def hashes(tag: str) -> str:
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(b.encode()).digest()).decode()}'" for b in bodies)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class PageRoute:
    """The page, read once."""

    def __init__(self) -> None:
        html = PAGE.read_text(encoding="utf-8")
        self._body = html.encode()
        self._headers = {
            "Content-Security-Policy": content_security_policy(html),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def page(self, request: Request) -> Response:
        """A box for the prompt, the settings, and the text as it comes."""
        return Response(self._body, headers=self._headers, media_type="text/html")
