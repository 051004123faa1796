"""The pod of k8s/ on this machine by `podman kube play`: its Deployment, ConfigMap and claim, as kustomize renders.

What a cluster would add is added here: a model in the claimed volume, and a port to reach the pod. What podman does
another way is replaced: it makes an HTTP probe a call of curl in the container, which the image does not hold, so that
the liveness probe runs the image's own health check.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image.checks import START_SECONDS, Findings, check_answers, check_stream, free_port, require
from image.client import Client
from image.reports import kubectl
from image.tools import Containers, VerificationError

OVERLAY = Path("k8s") / "overlays" / "dev"
IMAGE = "localhost/phiserve:dev"
CLAIM = "phiserve-store"
CONTAINER = "phiserve-pod-server"
CLAIM_KIND = "PersistentVolumeClaim"
# podman plays no other kind; a cluster's tests validate the rest.
POD_KINDS = ("ConfigMap", "Deployment")


def check_pod(containers: Containers, repository: Path, image: str, findings: Findings) -> None:
    """The pod fetches its model from the store, becomes ready, answers and streams."""
    containers.podman("tag", image, IMAGE)
    port = free_port()
    by_kind = _rendered(containers, repository, image, port)
    folder = containers.folder / "pod"
    claim, pod = folder / "claim.yaml", folder / "pod.yaml"
    claim.write_text(by_kind[CLAIM_KIND])
    pod.write_text("---\n".join(by_kind[kind] for kind in POD_KINDS))
    with _played(containers, claim, pod, repository / "models"):
        client = Client(port)
        try:
            client.wait_ready(START_SECONDS)
            check_answers(client, findings)
            check_stream(client, findings)
        except VerificationError as error:
            said = containers.run("podman", "logs", CONTAINER, check=False)
            raise VerificationError(f"{error}\nthe pod said:\n{said.stdout}{said.stderr}") from error
        probe = containers.run("podman", "healthcheck", "run", CONTAINER, check=False)
        require(probe.returncode == 0, f"the pod's liveness probe fails: {probe.stdout}{probe.stderr}")
        state = containers.inspect("container", CONTAINER)
        host = state["HostConfig"]
        assert isinstance(host, dict)
        require(bool(host["ReadonlyRootfs"]), "the pod's root file system can be written")
        require(host["Memory"] > 0, "the pod has no memory limit")
        require(not state["EffectiveCaps"], f"the pod's server keeps capabilities: {state['EffectiveCaps']}")
        findings.keep("pod", f"of {OVERLAY}, ready and streaming; memory limit {host['Memory'] >> 20} MiB")


def _rendered(containers: Containers, repository: Path, image: str, port: int) -> dict[str, str]:
    """Documents by kind, of the overlay with the changes that the module's head names."""
    folder = containers.folder / "pod"
    folder.mkdir(exist_ok=True)
    health = containers.inspect("image", image)["Healthcheck"]
    assert isinstance(health, dict)
    server = "/spec/template/spec/containers/0"
    probe = {"exec": {"command": health["Test"][1:]}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}
    changes = [
        {"op": "test", "path": f"{server}/name", "value": "server"},
        {"op": "add", "path": f"{server}/ports/0/hostPort", "value": port},
        {"op": "add", "path": f"{server}/ports/0/hostIP", "value": "127.0.0.1"},
        {"op": "replace", "path": f"{server}/livenessProbe", "value": probe},
    ]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(repository / OVERLAY, folder)],
        "patches": [{"target": {"kind": "Deployment", "name": "phiserve"}, "patch": json.dumps(changes)}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    documents = containers.run(str(kubectl(containers)), "kustomize", str(folder)).stdout.split("\n---\n")
    by_kind = {found[1]: text + "\n" for text in documents if (found := re.search(r"^kind: (\w+)$", text, re.M))}
    missing = {CLAIM_KIND, *POD_KINDS} - by_kind.keys()
    require(not missing, f"{OVERLAY} renders no {sorted(missing)}")
    return by_kind


@contextmanager
def _played(containers: Containers, claim: Path, pod: Path, models: Path) -> Iterator[None]:
    _clear(containers, pod)
    try:
        containers.podman("kube", "play", str(claim))
        store = containers.podman("volume", "inspect", "--format", "{{.Mountpoint}}", CLAIM)
        shutil.copytree(models, store, dirs_exist_ok=True)
        containers.podman("kube", "play", str(pod), timeout=START_SECONDS)
        yield
    finally:
        _clear(containers, pod)


def _clear(containers: Containers, pod: Path) -> None:
    containers.run("podman", "kube", "down", str(pod), check=False)
    containers.run("podman", "volume", "rm", "--force", CLAIM, check=False)
