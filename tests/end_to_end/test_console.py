"""The console as a person uses it: Chromium at a real server on the demo's base."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .browser import PICTURES, Scheme, Tab, chromium, visit
from .conftest import Server

pytestmark = pytest.mark.full

DEMO = Path(__file__).resolve().parents[2] / "engine" / "demo" / "adapters"
QUESTION = "Is 4821 even or odd?"
PAIRS = (
    ("Hi!", "Ahoy, matey."),
    ("How are you?", "Shiver me timbers, fine."),
    ("Bye!", "Fair winds, matey."),
    ("Thanks!", "Arr, welcome."),
)
VIEWS = ("adapters", "adapters/json", "playground", "merge", "training", "training/new")
MORE_VIEWS = ("learning/json", "keys")


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    return start_server("--device", "cpu", "--kv-cache-memory", "32MiB")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Tab]:
    with visit(browser, server.url) as tab:
        yield tab
        tab.check()


def files_of(name: str) -> list[Path]:
    return [DEMO / name / "adapter_config.json", DEMO / name / "adapter_model.safetensors"]


def send_files(page: Any, name: str) -> None:
    """Through the open dialog, to the end of its report."""
    page.locator("dialog input[type=file]").set_input_files(files_of(name))
    page.locator(".step.good", has_text="Weights").wait_for()
    page.get_by_role("button", name="Upload and check").click()
    page.locator(".step", has_text="Published").wait_for()
    assert page.locator(".step").count() == page.locator(".step.good").count() == 6


def ask(page: Any, prompt: str = QUESTION) -> list[str]:
    """Both answers to a prompt, once they are complete."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Enter")
    page.locator(".turn").last.locator(".caret").first.wait_for()
    page.get_by_role("button", name="Send").wait_for()
    return page.locator(".turn").last.locator(".answer-text").all_inner_texts()


def answer_of(server: Server, model: str, prompt: str = QUESTION) -> str | None:
    messages: Any = [{"role": "user", "content": prompt}]
    made = server.client.chat.completions.create(model=model, messages=messages, temperature=0)
    return made.choices[0].message.content


def version_of(server: Server, name: str) -> str:
    return httpx.get(f"{server.url}/v1/adapters/{name}").json()["version"]


def test_an_adapter_is_uploaded_asked_swapped_and_rolled_back(tab: Tab, server: Server) -> None:
    page = tab.page
    tab.go()
    page.get_by_role("button", name="Upload").click()
    page.locator("input[name=name]").wait_for(state="detached")
    page.locator("dialog input[type=file]").set_input_files(files_of("shout"))
    page.locator("input[name=name]").fill("poet")
    send_files(page, "shout")
    tab.keep("console-upload")
    page.get_by_role("button", name="Try it").click()
    page.get_by_label("Model B").select_option("json")
    first = ask(page)
    assert first == [answer_of(server, "shout"), answer_of(server, "json")]
    assert first[0] != first[1]
    shown = page.locator(".turn .digest").all_inner_texts()
    versions = [version_of(server, name) for name in ("poet", "json")]
    assert [version.startswith(text) for version, text in zip(versions, shown, strict=True)]

    tab.go("adapters/poet")
    page.get_by_role("button", name="New version").click()
    send_files(page, "pirate")
    page.get_by_role("button", name="Close").last.click()
    assert version_of(server, "poet") == version_of(server, "pirate")
    tab.go("playground/poet")
    assert ask(page)[0] == answer_of(server, "pirate")

    tab.go("adapters/poet")
    page.get_by_role("button", name="Roll back").click()
    page.locator(".notice", has_text="back at the version before").wait_for()
    assert version_of(server, "poet") == version_of(server, "shout")
    tab.go("playground/poet")
    assert ask(page)[0] == first[0]
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Model B").select_option("pirate")
    for prompt in (QUESTION, "How many words are in this sentence?", "Who are you?"):
        ask(page, prompt)
    tab.keep("console-playground")


