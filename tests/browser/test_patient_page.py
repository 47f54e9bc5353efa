"""The HTML page in a real browser: `make test-browser` runs it."""

import shutil

import pytest
from conftest import TINY, inference_config

from bundle.outputs.patient_page import page_name

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: make test-browser installs it")
axe = pytest.importorskip("axe_core_python.sync_playwright", reason="no axe-core: make test-browser installs it")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: install Debian's chromium"),
]
SIZES = {"phone": (390, 844), "laptop": (1366, 768), "wall screen": (3840, 2160)}
MAIN = "canvas[data-arm=shown]"


@pytest.fixture(scope="module")
def file(trial, tiny_weights, tmp_path_factory):
    """Page of a patient under all arms."""
    settings = {"num_members": 3, "num_steps": 2, "progress": False, "arm": "all", "html": True, "case": "sub-0001"}
    files = {
        "weights": str(tiny_weights),
        "dataset_dir": str(trial),
        "output_dir": str(tmp_path_factory.mktemp("page")),
    }
    inference_config(**TINY | settings | files).get_parsed_content("inference")
    return f"{files['output_dir']}/sub-0001/{page_name('sub-0001')}"


@pytest.fixture(scope="module")
def browser(file):  # which takes long to make: an idle browser would be gone by then
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def open_page(file, browser):
    """Opens the page and fails the test if it asks for anything or complains."""
    pages, complaints = [], []

    def opened(size="laptop"):
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", "file:")) or complaints.append(request.url),
        )
        page.goto(f"file://{file}")
        page.wait_for_selector("body[data-ready]")
        settle(page)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []


def settle(page):
    """Waits until what was asked for is drawn."""
    page.evaluate("Promise.all([...Array(3)].map(() => new Promise(requestAnimationFrame)))")
    page.wait_for_timeout(150)


def drawn(page, canvas=MAIN):
    return page.evaluate("where => document.querySelector(where).toDataURL()", canvas)


def text(page, where):
    return page.inner_text(where)


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_screen_and_nothing_is_out_of_reach(open_page, size):
    page = open_page(size)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    box = page.locator(MAIN).bounding_box()
    assert 0 < box["width"] <= SIZES[size][0] and box["height"] <= SIZES[size][1]
    for button in page.query_selector_all("button:visible, input[type=range]"):
        assert button.bounding_box()["height"] >= 24


@pytest.mark.parametrize("slider", ["slice", "opacity", "threshold"])
def test_sliders_change_the_image_by_keys_and_say_their_value(open_page, slider):
    page = open_page()
    page.locator("#threshold").fill("0")
    settle(page)
    before, stated = drawn(page), text(page, f"#{slider}-value")
    page.focus(f"#{slider}")
    for _ in range(6):
        page.keyboard.press("ArrowLeft" if slider != "threshold" else "ArrowRight")
    settle(page)
    assert drawn(page) != before and text(page, f"#{slider}-value") != stated


def test_keys_move_slices_and_the_cursor(open_page):
    page = open_page()
    page.focus(MAIN)
    page.keyboard.press("Home")
    settle(page)
    lowest = drawn(page), text(page, "#slice-value")
    assert "(1 of " in lowest[1]
    page.keyboard.press("PageUp")
    settle(page)
    assert drawn(page) != lowest[0] and "(2 of " in text(page, "#slice-value")
    place = text(page, "#readout")
    page.keyboard.press("ArrowLeft")
    settle(page)
    assert text(page, "#readout") != place
    page.keyboard.press("End")
    settle(page)
    slices = page.get_attribute("#slice", "max")
    assert f"({int(slices) + 1} of " in text(page, "#slice-value")


def world_x(page):
    return float(text(page, "#readout").partition("; x ")[2].partition(",")[0].replace("\u2212", "-"))


def test_left_is_where_the_page_says(open_page):
    """In RAS+ world coordinates x grows to the patient's right."""
    page = open_page()
    box = page.locator(MAIN).bounding_box()
    right_edge = {"x": box["width"] * 0.9, "y": box["height"] * 0.5}
    page.locator(MAIN).hover(position=right_edge)
    settle(page)
    radiological = world_x(page)
    assert radiological < 0 and "Radiological" in text(page, "#orientation-value")
    before = drawn(page)
    page.check("#mirrored")
    page.locator(MAIN).hover(position={"x": right_edge["x"] - 1, "y": right_edge["y"]})
    settle(page)
    assert world_x(page) > 0 and drawn(page) != before and "Neurological" in text(page, "#orientation-value")


def test_the_chance_under_the_cursor_is_the_stored_one(open_page):
    page = open_page()
    stored = page.evaluate(
        """async () => {
          const page = JSON.parse(document.getElementById("page-data").textContent);
          const bytes = Uint8Array.from(atob(page.arms[0].heat), (c) => c.charCodeAt(0));
          const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
          const heat = new Uint8Array(await new Response(stream).arrayBuffer());
          const site = page.arms[0].sites[0];
          return page.values[heat[(site.slice * page.shape[1] + site.row) * page.shape[2] + site.column]];
        }"""
    )
    page.locator("button[data-slice]:visible").first.click()
    settle(page)
    stated = text(page, "#readout").partition(": ")[2].partition(" %")[0]
    assert float(stated) == pytest.approx(100 * stored, rel=0.06)


def test_a_site_jumps_to_its_slice(open_page):
    page = open_page()
    button = page.locator("button[data-slice]:visible").last
    button.click()
    settle(page)
    assert page.input_value("#slice") == button.get_attribute("data-slice")
    assert page.evaluate("document.activeElement.dataset.arm") == "shown"


def test_another_treatment_is_shown_with_its_own_numbers(open_page):
    page = open_page()
    page.locator("#threshold").fill("0")
    settle(page)
    before = drawn(page)
    page.check("input[name=arm][value=ocrelizumab]")
    settle(page)
    assert drawn(page) != before
    shown = page.locator("#summary [data-of-arm]:visible")
    assert shown.count() == 1 and "ocrelizumab" in shown.inner_text()
    assert page.locator("tr.shown").get_attribute("data-line") == "ocrelizumab"
    assert len({drawn(page, f"canvas[data-arm={arm}]") for arm in ("placebo", "ocrelizumab")}) == 2


@pytest.mark.parametrize("size", ["phone", "laptop"])
def test_axe_finds_nothing(open_page, size):
    found = axe.Axe().run(open_page(size))["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == []
