"""The pod of k8s/ on this machine by `podman kube play`: its Deployment, ConfigMap and claim, as kustomize renders.

What a cluster would add is added here: a model in the claimed volume, and a port to reach the pod. What podman does
another way is replaced: it makes an HTTP probe a call of curl in the container, which the image does not hold, so that
the liveness probe runs the image's own health check; and it leaves $(NAME) in a command as it is where the name's value
comes from a ConfigMap, so that the values are written in.
"""

import json
import os
import re
import shlex
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
# Versions of podman differ in whether the pod's number is part of its name.
CONTAINER = "^phiserve-pod(-[0-9]+)?-{name}$"
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
        client, server = Client(port), _container(containers, "server")
        try:
            client.wait_ready(START_SECONDS)
            inside = Findings()
            check_answers(client, inside)
            check_stream(client, inside)
        except VerificationError as error:
            raise VerificationError(f"{error}\n{_log(containers, 'server')}") from error
        probe = containers.run("podman", "healthcheck", "run", server, check=False)
        require(probe.returncode == 0, f"the pod's liveness probe fails: {probe.stdout}{probe.stderr}")
        state = containers.inspect("container", server)
        host = state["HostConfig"]
        assert isinstance(host, dict)
        require(bool(host["ReadonlyRootfs"]), "the pod's root file system can be written")
        require(host["Memory"] > 0, "the pod has no memory limit")
        require(not state["EffectiveCaps"], f"the pod's server keeps capabilities: {state['EffectiveCaps']}")
        stream = inside.values["a stream"]
        findings.keep("pod", f"of {OVERLAY}, ready; a stream of {stream}; memory limit {host['Memory'] >> 20} MiB")


def _rendered(containers: Containers, repository: Path, image: str, port: int) -> dict[str, str]:
    """Documents by kind, of the overlay with the changes that the module's head names."""
    folder = containers.folder / "pod"
    folder.mkdir(exist_ok=True)
    health = containers.inspect("image", image)["Healthcheck"]
    assert isinstance(health, dict)
    server = "/spec/template/spec/containers/0"
    # podman 4.3 joins a probe's words by spaces and gives them to a shell.
    command = [shlex.join(health["Test"][1:])]
    probe = {"exec": {"command": command}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}
    changes = [
        {"op": "test", "path": f"{server}/name", "value": "server"},
        {"op": "add", "path": f"{server}/ports/0/hostPort", "value": port},
        {"op": "add", "path": f"{server}/ports/0/hostIP", "value": "127.0.0.1"},
        {"op": "replace", "path": f"{server}/livenessProbe", "value": probe},
        # podman 4.3 runs an init container again and again where the pod's policy is Always, as a Deployment's must be
        # (containers/podman issues 15631 and 16343, mended by 18481).
        {"op": "add", "path": "/spec/template/spec/restartPolicy", "value": "OnFailure"},
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
    by_kind["Deployment"] = _expanded(by_kind["Deployment"], repository / OVERLAY / "settings.env")
    return by_kind


def _expanded(deployment: str, settings: Path) -> str:
    """$(NAME) replaced by the value of the ConfigMap, as the kubelet does. Raises VerificationError for other names."""
    lines = [line for line in settings.read_text().splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    unknown = set(re.findall(r"\$\((\w+)\)", deployment)) - values.keys()
    require(not unknown, f"a command of the pod names {sorted(unknown)}, which {settings} does not set")
    return re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], deployment)


@contextmanager
def _played(containers: Containers, claim: Path, pod: Path, models: Path) -> Iterator[None]:
    _clear(containers, pod)
    try:
        containers.podman("kube", "play", str(claim))
        store = containers.podman("volume", "inspect", "--format", "{{.Mountpoint}}", CLAIM)
        shutil.copytree(models, store, dirs_exist_ok=True)
        try:
            containers.podman("kube", "play", str(pod), timeout=START_SECONDS)
        except VerificationError as error:
            raise VerificationError(f"{error}\n{_log(containers, 'fetch-model')}") from error
        yield
    finally:
        _clear(containers, pod)


def _container(containers: Containers, name: str) -> str:
    """The full name of a container of the pod, or "" if it has none."""
    wanted = f"--filter=name={CONTAINER.format(name=name)}"
    return containers.podman("ps", "--all", wanted, "--format={{.Names}}")


def _log(containers: Containers, name: str) -> str:
    log = containers.run("podman", "logs", "--tail=20", _container(containers, name), check=False)
    return f"the pod's container {name} said:\n{log.stdout}{log.stderr}"


def _clear(containers: Containers, pod: Path) -> None:
    containers.run("podman", "kube", "down", str(pod), check=False)
    containers.run("podman", "volume", "rm", "--force", CLAIM, check=False)
