"""The notebook's feature table in a real browser: its own module, on the real widget, which lives in this process."""

import json
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

import seedscope
from support.listening import complaints_of
from support.studies import ENSEMBLE, STUDY

pytestmark = pytest.mark.browser
SYNCED = ("bucket", "sort", "descending", "page", "selected", "title", "sorts", "rows", "counts", "total", "page_size")
# What a notebook does for a widget's module: values by name, changes sent to the kernel, events for what comes back.
HOST = """
async (source) => {
  const url = URL.createObjectURL(new Blob([source], {type: 'text/javascript'}));
  const widget = (await import(url)).default, heard = {}, changed = {};
  let state = JSON.parse(await window.kernel('{}'));
  const model = {
    get: (name) => state[name],
    set: (name, value) => { changed[name] = value; },
    on: (event, call) => (heard[event] ??= new Set()).add(call),
    off: (event, call) => heard[event]?.delete(call),
    save_changes: async () => {
      const asked = JSON.stringify(changed);
      for (const name of Object.keys(changed)) delete changed[name];
      const former = state;
      state = JSON.parse(await window.kernel(asked));
      for (const name of Object.keys(state))
        if (JSON.stringify(former[name]) !== JSON.stringify(state[name])) heard[`change:${name}`]?.forEach((call) => call());
    },
  };
  widget.render({model, el: document.querySelector('main')});
}
"""


def test_a_reader_filters_sorts_turns_pages_and_chooses(browser: Browser, study_root):
    widget = seedscope.open(study_root)[STUDY][ENSEMBLE].table(page_size=10)

    def kernel(asked: str) -> str:
        for name, value in json.loads(asked).items():
            setattr(widget, name, value)
        state: dict[str, Any] = {name: getattr(widget, name) for name in SYNCED}
        return json.dumps(state)

    context = browser.new_context(viewport={"width": 900, "height": 700})
    page = context.new_page()
    complaints = complaints_of(page)
    requests: list[str] = []
    page.set_content("<!doctype html><html lang=en><title>notebook</title><main></main></html>")
    page.on("request", lambda request: requests.append(request.url))
    page.expose_function("kernel", kernel)
    page.add_style_tag(content=widget._css)
    page.evaluate(HOST, widget._esm)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(10)
    expect(page.locator(".range")).to_have_text("1–10 of 384")
    page.get_by_role("button", name="on ›").click()
    expect(page.locator(".range")).to_have_text("11–20 of 384")
    page.get_by_role("button", name="unstable").click()
    expect(page.locator(".range")).to_have_text(f"1–10 of {widget.counts['unstable']}")
    expect(page.get_by_role("button", name="‹ back")).to_be_disabled()
    assert set(page.locator(".pill").all_inner_texts()) == {"unstable"}
    page.get_by_label("sort by").select_option("density")
    page.get_by_role("button", name="descending").click()
    expect(page.get_by_role("button", name="ascending")).to_be_visible()
    assert (widget.bucket, widget.sort, widget.descending, widget.page) == ("unstable", "density", False, 0)
    first = widget.rows[0]
    page.get_by_role("button", name=f"{first['seed']} · #{first['feature']}", exact=True).click()
    expect(page.locator("tr.selected")).to_have_count(1)
    assert widget.selected == {"seed": first["seed"], "feature": first["feature"]}
    assert [url for url in requests if not url.startswith("blob:")] == []
    assert not complaints
    context.close()
