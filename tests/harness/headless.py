"""Headless Chromium, where there is one with its driver."""

import shutil
from contextlib import contextmanager

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_QUIET = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run")


@contextmanager
def browsing(profile, size):
    """A browser that keeps what pages log and ask for. size: of the window, `width,height`."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_QUIET, f"user-data-dir={profile}", f"window-size={size}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Service(DRIVER))
    driver.get("about:blank")
    driver.get_log("performance")  # of its first tab
    try:
        yield driver
    finally:
        driver.quit()
