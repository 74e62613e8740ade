import base64
import hashlib
import re

from toy_model import replying


def test_the_page_loads_nothing_foreign_and_only_its_own_script_may_run(live):
    status, headers, data = live(replying("x")).request("GET", "/")
    text = data.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http://" not in text
    assert "https://" not in text
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = headers["content-security-policy"]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_no_page_is_a_404(live):
    assert live(replying("x"), settings={"page": False}).request("GET", "/")[0] == 404
