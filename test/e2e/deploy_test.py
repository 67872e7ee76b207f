#!/usr/bin/env python3
"""What lies in deploy/ fits the program: its flags, probes, ports, metrics and libraries are those that exist.
tools/check_deploy validates the manifests against Kubernetes' schemas. Usage: deploy_test.py PINION MODEL REPOSITORY"""
import json
import pathlib
import platform
import re
import socket
import subprocess
import sys
import tempfile
import unittest

import yaml

import pinion_server

PINION, MODEL, DEPLOY = sys.argv.pop(1), sys.argv.pop(1), pathlib.Path(sys.argv.pop(1)) / "deploy"
MANIFESTS, GROUP = ({m["kind"]: m for m in yaml.safe_load_all((DEPLOY / f"kubernetes/{name}.yaml").read_text())}
                    for name in ("pinion", "leader_worker_set"))
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
GROUP_OF = GROUP["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]


def arguments_of(pod):
    """A pod's flags; MODEL alone is none."""
    return dict(a.removeprefix("--").split("=") for a in pod["containers"][0]["args"] if a.startswith("--"))


class Deploy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.container = POD["containers"][0]
        cls.arguments = arguments_of(POD)
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        engine = pinion_server.build(PINION, MODEL, cls.directory.name + "/engine")
        own = {"host", "port", "metrics_port"}  # of the test's server
        group = arguments_of(GROUP_OF["workerTemplate"]["spec"])  # the Deployment's, and the ranks
        flags = [f"--{name}={value}" for name, value in group.items() if name not in own]
        cls.server = pinion_server.Server(PINION, engine, *flags, "--metrics_port", 0)
        cls.server.__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        cls.server.complete(prompt="a", max_tokens=2)
        text = cls.server.request("GET", "/metrics")[2]
        cls.metrics = set(re.findall(r"^(\w+?)[{ ]", text, re.M)) | set(re.findall(r"^# TYPE (\w+)", text, re.M))

    def test_probes_and_ports_exist(self):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = self.container[probe]["httpGet"]
            self.assertEqual(self.server.request("GET", get["path"])[0], 200, probe)
            self.assertEqual(get["port"], "http")
        ports = {p["name"]: str(p["containerPort"]) for p in self.container["ports"]}
        self.assertEqual(ports, {"http": self.arguments["port"], "metrics": self.arguments["metrics_port"]})
        for port in MANIFESTS["Service"]["spec"]["ports"]:
            self.assertIn(port["targetPort"], ports)

    def test_a_group_has_as_many_pods_as_ranks_and_is_a_pod_of_the_deployment_otherwise(self):
        pod = GROUP_OF["workerTemplate"]["spec"]
        self.assertEqual(arguments_of(pod), self.arguments | {"tp_size": str(GROUP_OF["size"])})
        same = lambda p: {k: v for k, v in p["containers"][0].items() if k not in ("args", "image", "resources")}
        self.assertEqual(same(pod), same(POD))
        self.assertEqual(pod | {"containers": None}, POD | {"containers": None})
        name = GROUP["LeaderWorkerSet"]["metadata"]["name"]
        self.assertEqual(GROUP["Service"]["spec"]["selector"],
                         {"leaderworkerset.sigs.k8s.io/name": name, "leaderworkerset.sigs.k8s.io/worker-index": "0"})
        self.assertEqual(GROUP["Service"]["spec"]["ports"], MANIFESTS["Service"]["spec"]["ports"])

    def test_the_drain_fits_into_the_grace_period(self):
        pause = int(self.container["lifecycle"]["preStop"]["exec"]["command"][1])
        self.assertGreater(POD["terminationGracePeriodSeconds"], int(self.arguments["drain_timeout"]) + pause)

    def test_selectors_find_what_they_select(self):
        labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
        for kind, selector in (("Service", MANIFESTS["Service"]["spec"]["selector"]),
                               ("Deployment", MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"]),
                               ("PodDisruptionBudget", MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])):
            self.assertLessEqual(selector.items(), labels.items(), kind)
        scaled = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        self.assertEqual((scaled["kind"], scaled["name"]), ("Deployment", MANIFESTS["Deployment"]["metadata"]["name"]))
        volumes = {v["name"] for v in POD["volumes"]}
        self.assertEqual({m["name"] for m in self.container["volumeMounts"]}, volumes)

    def test_metrics_that_are_scaled_by_and_drawn_exist(self):
        scaled = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
        self.assertIn(scaled, self.metrics)
        board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
        drawn = set()
        for panel in board["panels"]:
            for target in panel["targets"]:
                drawn |= set(re.findall(r"\b(?:pinion|nv)_\w+", target["expr"]))
        drawn |= set(re.findall(r"\b(?:pinion|nv)_\w+", json.dumps(board["templating"])))
        self.assertGreater(len(drawn), 15)
        self.assertEqual(drawn - self.metrics, set(), "the dashboard draws metrics that there are not")

    def test_panels_have_places_of_their_own(self):
        board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
        self.assertEqual(len({p["id"] for p in board["panels"]}), len(board["panels"]))
        taken = set()
        for p in board["panels"]:
            at = p["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(taken & cells, p["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells

    def test_the_image_says_whether_it_is_healthy(self):
        found = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)
        command = [part.replace("/8000", f"/{self.server.port}") for part in json.loads(found[1])]
        self.assertEqual(subprocess.run(command, timeout=20).returncode, 0)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # and does not listen
            command = [part.replace("/8000", f"/{unused.getsockname()[1]}") for part in json.loads(found[1])]
            self.assertNotEqual(subprocess.run(command, stderr=subprocess.DEVNULL, timeout=20).returncode, 0)

    def test_the_image_has_the_libraries(self):
        release = platform.freedesktop_os_release()
        if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
            self.skipTest("the image is made of Debian 12")
        needed = set()
        for path in re.findall(r"=> (/\S+)", subprocess.run(["ldd", PINION], capture_output=True, text=True).stdout):
            owner = subprocess.run(["dpkg", "-S", pathlib.Path(path).resolve()], capture_output=True, text=True).stdout
            needed.add(owner.split(":")[0])
        depends = {}
        listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\t${Depends}\n"], capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            name, _, rest = line.partition("\t")
            depends[name] = {re.split(r"[ :(]", part.strip())[0] for part in re.split(r"[,|]", rest) if part.strip()}
        installed, found = {"libc6"}, set(re.findall(r"\blib[\w.+-]+", (DEPLOY / "Dockerfile").read_text()))
        while found:
            installed |= found
            found = {d for name in found for d in depends.get(name, ())} - installed
        own = ("libasan", "libubsan", "libtsan", "libcu", "libnv")  # sanitizers', NVIDIA's
        self.assertEqual({n for n in needed if n and not n.startswith(own)} - installed, set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
