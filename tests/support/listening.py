"""What a page complains of on its console."""

from playwright.sync_api import ConsoleMessage, Page


def complaints_of(page: Page) -> list[str]:
    """Errors and warnings of the page from now on; the list grows while the page lives."""
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # A request that a newer one overtakes, or that the next page leaves behind, is no fault; htmx calls it one.
        left = message.text.startswith(("htmx:sendAbort", "htmx:afterRequest"))
        if message.type in ("error", "warning") and not left:
            complaints.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints
