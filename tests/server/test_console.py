"""The console as it is served: whole, public, and of this server alone. Browsers have their own."""

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from multiflora.adapters.merging.method import COMPAT, METHODS
from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.caller import Scope
from multiflora.server.access.rule import RULES
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).resolve().parents[2] / "server" / "console"
FILES = sorted(path.name for path in FOLDER.iterdir())
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# An XML namespace is a name, not an address.
NAMESPACE = "http://www.w3.org/2000/svg"
# What would run text as code, or a policy that allows no markup in scripts would stop.
BANNED = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(")


class Markup(HTMLParser):
    """What a page refers to, and what it holds that a strict policy stops."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.references += [given[name] or "" for name in ("src", "href") if name in given]


def read(name: str) -> str:
    return (FOLDER / name).read_text()


def page() -> Markup:
    markup = Markup()
    markup.feed(read("index.html"))
    return markup


def imported_by(name: str) -> list[str]:
    return re.findall(r'from "\./([\w.]+)"', read(name)) if name.endswith(".js") else []


async def test_the_page_is_served_under_a_strict_policy(client: httpx.AsyncClient) -> None:
    response = await client.get("/console")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        directive.split(" ", 1)
        for directive in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


async def test_all_that_the_page_needs_is_there_and_nothing_else(client: httpx.AsyncClient) -> None:
    found = {"index.html"}
    wanted = [reference.removeprefix("console/") for reference in page().references]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        response = await client.get(f"/console/{name}")
        assert response.status_code == 200, name
        media_type = MEDIA_TYPES.get(Path(name).suffix, "image/svg+xml")
        assert response.headers["content-type"].split(";")[0] == media_type
        assert "content-security-policy" in response.headers
        wanted += imported_by(name)
    assert sorted(found) == FILES


def test_nothing_is_inline() -> None:
    assert page().inline == []
    assert page().references, "a page without scripts would pass too"
    for name in FILES:
        assert not [word for word in BANNED if word in read(name)], name
        assert not re.search(r"(?<![-\w])style[:=]", read(name)), name


@pytest.mark.parametrize("name", FILES)
def test_no_other_host_is_named(name: str) -> None:
    text = read(name).replace(NAMESPACE, "")
    assert not re.search(r"\b(https?|wss?|ftp):|\bdata:\w+/|url\(|@import|\"//", text)


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2fapp.py", "%2e%2e%2fapp.py", "..%5capp.py", "app.py", "%00"]
)
async def test_there_are_no_other_files(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/console/{name}")
    assert response.status_code == 404
    assert "import" not in response.text


async def test_a_slash_too_many_leads_to_the_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/console/")
    assert response.status_code == 308
    assert str(response.url.join(response.headers["location"])) == "http://server/console"


async def test_the_page_is_public_and_what_it_asks_for_is_not(
    client: httpx.AsyncClient, service: Service
) -> None:
    service.keyring.registry.create(KeyWish(name="x", scopes=frozenset({Scope.ADMIN})))
    assert (await client.get("/v1/adapters")).status_code == 401
    for path in ("/console", "/console/app.js"):
        assert (await client.get(path)).status_code == 200


def test_every_route_that_it_asks_for_exists() -> None:
    known = {re.sub(r"\{[^}]*\}", "*", rule.split(" ")[1]).strip("/") for rule in RULES}
    asked = {
        re.sub(r"\$\{[^}]*\}", "*", path).partition("?")[0]
        for name in FILES
        for path in re.findall(r"[\"`](v1/[^\"`]+)[\"`]", read(name))
    }
    assert len(asked) > 10
    assert asked <= known, asked - known


async def test_it_reads_metrics_that_there_are(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text + (await client.get("/metrics/adapters")).text
    names = set(re.findall(r"^# TYPE multiflora_(\w+)", text, re.M))
    script = read("adapters.js") + read("traffic.js")
    gauges = set(re.findall(r'value\("(\w+)"\)', script))
    gauges |= set(re.findall(r'memory\("[\w ]+", "(\w+)"\)', script))
    counters = {name.removesuffix("_total") for name in re.findall(r'"multiflora_(\w+)"', script)}
    assert len(gauges) > 5
    assert len(counters) == 5
    known = names | {name.removesuffix("_total") for name in names}
    assert gauges | counters <= known, (gauges | counters) - known


def test_it_offers_the_methods_and_scopes_that_there_are() -> None:
    offered = {
        name: frozenset(re.findall(r'"(\w+)"', options))
        for name, options in re.findall(
            r'name: "(\w+)",.*?options: \[(.*?)\]', read("method.js"), re.S
        )
    }
    shown = {"t", "density", "gamma", "epsilon", "seed"}
    real = {m.name: m.options & shown for m in METHODS.values() if not m.name.startswith(COMPAT)}
    assert offered == real
    scopes = re.search(r"const SCOPES = \{(.*?)\};", read("keys.js"), re.S)
    assert scopes is not None
    assert set(re.findall(r"(\w+): \"", scopes.group(1))) == set(Scope)
