#!/usr/bin/env python3
"""Validates manifests strictly: check_manifests.py KUBERNETES_VERSION FILE... Kubernetes' kinds against its schemas; a
LeaderWorkerSet's own fields against the schema below, retyped from the API's v1 types (sigs.k8s.io/lws,
api/leaderworkerset/v1), its pod templates and claims against Kubernetes'. tools/check_deploy runs it."""
import sys

import jsonschema
import kubernetes_validate
import yaml


def record(required=(), **fields):
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def one_of(*names):
    return {"type": "string", "enum": list(names)}


COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
SIZE = COUNT | {"minimum": 1}
SHARE = {"anyOf": [COUNT, {"type": "string", "pattern": "^[0-9]+%$"}]}
KUBERNETES = {"type": "object"}  # validated below
KEEP = one_of("Retain", "Delete")
SCHEMA = record(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "leaderworkerset.x-k8s.io/v1"},
    kind={"const": "LeaderWorkerSet"},
    metadata=KUBERNETES,
    spec=record(
        ("leaderWorkerTemplate",),
        replicas=COUNT,
        startupPolicy=one_of("LeaderCreated", "LeaderReady"),
        networkConfig=record(("subdomainPolicy",), subdomainPolicy=one_of("Shared", "UniquePerReplica")),
        rolloutStrategy=record(
            ("type",), type=one_of("RollingUpdate"),
            rollingUpdateConfiguration=record(partition=COUNT, maxUnavailable=SHARE, maxSurge=SHARE)),
        leaderWorkerTemplate=record(
            ("workerTemplate",),
            leaderTemplate=KUBERNETES, workerTemplate=KUBERNETES, size=SIZE,
            restartPolicy=one_of("Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"),
            subGroupPolicy=record(subGroupPolicyType=one_of("LeaderWorker", "LeaderExcluded"), subGroupSize=SIZE),
            volumeClaimTemplates={"type": "array", "items": KUBERNETES},
            persistentVolumeClaimRetentionPolicy=record(whenDeleted=KEEP, whenScaled=KEEP))))


def check(manifest, version):
    if manifest["kind"] != "LeaderWorkerSet":
        return kubernetes_validate.validate(manifest, version, strict=True)
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
    group = manifest["spec"]["leaderWorkerTemplate"]
    for name in ("leaderTemplate", "workerTemplate"):
        if name in group:
            kubernetes_validate.validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": manifest["metadata"],
                                          "template": group[name]}, version, strict=True)
    for claim in group.get("volumeClaimTemplates", ()):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "PersistentVolumeClaim"} | claim, version, strict=True)


def main(version, *paths):
    failed = 0
    for path in paths:
        with open(path, encoding="utf-8") as file:
            manifests = [m for m in yaml.safe_load_all(file) if m]
        for manifest in manifests:
            name = f"{path}: {manifest['kind']} {manifest['metadata']['name']}"
            try:
                check(manifest, version)
                print(f"{name}: valid against Kubernetes {version}")
            except jsonschema.ValidationError as e:
                failed = 1
                print(f"error: {name}: {'.'.join(map(str, e.path))}: {e.message}", file=sys.stderr)
            except kubernetes_validate.SchemaNotFoundError as e:
                failed = 1
                print(f"error: {name}: {e.message}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