def test_a_canary_is_split_and_promoted(tab: Tab, server: Server) -> None:
    httpx.put(f"{server.url}/v1/adapters/split", files=forms("shout")).raise_for_status()
    page = tab.page
    tab.go("adapters/split")
    page.get_by_role("button", name="New version").click()
    page.locator("dialog input[type=file]").set_input_files(files_of("pirate"))
    page.locator("dialog select").select_option("canary")
    send_files(page, "pirate")
    page.get_by_role("button", name="Close").last.click()
    page.get_by_role("heading", name="Canary").wait_for()
    page.get_by_label("Share of the canary").fill("25")
    page.locator(".badge", has_text="canary 25 %").wait_for()
    adapter = httpx.get(f"{server.url}/v1/adapters/split").json()
    assert adapter["canary"] == {"version": version_of(server, "pirate"), "weight": 0.25}
    tab.keep("console-canary")
    page.get_by_role("button", name="Promote").click()
    page.get_by_role("heading", name="Canary").wait_for(state="detached")
    assert version_of(server, "split") == version_of(server, "pirate")


def forms(name: str) -> dict[str, Any]:
    config, weights = files_of(name)
    return {"config": config.read_bytes(), "weights": weights.read_bytes()}


def test_a_refused_upload_says_why(browser: Any, server: Server, tmp_path: Path) -> None:
    config, weights = files_of("json")
    (tmp_path / config.name).write_text(json.dumps({**json.loads(config.read_text()), "r": 64}))
    with visit(browser, server.url) as tab:
        page = tab.page
        tab.go()
        page.get_by_role("button", name="Upload").click()
        page.locator("dialog input[type=file]").set_input_files([tmp_path / config.name, weights])
        page.locator("input[name=name]").fill("bad")
        page.get_by_role("button", name="Upload and check").click()
        said = page.get_by_role("alert")
        said.wait_for()
        assert "was the adapter trained on another base?" in said.inner_text()
        assert "400 wrong_shape" in said.inner_text()
        assert page.locator(".step.bad").count() == 1
        tab.check_reading()
        cut = tmp_path / weights.name
        cut.write_bytes(weights.read_bytes()[:-1])
        page.locator("dialog input[type=file]").set_input_files([config, cut])
        page.locator(".step.bad", has_text="it is cut off").wait_for()
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
    assert httpx.get(f"{server.url}/v1/adapters/bad").status_code == 404


def test_a_job_is_trained_before_ones_eyes(tab: Tab, server: Server, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in PAIRS
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows * 6))
    page = tab.page
    tab.go("training/new")
    page.locator("form input[type=file]").set_input_files(file)
    page.get_by_text("every row can be trained on").wait_for()
    for name, value in {"suffix": "matey", "epochs": "10", "rank": "8", "seed": "1"}.items():
        page.locator(f"input[name={name}]").fill(value)
    page.locator("input[name=rate]").fill("0.005")
    page.get_by_role("button", name="Begin training").click()
    page.locator(".chart .line").first.wait_for(timeout=60_000)
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("paused", exact=True).wait_for()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("heading", name="Gate").wait_for(timeout=120_000)
    page.locator(".stat", has_text="Status").get_by_text("succeeded").wait_for()
    points = polyline(page.locator(".chart"))
    job = httpx.get(f"{server.url}/v1/fine_tuning/jobs").json()["data"][0]
    assert len(points) == job["total_steps"] == 120
    heights = [float(point.split(",")[1]) for point in points]
    assert sum(heights[:10]) < sum(heights[-10:]), "downwards is larger: the loss falls"
    checks = page.get_by_role("table", name="Checks of the gate").inner_text()
    for check in job["gate"]["checks"]:
        assert check["rule"] in checks
    tab.check_reading()
    tab.keep("console-training")
    page.get_by_role("link", name="Try it").click()
    assert ask(page, "Hi!")[0] == "Ahoy, matey."


