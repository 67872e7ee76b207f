#!/usr/bin/env python3
"""SIGHUP loads the model again while clients stream: reload_test.py PINION MODEL. No request may notice."""
import json
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest

import pinion_server

PINION, MODEL = sys.argv.pop(1), sys.argv.pop(1)
PROMPT = "The capital of France is"


class Reload(unittest.TestCase):
    def test_under_load(self):
        with tempfile.TemporaryDirectory() as directory:
            engine = pathlib.Path(pinion_server.build(PINION, MODEL, directory + "/engine"))
            with pinion_server.Server(PINION, engine, "--max_batch_size", 4, "--kv_cache_max_tokens", 4096) as server:
                alone = server.complete(prompt=PROMPT, max_tokens=24, temperature=0)["choices"][0]["text"]
                wrong, answered, stop = [], [0], threading.Event()

                def ask():
                    while not stop.is_set():
                        status, _, text = server.request("POST", "/v1/completions",
                                                         {"prompt": PROMPT, "max_tokens": 24, "temperature": 0})
                        if status != 200 or json.loads(text)["choices"][0]["text"] != alone:
                            wrong.append((status, text))
                        answered[0] += 1

                threads = [threading.Thread(target=ask) for _ in range(3)]
                for thread in threads:
                    thread.start()
                for again in (1, 2):
                    server.process.send_signal(signal.SIGHUP)
                    self.assertTrue(self.soon(lambda: len(server.log.split(" again in ")) - 1 == again), server.log)
                before = answered[0]
                self.assertTrue(self.soon(lambda: answered[0] > before + 5))
                # what does not load leaves the one that serves
                shutil.move(engine, directory + "/away")
                server.process.send_signal(signal.SIGHUP)
                self.assertTrue(self.soon(lambda: "error" in server.log), server.log)
                shutil.move(directory + "/away", engine)
                before = answered[0]
                self.assertTrue(self.soon(lambda: answered[0] > before + 5))
                stop.set()
                for thread in threads:
                    thread.join()
                self.assertEqual(wrong, [])
                self.assertEqual(server.request("GET", "/health/ready")[0], 200)

    @staticmethod
    def soon(condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


if __name__ == "__main__":
    unittest.main()
