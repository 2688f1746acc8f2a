"""A page in Chromium from the system, driven by Playwright."""

import os
import shutil
from urllib.parse import unquote

CHROMIUM = os.environ.get("PERSONA_CIRCUITS_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class Seen:
    """A page in the browser; it must have said nothing when it is closed."""

    def __init__(self, browser, path, fragment="", **how):
        self.said = []
        self.context = browser.new_context(accept_downloads=True, **how)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.said.append(request.url) if not self.known(request.url) else None)
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.goto(f"{path.as_uri()}{fragment}")
        self.page.wait_for_selector("svg.graph .node")

    @staticmethod
    def known(url):
        return url.startswith(("file:", "data:", "blob:"))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.context.close()
        assert kind is not None or self.said == []

    def edges(self):
        """Names of the edges that are drawn."""
        return self.page.eval_on_selector_all(
            ".edges > g:not(.hidden)", "items => items.map((one) => one.getAttribute('data-edge'))"
        )

    def stop(self, place):
        self.page.eval_on_selector(
            "#stop", f"one => {{ one.value = {place}; one.dispatchEvent(new Event('input', {{ bubbles: true }})) }}"
        )

    def fragment(self):
        return unquote(self.page.evaluate("location.hash"))

    def saved(self, name):
        self.page.click(".menu summary")
        with self.page.expect_download() as download:
            self.page.click(f"[data-save='{name}']")
        content = open(download.value.path(), "rb").read()  # noqa: SIM115
        self.page.click(".menu summary")
        return content
