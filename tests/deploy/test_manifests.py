"""The manifests against the code they run: routes, ports, settings, metrics, times. Read as written, without tools."""

import ast
import re
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

from serve.metrics import TABLE
from serve.settings import PREFIX, ServeSettings, load_settings
from tests.deploy.manifests import K8S, Object, containers, env_file, one, pod_templates, written

SETTINGS = {
    "base": env_file(K8S / "base" / "settings.env"),
    "dev": env_file(K8S / "overlays" / "dev" / "settings.env"),
}
SERVER_LABELS = {"app.kubernetes.io/name": "phiserve", "app.kubernetes.io/component": "server"}
PODS = dict(pod_templates())


def server() -> Object:
    (found,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def gpu_settings() -> dict[str, str]:
    (generator,) = yaml.safe_load((K8S / "overlays/gpu/kustomization.yaml").read_text())["configMapGenerator"]
    assert generator["behavior"] == "merge"
    return SETTINGS["base"] | dict(literal.split("=", 1) for literal in generator["literals"])


def settings_from(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ServeSettings:
    """As the server reads them. The file with the keys is a mounted secret, so any file stands for it."""
    environment = dict(environment)
    if PREFIX + "API_KEYS_FILE" in environment:
        (tmp_path / "api-keys").write_text("key\n")
        environment[PREFIX + "API_KEYS_FILE"] = str(tmp_path / "api-keys")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings([])


@pytest.fixture(params=["base", "dev", "gpu"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return gpu_settings() if request.param == "gpu" else SETTINGS[request.param]


def test_the_server_takes_the_settings_of_each_overlay(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extra = {entry["name"]: "2" for entry in server()["env"]}
    settings = settings_from(environment | extra, monkeypatch, tmp_path)
    assert settings.host == "0.0.0.0"
    assert settings.port == server()["ports"][0]["containerPort"]
    assert settings.threads == 2
    assert environment["MODEL_STORE_ROOT"] == "/models"


def test_no_pod_lets_the_name_of_a_service_become_a_setting() -> None:
    """Service phiserve would set PHISERVE_PORT=tcp://..."""
    assert one("Service")["metadata"]["name"].upper() + "_" == PREFIX
    assert [name for name, pod in PODS.items() if pod["spec"].get("enableServiceLinks") is not False] == []


def test_probes_ask_routes_that_the_server_has() -> None:
    from serve.litserve_shell import Face

    face = Face(MagicMock())
    face.pre_setup(MagicMock())
    routes = {path for path, _, methods in face.endpoints if "GET" in methods}
    probes = {name: server()[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["path"] for probe in probes.values()} <= routes
    # A server that is loading or draining is alive: liveness must not ask what readiness asks.
    assert probes["livenessProbe"]["path"] == "/livez"
    assert probes["readinessProbe"]["path"] == probes["startupProbe"]["path"] == "/readyz"
    (endpoint,) = one("ServiceMonitor", "monitoring")["spec"]["endpoints"]
    assert endpoint["path"] in routes


def test_ports_lead_from_scraper_proxy_and_policy_to_the_server() -> None:
    (port,) = server()["ports"]
    (service_port,) = one("Service")["spec"]["ports"]
    (endpoint,) = one("ServiceMonitor", "monitoring")["spec"]["endpoints"]
    (rule,) = one("NetworkPolicy")["spec"]["ingress"]
    target = one("InterceptorRoute", "components/keda")["spec"]["target"]
    assert service_port["targetPort"] == port["name"]
    assert endpoint["port"] == service_port["name"]
    assert [allowed["port"] for allowed in rule["ports"]] == [port["name"]]
    assert (target["service"], target["port"]) == (one("Service")["metadata"]["name"], service_port["port"])
    assert {server()[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        port["name"]
    }


def test_ports_lead_from_scraper_and_policy_to_a_run_of_training() -> None:
    pod = PODS["training/train/job.yaml:phiserve-train"]
    (container,) = containers(pod)
    (port,) = container["ports"]
    (endpoint,) = one("PodMonitor", "monitoring")["spec"]["podMetricsEndpoints"]
    (rule,) = one("NetworkPolicy", "training/train")["spec"]["ingress"]
    assert f"--metrics-port={port['containerPort']}" in container["args"]
    assert endpoint["port"] == port["name"]
    assert [allowed["port"] for allowed in rule["ports"]] == [port["name"]]
    selectors = [
        one("PodMonitor", "monitoring")["spec"]["selector"]["matchLabels"],
        one("NetworkPolicy", "training/train")["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [pod["metadata"]["labels"]] * 2


def test_everything_that_selects_the_server_selects_its_pods() -> None:
    pod = one("Deployment")["spec"]["template"]
    assert pod["metadata"]["labels"] == SERVER_LABELS | {"phiserve-track": "stable"}
    assert one("Deployment")["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    selectors = [
        one("Service")["spec"]["selector"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod["spec"]["topologySpreadConstraints"]),
    ]
    assert selectors == [SERVER_LABELS] * len(selectors)
    monitored = one("ServiceMonitor", "monitoring")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= one("Service")["metadata"]["labels"].items()
    for scaler in (one("HorizontalPodAutoscaler"), one("ScaledObject", "components/keda")):
        assert scaler["spec"]["scaleTargetRef"]["name"] == one("Deployment")["metadata"]["name"]


def test_a_pod_that_ends_has_time_to_be_forgotten_and_to_finish_its_answers(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_from(environment, monkeypatch, tmp_path)
    forgotten = server()["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = one("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert (forgotten, settings.drain_seconds, grace) == (15, 45, 60)
    # Two missed readiness probes take the pod out, if nothing faster did.
    readiness = server()["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= forgotten


def test_the_proxy_in_front_waits_as_long_as_the_server_does() -> None:
    fields = ServeSettings.model_fields
    spec = one("InterceptorRoute", "components/keda")["spec"]
    seconds = {name: int(value.removesuffix("s")) for name, value in spec["timeouts"].items()}
    assert min(seconds["request"], seconds["responseHeader"]) > fields["request_deadline_seconds"].default
    assert spec["scalingMetric"]["concurrency"]["targetValue"] == fields["max_batch_size"].default


def test_autoscalers_agree_and_ask_for_metrics_that_the_server_has() -> None:
    gauges = {row.name for row in TABLE if row.kind == "gauge"}
    (metric,) = one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in gauges
    scaled = one("ScaledObject", "components/keda")["spec"]
    (trigger,) = [trigger["metadata"] for trigger in scaled["triggers"] if trigger["type"] == "prometheus"]
    assert names_in(trigger["query"]) == {metric["pods"]["metric"]["name"]}
    assert trigger["threshold"] == metric["pods"]["target"]["averageValue"]
    (push,) = [trigger["metadata"] for trigger in scaled["triggers"] if trigger["type"] == "external-push"]
    assert push["interceptorRoute"] == one("InterceptorRoute", "components/keda")["metadata"]["name"]
    assert one("HorizontalPodAutoscaler")["spec"]["maxReplicas"] == scaled["maxReplicaCount"]


def names_in(text: str) -> set[str]:
    """Metrics of the server named in a query; recorded series, which have a colon, are somebody else's."""
    return set(re.findall(r"(?<![\w:])(?:phiserve|gen_ai)_\w+(?![\w:]*:)", text))


def served_series() -> set[str]:
    """Every name that a scrape of the server may hold."""
    histograms = {row.name + end for row in TABLE if row.kind == "histogram" for end in ("_bucket", "_sum", "_count")}
    return histograms | {row.name for row in TABLE if row.kind != "histogram"}


def expressions(node: Any) -> list[str]:
    """Every `expr` anywhere in rules or a dashboard."""
    if isinstance(node, dict):
        own = [node["expr"]] if isinstance(node.get("expr"), str) else []
        return own + [found for value in node.values() for found in expressions(value)]
    return [found for value in node for found in expressions(value)] if isinstance(node, list) else []


# The dashboard of training asks for what a training run exposes: test_dashboards.py.
QUERYING = [
    path for name in ("prometheus_rule.yaml", "dashboards/serving.json") for path in K8S.glob(f"monitoring/{name}")
]


@pytest.mark.parametrize("path", QUERYING, ids=lambda path: path.name)
def test_rules_and_dashboard_ask_only_for_series_that_the_server_has(path: Path) -> None:
    labels = {label for row in TABLE for label in row.labels}
    asked = set().union(*(names_in(text) for text in expressions(yaml.safe_load(path.read_text()))))
    assert asked
    assert asked - served_series() - labels == set()


@pytest.mark.parametrize("name", PODS)
def test_every_pod_meets_the_restricted_profile_and_cannot_write_to_its_image(name: str) -> None:
    spec = PODS[name]["spec"]
    context = spec["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    kinds = {kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}}
    assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret"}
    for container in containers(PODS[name]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", PODS)
def test_every_volume_fits_into_the_storage_its_pod_may_use(name: str) -> None:
    units = {"Mi": 1, "Gi": 1024}

    def mebibytes(quantity: str) -> int:
        return int(quantity[:-2]) * units[quantity[-2:]]

    spec = PODS[name]["spec"]
    volumes = sum(mebibytes(volume["emptyDir"]["sizeLimit"]) for volume in spec["volumes"] if "emptyDir" in volume)
    limits = [mebibytes(container["resources"]["limits"]["ephemeral-storage"]) for container in spec["containers"]]
    assert volumes <= sum(limits)


def test_the_server_reads_its_model_and_only_the_container_that_fetches_it_writes_it() -> None:
    spec = one("Deployment")["spec"]["template"]["spec"]
    (fetch,) = spec["initContainers"]
    mounts = {mount["mountPath"]: mount for mount in server()["volumeMounts"]}
    assert mounts["/models"]["readOnly"]
    assert "/store" not in mounts
    fetching = {mount["mountPath"]: mount.get("readOnly", False) for mount in fetch["volumeMounts"]}
    assert (fetching["/store"], fetching["/models"]) == (True, False)
    assert fetch["image"] == server()["image"]
    assert fetch["command"][1:] == ["-m", "model_store", "copy", f"$({PREFIX}MODEL)", "--from", "/store"]


def test_no_container_of_the_server_needs_a_shell() -> None:
    commands = [container["command"][0] for container in containers(one("Deployment")["spec"]["template"])]
    assert commands == ["python", "python"]
    assert list(server()["lifecycle"]["preStop"]) == ["sleep"]


def test_every_claim_that_a_pod_mounts_is_made_by_a_manifest() -> None:
    made = {document["metadata"]["name"] for _, document in written() if document["kind"] == "PersistentVolumeClaim"}
    asked = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in PODS.values()
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert asked == made


def test_the_model_that_is_evaluated_every_week_is_the_one_that_is_served() -> None:
    (container,) = containers(PODS["training/evaluate/cron_job.yaml:phiserve-evaluate"])
    assert container["args"][0] == SETTINGS["base"][PREFIX + "MODEL"]


def test_every_module_that_a_pod_runs_is_there() -> None:
    root = K8S.parent
    for name, pod in PODS.items():
        for container in containers(pod):
            for module in re.findall(r"-m ([\w.]+)", " ".join(container.get("command", []))):
                path = root / Path(*module.split("."))
                assert (path / "__main__.py").is_file() or _runs(path.with_suffix(".py")), f"{name}: {module}"


def _runs(path: Path) -> bool:
    return path.is_file() and any(
        isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in ast.parse(path.read_text()).body
    )
