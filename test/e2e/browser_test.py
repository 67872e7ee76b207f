#!/usr/bin/env python3
"""The web page in headless Chromium: a conversation by keyboard, sampling controls, token probabilities on hover, the
live view, dark and light. Usage: browser_test.py PINION MODEL, with the python3 that Debian's python3-selenium belongs
to. PINION_SCREENSHOTS=DIRECTORY: the pictures of the documentation are written there.

Skipped where there is no Chromium, driver or Selenium, and where Chromium is a snap, which sees no files of the tests."""
import json
import os
import pathlib
import shutil
import sys
import tempfile
import unittest

import pinion_server

PINION, MODEL = sys.argv.pop(1), sys.argv.pop(1)
QUESTION = "What is the capital of France?"
WATCH = """window.growth = []; new MutationObserver(() => window.growth.push(document.getElementById("talk").textContent.length))
    .observe(document.getElementById("talk"), {childList: true, subtree: true, characterData: true});"""


def missing():
    """Why there is no browser to test with, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no Selenium: apt-get install chromium chromium-driver python3-selenium"
    paths = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in paths:
        return "no Chromium or no driver: apt-get install chromium chromium-driver python3-selenium"
    if any("snap" in str(pathlib.Path(path).resolve()) for path in paths):
        return "Chromium is a snap, which the tests cannot drive"
    return None


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if why := missing():
            print(f"skipped: {why}", flush=True)
            raise unittest.SkipTest(why)
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        engine = pinion_server.build(PINION, MODEL, cls.directory.name + "/engine")
        cls.server = pinion_server.Server(PINION, engine, "--served_model_name", "demo", "--max_batch_size", 8)
        cls.server.__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                     "--disable-background-networking", f"--user-data-dir={cls.directory.name}/profile"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        cls.driver = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
        cls.addClassCleanup(cls.driver.quit)

    def setUp(self):
        self.show("light")
        self.driver.get(f"http://127.0.0.1:{self.server.port}/")
        self.until(lambda: "demo" in self.text("model"), "the page names no model")
        self.driver.execute_script(WATCH)

    def tearDown(self):
        severe = [entry["message"] for entry in self.driver.get_log("browser")
                  if entry["level"] == "SEVERE" and "status of 400" not in entry["message"]]  # asked for on purpose
        self.assertEqual(severe, [], "the page's console has errors")

    def show(self, scheme, width=1000, height=560):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                    {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def until(self, condition, what, seconds=60):
        from selenium.webdriver.support.ui import WebDriverWait
        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: condition(), what)

    def get(self, name):
        return self.driver.find_element("id", name)

    def text(self, name):
        return self.get(name).text

    def set(self, name, value):
        field = self.get(name)
        field.clear()
        field.send_keys(str(value))

    def keys(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self):
        return self.driver.execute_script("return document.activeElement.id")

    def turns(self):
        return [turn.text for turn in self.driver.find_elements("css selector", "#talk .turn")]

    def ask(self, words):
        """By keyboard alone; the answer's text."""
        from selenium.webdriver.common.keys import Keys
        before = len(self.turns())
        self.assertEqual(self.focused(), "words")
        self.keys(words, Keys.ENTER)
        self.until(lambda: len(self.turns()) >= before + 2 and self.get("send").is_enabled(), "no answer came")
        self.assertEqual(self.turns()[before], f"You\n{words}")
        turn = self.driver.find_elements("css selector", "#talk .turn")[-1]
        return turn.find_element("css selector", "span").get_property("textContent")

    def picture(self, name):
        if directory := os.environ.get("PINION_SCREENSHOTS"):
            self.driver.save_screenshot(str(pathlib.Path(directory) / f"{name}.png"))

    def test_a_conversation_by_keyboard(self):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys
        self.set("temperature", 0)
        self.get("words").click()
        answer = self.ask(QUESTION)
        messages = [{"role": "user", "content": QUESTION}]
        status, _, text = self.server.request("POST", "/v1/chat/completions",
                                              {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 256})
        self.assertEqual(status, 200)
        self.assertEqual(answer, json.loads(text)["choices"][0]["message"]["content"])
        growth = self.driver.execute_script("return window.growth")
        self.assertGreater(len(set(growth)), 3, "the answer did not come in pieces")
        self.assertEqual(growth, sorted(growth))

        second = self.ask("Why?")  # the page sends the conversation, not the last message alone
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
        _, _, text = self.server.request("POST", "/v1/chat/completions",
                                         {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 256})
        self.assertEqual(second, json.loads(text)["choices"][0]["message"]["content"])

        token = self.driver.find_elements("css selector", "#talk .token")[0]
        ActionChains(self.driver).move_to_element(token).perform()
        self.assertTrue(token.get_property("title"))
        rows = token.get_property("title").split("\n")
        self.assertEqual(len(rows), 5)
        chances = [float(row.split(" %")[0]) for row in rows]
        self.assertEqual(chances, sorted(chances, reverse=True))
        self.assertLessEqual(sum(chances), 100.5)
        self.assertNotEqual(token.value_of_css_property("outline-style"), "none", "hovering marks no token")

        self.keys(Keys.TAB, Keys.TAB)  # from the message to Send, to Clear: Stop is off
        self.assertEqual(self.focused(), "clear")
        self.keys(Keys.ENTER)
        self.assertEqual(self.turns(), [])
        self.assertEqual(self.focused(), "words")

    def test_controls_change_the_answer(self):
        self.set("temperature", 0)
        self.set("max_tokens", 3)
        self.get("words").click()
        self.ask(QUESTION)
        self.assertEqual(len(self.driver.find_elements("css selector", "#talk .token")), 3)
        self.set("temperature", 1.5)
        self.set("seed", 7)
        self.set("max_tokens", 24)
        self.get("logprobs").click()
        self.get("words").click()
        hot = self.ask(QUESTION)
        self.get("clear").click()
        self.assertEqual(self.driver.find_elements("css selector", "#talk .token"), [])
        self.set("max_tokens", 0)  # what is refused is shown
        self.set("temperature", 9)
        self.get("words").click()
        self.assertIn("temperature", self.ask(QUESTION))
        self.assertTrue(hot)

    def test_the_live_view(self):
        self.get("words").click()
        self.ask(QUESTION)
        self.until(lambda: self.text("ttft50").startswith("≤") and self.text("itl99").startswith("≤"),
                   "no percentiles are shown")
        self.until(lambda: float(self.text("rate").replace("–", "-1")) >= 0, "no rate is shown")
        self.assertEqual((self.text("running"), self.text("waiting")), ("0", "0"))
        self.assertTrue(self.text("kv").endswith(" %"))
        self.assertEqual(len(self.driver.find_elements("css selector", "#plot polyline")), 1)

    def test_dark_and_light_and_narrow(self):
        brightness = {}
        self.set("temperature", 0)
        self.get("words").click()
        self.ask(QUESTION)
        self.ask("What is 27 + 48?")
        self.until(lambda: self.text("itl99").startswith("≤"), "no percentiles are shown")
        for scheme in ("light", "dark"):
            self.show(scheme)
            color = self.driver.execute_script("return getComputedStyle(document.body).color")
            brightness[scheme] = sum(int(c) for c in color[4:-1].split(","))
            self.picture(f"page-{scheme}")
        self.assertLess(brightness["light"], 200)
        self.assertGreater(brightness["dark"], 500)
        self.show("light", 400, 800)
        wide = self.driver.execute_script("return document.documentElement.scrollWidth")
        self.assertLessEqual(wide, 400, "the page is wider than a narrow screen")


if __name__ == "__main__":
    unittest.main(verbosity=2)