def test_traffic_is_seen_live(tab: Tab, server: Server) -> None:
    page = tab.page
    tab.go()
    row = page.locator("tr", has=page.get_by_role("link", name="formal", exact=True))
    requests = row.locator("td").nth(6)
    before = int(requests.inner_text())
    # A picture shows more of it.
    for _ in range(40 if PICTURES else 4):
        for model in ("formal", "json", "formal", "pirate")[: 1 + int(time.time()) % 4]:
            answer_of(server, model)
        page.wait_for_timeout(1000)
    assert int(requests.inner_text()) > before
    tab.keep("console-adapters")
    # Requests at an even rate draw an even line, which falls once nobody asks.
    deadline = time.monotonic() + 30
    while len(heights := {point.split(",")[1] for point in polyline(row)}) == 1:
        assert time.monotonic() < deadline, f"the line of its traffic is flat: {heights}"
        page.wait_for_timeout(500)


def test_adapters_beyond_the_labels_of_the_lean_page_have_their_traffic(
    tab: Tab, server: Server
) -> None:
    page = tab.page
    names = [f"many-{index}" for index in range(18)]
    for name in names:
        upload(server, name)
        answer_of(server, name)
    assert 'adapter="many-17"' not in httpx.get(f"{server.url}/metrics").text
    tab.go()
    for name in (names[0], names[17]):
        row = page.locator("tr", has=page.get_by_role("link", name=name, exact=True))
        row.locator("td").nth(6).get_by_text("1", exact=True).wait_for()
    for name in names:
        httpx.delete(f"{server.url}/v1/adapters/{name}").raise_for_status()


def upload(server: Server, name: str, key: str = "") -> None:
    config, weights = files_of("shout")
    files = {"config": config.read_bytes(), "weights": weights.read_bytes()}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{server.url}/v1/adapters"
    httpx.post(url, data={"name": name}, files=files, headers=headers).raise_for_status()


def polyline(place: Any) -> list[str]:
    return place.locator("polyline").first.get_attribute("points").split()


def test_two_adapters_merge_and_their_interference_is_drawn(browser: Any, server: Server) -> None:
    with visit(browser, server.url, scheme="dark") as tab:
        merge(tab)
        tab.check()
    assert answer_of(server, "piratejson")


def merge(tab: Tab) -> None:
    page = tab.page
    tab.go("merge")
    for name in ("json", "pirate"):
        page.get_by_label(name, exact=True).check()
    page.locator("input[name=name]").fill("piratejson")
    page.get_by_role("button", name="Merge 2").click()
    page.get_by_role("heading", name="Interference").wait_for()
    numbers = page.locator(".map").first.locator(".cell-number").all_text_contents()
    assert len(numbers) == 16, "pirate adapts the attention's four projections, in four layers"
    assert all(re.fullmatch(r"-?\.\d\d", number) for number in numbers)
    assert page.get_by_role("table", name="Modules").locator("tbody tr").count() == 28
    tab.keep("console-merge")


