"""The page: nothing from elsewhere, and a policy that lets exactly its own script and style run."""

import base64
import hashlib
import re

from serve.routes.page import PAGE, content_security_policy


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html = PAGE.read_text()
    assert "://" not in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", html)
    assert not re.search(r"\son[a-z]+=|\sstyle=", html)  # the policy would block them


def test_the_policy_names_the_hashes_of_the_pages_own_script_and_style() -> None:
    html = PAGE.read_text()
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = content_security_policy(html)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_the_page_never_writes_text_as_html() -> None:
    html = PAGE.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", html)
