"""The rendered book in a real browser with the network off: what a reader would meet.

A tiny book with the real settings is always built and opened; the real one is opened as well where
`make book` has left it newer than its sources.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

pytest.importorskip("nbformat")

import fixture_book

from poisonkit import book

sync_api = pytest.importorskip("playwright.sync_api")

CHECKOUT = Path(__file__).resolve().parent.parent
LOCAL = {"file", "data", "blob", "about"}
# sphinx-thebe puts its settings twice into each page; nothing else on the page depends on them.
TOLERATED = "Identifier 'THEBE_JS_URL' has already been declared"
LAUNCHED = re.compile(
    r"https://mybinder\.org/v2/gh/poisonkit/poisonkit/main\?urlpath=lab/tree/(?P<binder>.+)"
    r"|https://colab\.research\.google\.com/github/poisonkit/poisonkit/blob/main/(?P<colab>.+)"
    r"|https://github\.com/poisonkit/poisonkit/(?:blob|tree|edit)/main/(?P<github>[^#?]+)"
)
LOOK = """async () => {
    if (document.querySelector('.math')) {
        await window.MathJax?.startup?.promise?.catch(() => null);
    }
    await document.fonts.ready;
    const images = [...document.images];
    images.forEach((image) => { image.loading = 'eager'; });
    await Promise.all(images.map((image) => image.decode().catch(() => null)));
    return {
        title: document.title,
        links: [...document.querySelectorAll('a[href]')].map((link) => link.href),
        ids: [...document.querySelectorAll('[id]')].map((element) => element.id),
        broken: images.filter((image) => !image.naturalWidth)
            .map((image) => image.src.slice(0, 200)),
        formulas: document.querySelectorAll('.math').length,
        unrendered: [...document.querySelectorAll('.math')]
            .filter((formula) => !formula.querySelector('mjx-container'))
            .map((formula) => formula.textContent),
        misread: [...document.querySelectorAll('mjx-merror')].map((error) => error.title),
    };
}"""


@dataclass(kw_only=True)
class Book:
    html: Path
    checkout: Path


@dataclass(kw_only=True)
class Visit:
    """What one page held and did while it opened."""

    path: Path
    seen: dict[str, Any]
    requested: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    executable = next((found for name in names if name and (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no chromium on this machine (CHROMIUM names one elsewhere)")
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield chromium
        chromium.close()


def real_book_is_current() -> bool:
    first = CHECKOUT / "_build" / "html" / "index.html"
    sources = [CHECKOUT / "_config.yml", CHECKOUT / "_toc.yml"]
    sources += [path for name in ("book", "notebooks") for path in (CHECKOUT / name).rglob("*.*")]
    newest = max(path.stat().st_mtime for path in sources if path.is_file())
    return first.exists() and newest <= first.stat().st_mtime


@pytest.fixture(scope="module", params=["tiny", "real"] if real_book_is_current() else ["tiny"])
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Book:
    if request.param == "real":
        return Book(html=CHECKOUT / "_build" / "html", checkout=CHECKOUT)
    root = tmp_path_factory.mktemp("tiny book")
    fixture_book.write(root, checkout=CHECKOUT)
    first = book.build(root, parameters={"profile": "quick"}, progress=False, log=str)
    return Book(html=first.parent, checkout=root)


@pytest.fixture(scope="module")
def visits(browser: Any, rendered: Book) -> list[Visit]:
    """Open every page once; the tests below only look at what was seen."""
    found = []
    for path in sorted(rendered.html.rglob("*.html")):
        if "_static" in path.parts or path == rendered.html / "index.html":
            continue
        page = browser.new_page()
        visit = Visit(path=path, seen={})
        page.on("request", lambda request, visit=visit: visit.requested.append(request.url))
        page.on("requestfailed", lambda request, visit=visit: visit.failed.append(request.url))
        page.on("pageerror", lambda error, visit=visit: visit.errors.append(str(error)))
        page.on(
            "console",
            lambda told, visit=visit: told.type == "error" and visit.errors.append(told.text),
        )
        page.goto(path.as_uri(), wait_until="load")
        visit.seen = page.evaluate(LOOK)
        page.close()
        found.append(visit)
    return found


def gathered(visits: list[Visit], what: str) -> dict[str, list[str]]:
    """Return the pages on which a list of what was seen is not empty."""
    return {visit.path.name: visit.seen[what] for visit in visits if visit.seen[what]}


def test_the_first_page_leads_into_the_book(browser: Any, rendered: Book) -> None:
    page = browser.new_page()
    page.goto((rendered.html / "index.html").as_uri())
    page.wait_for_url("**/book/intro.html")
    assert page.locator("h1").first.inner_text()
    page.close()


def test_no_page_asks_the_network_or_misses_a_file(visits: list[Visit]) -> None:
    assert visits
    remote = {
        url for visit in visits for url in visit.requested if urlparse(url).scheme not in LOCAL
    }
    assert not remote
    assert not [url for visit in visits for url in visit.failed]


def test_no_script_fails(visits: list[Visit]) -> None:
    assert not [
        (visit.path.name, error)
        for visit in visits
        for error in visit.errors
        if TOLERATED not in error
    ]


def test_every_image_shows(visits: list[Visit]) -> None:
    assert not gathered(visits, "broken")


def test_every_formula_is_set(visits: list[Visit]) -> None:
    assert sum(visit.seen["formulas"] for visit in visits)
    assert not gathered(visits, "unrendered")
    assert not gathered(visits, "misread")


def test_every_internal_link_leads_somewhere(visits: list[Visit]) -> None:
    ids = {visit.path: set(visit.seen["ids"]) for visit in visits}
    lost = []
    for visit in visits:
        for link in visit.seen["links"]:
            address = urlparse(link)
            if address.scheme != "file":
                continue
            target, anchor = Path(unquote(address.path)), unquote(address.fragment)
            known = anchor in ids[target] if anchor and target in ids else target.is_file()
            if not known:
                lost.append((visit.path.name, link))
    assert not lost


def test_launch_buttons_name_files_of_the_checkout(visits: list[Visit], rendered: Book) -> None:
    launched = [
        found for visit in visits for link in visit.seen["links"] if (found := LAUNCHED.match(link))
    ]
    assert {found.lastgroup for found in launched} >= {"binder", "colab"}
    named = {unquote(found[found.lastgroup or 0]) for found in launched}
    assert not [name for name in named if not (rendered.checkout / name).exists()]


def test_every_notebook_page_offers_its_notebook(visits: list[Visit], rendered: Book) -> None:
    pages = [visit for visit in visits if rendered.html / "notebooks" in visit.path.parents]
    assert pages
    for visit in pages:
        offered = {
            link for link in visit.seen["links"] if link.endswith(f"/{visit.path.stem}.ipynb")
        }
        local = [Path(unquote(urlparse(link).path)) for link in offered if link.startswith("file:")]
        assert len(local) == 1, visit.path.name
        assert json.loads(local[0].read_text(encoding="utf-8"))["cells"]


def test_sliders_change_their_picture_without_a_kernel(browser: Any, rendered: Book) -> None:
    moved = 0
    for path in sorted((rendered.html / "notebooks").rglob("*.html")):
        page = browser.new_page()
        page.goto(path.as_uri())
        for slider in page.locator(".poisonkit-slider").all():
            shown = slider.locator("img:visible")
            assert shown.count() == 1
            before = shown.get_attribute("src"), slider.locator("output").inner_text()
            slider.locator("input[type=range]").press("End")
            assert shown.count() == 1
            after = shown.get_attribute("src"), slider.locator("output").inner_text()
            assert before[0] != after[0]
            assert before[1] != after[1]
            moved += 1
        page.close()
    assert moved


def test_no_page_is_wider_than_a_telephone(browser: Any, visits: list[Visit]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wide = []
    for visit in visits:
        page.goto(visit.path.as_uri())
        page.evaluate(LOOK)
        if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            wide.append(visit.path.name)
    page.close()
    assert not wide