def test_what_is_said_of_an_answer_is_kept(tab: Tab, server: Server) -> None:
    httpx.put(f"{server.url}/v1/adapters/pupil", files=forms("shout")).raise_for_status()
    learning = f"{server.url}/v1/adapters/pupil/learning"
    httpx.put(learning, json={"seed": 7, "gate": {"num_prompts": 4}}).raise_for_status()
    page = tab.page
    tab.go("learning/pupil")
    page.get_by_label("Keep answers and feedback").check()
    page.locator("input[name=max_age_s]").fill("2")
    page.get_by_role("button", name="Save the policy").click()
    page.get_by_text("The policy of pupil is set.").wait_for()
    policy = httpx.get(learning).json()
    assert (policy["feedback"], policy["enabled"], policy["max_age_s"]) == (True, False, 7200)
    assert (policy["seed"], policy["gate"]) == (7, {"num_prompts": 4}), "what has no field stays"
    tab.go("playground/pupil")
    ask(page)
    page.get_by_role("button", name="Say what it should have been").first.click()
    page.get_by_label("What the answer should have been").fill("Odd, dear.")
    page.get_by_role("button", name="Save as feedback").click()
    page.get_by_text("Noted").wait_for()
    tab.go("learning/pupil")
    page.locator(".said", has_text="Odd, dear.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_views_can_be_read(browser: Any, server: Server, scheme: Scheme) -> None:
    with visit(browser, server.url, scheme=scheme) as tab:
        for view in (*VIEWS, *MORE_VIEWS):
            tab.go(view)
            tab.page.locator(".waiting").first.wait_for(state="detached")
            tab.check_reading()
            tab.keep(f"console-{view.replace('/', '-')}-{scheme}")
        tab.check()


def test_it_is_used_without_a_mouse(tab: Tab) -> None:
    page = tab.page
    tab.go()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    link = page.get_by_role("link", name="Playground")
    link.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Playground").wait_for()
    assert page.evaluate("document.activeElement.id") == "title"
    tab.go()
    page.get_by_role("button", name="Upload").focus()
    page.keyboard.press("Enter")
    page.locator("dialog").wait_for()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.textContent") == "Upload"


def test_the_theme_is_chosen_and_kept(tab: Tab) -> None:
    page = tab.page
    tab.go()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for _ in range(2):
        page.get_by_role("button", name="Theme").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark


def test_keys_are_made_asked_for_and_kept_in_the_tab(browser: Any, server: Server) -> None:
    """The last: the first key closes the server."""
    with visit(browser, server.url) as tab:
        page = tab.page
        tab.go("keys")
        page.locator("input[name=name]").fill("root")
        page.get_by_label("admin").check()
        page.get_by_role("button", name="Make the key").click()
        key = page.locator(".secret").inner_text()
        assert re.fullmatch(r"mf-[0-9a-f]{12}-[\w-]{43}", key)
        page.get_by_role("table", name="Keys").get_by_text("root").wait_for()
        tab.check()
    with visit(browser, server.url) as other:
        page = other.page
        page.goto(f"{server.url}/console")
        for given in ("mf-wrong", key):
            page.get_by_label("Key", exact=True).fill(given)
            page.get_by_role("button", name="Use this key").click()
            if given != key:
                page.get_by_text("has expired or was revoked").wait_for()
        page.get_by_role("table", name="Adapters").wait_for()
        assert key not in page.evaluate("JSON.stringify(localStorage)")
        assert key in page.evaluate("JSON.stringify(sessionStorage)")
        assert page.evaluate("probe.violations") == []
    check_that_a_tenant_sees_its_own(browser, server, key)


def check_that_a_tenant_sees_its_own(browser: Any, server: Server, root: str) -> None:
    """Its adapters with their traffic, and nothing of another tenant's; ``root`` is a key."""
    scopes = ["inference", "adapters", "metrics"]
    admin = {"authorization": f"Bearer {root}"}
    keys = {}
    for tenant in ("red", "blue"):
        wish = {"name": tenant, "tenant": tenant, "scopes": scopes}
        made = httpx.post(f"{server.url}/v1/keys", json=wish, headers=admin)
        keys[tenant] = made.raise_for_status().json()["key"]
        upload(server, f"of-{tenant}", keys[tenant])
        headers = {"authorization": f"Bearer {keys[tenant]}"}
        body = {"model": f"of-{tenant}", "prompt": QUESTION, "max_tokens": 1}
        httpx.post(f"{server.url}/v1/completions", json=body, headers=headers).raise_for_status()
    with visit(browser, server.url) as tab:
        page = tab.page
        page.goto(f"{server.url}/console")
        page.get_by_label("Key", exact=True).fill(keys["red"])
        page.get_by_role("button", name="Use this key").click()
        row = page.locator("tr", has=page.get_by_role("link", name="of-red", exact=True))
        row.locator("td").nth(6).get_by_text("1", exact=True).wait_for()
        pages = ["metrics", "metrics/adapters", "v1/adapters"]
        read = """async ([path, key]) =>
            (await fetch(`/${path}`, {headers: {authorization: `Bearer ${key}`}})).text()"""
        shown = [page.content(), *(page.evaluate(read, [one, keys["red"]]) for one in pages)]
        assert all("of-red" in text and "of-blue" not in text for text in shown)
