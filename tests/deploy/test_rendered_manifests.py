"""What kustomize makes of each folder, held against Kubernetes' schemas, the operators' fields and checkov's rules.

scripts/verify-manifests brings the tools and runs this.
"""

import copy
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tests.deploy.custom_resources import MODELS
from tests.deploy.manifests import APPLIED, K8S, Object, render, tool

pytestmark = pytest.mark.slow
# The three that get fixes at the time of writing.
KUBERNETES = ("1.35.0", "1.36.0", "1.37.0")
WITHOUT_NAMESPACE = {"Namespace"}


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    return {folder: render(folder) for folder in APPLIED}


def kinds(objects: list[Object]) -> list[str]:
    return sorted(found["kind"] for found in objects)


def write_built_in(rendered: dict[str, list[Object]], to: Path) -> list[Path]:
    """A file for each folder, without custom resources, of which Kubernetes' schemas know nothing."""
    paths = []
    for folder, objects in rendered.items():
        path = to / (folder.replace("/", "-") + ".yaml")
        path.write_text(yaml.safe_dump_all([found for found in objects if found["kind"] not in MODELS]))
        paths.append(path)
    return paths


def validate(version: str, paths: list[Path]) -> tuple[int, str]:
    command = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_every_folder_that_can_be_applied_is_held_to_these_rules() -> None:
    found = {
        str(path.parent.relative_to(K8S))
        for path in K8S.rglob("kustomization.yaml")
        if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
    }
    assert found - {"base"} == set(APPLIED)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object_with_no_field_it_does_not_know(
    version: str, rendered: dict[str, list[Object]], tmp_path: Path
) -> None:
    status, said = validate(version, write_built_in(rendered, tmp_path))
    assert status == 0, said
    assert "WARN" not in said
    count = sum(found["kind"] not in MODELS for objects in rendered.values() for found in objects)
    assert said.count(" passed for resource ") == count


def test_a_field_that_kubernetes_does_not_know_is_found(rendered: dict[str, list[Object]], tmp_path: Path) -> None:
    wrong = copy.deepcopy(rendered["overlays/dev"])
    (deployment,) = [found for found in wrong if found["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["terminationGraceSeconds"] = 60
    status, said = validate(KUBERNETES[-1], write_built_in({"wrong": wrong}, tmp_path))
    assert status != 0
    assert "terminationGraceSeconds" in said


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu", "overlays/keda"])
def test_custom_resources_have_the_fields_of_their_operators_and_no_other(
    folder: str, rendered: dict[str, list[Object]]
) -> None:
    custom = [found for found in rendered[folder] if found["kind"] in MODELS]
    expected = {"PodMonitor", "PrometheusRule", "ServiceMonitor"}
    assert {found["kind"] for found in custom} == (expected if folder != "overlays/keda" else set(MODELS))
    for found in custom:
        MODELS[found["kind"]].model_validate(found)
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            MODELS[found["kind"]].model_validate(found | {"spec": found["spec"] | {"intervall": "15s"}})


@pytest.mark.parametrize("folder", APPLIED)
def test_every_object_goes_to_the_namespace_of_its_folder(folder: str, rendered: dict[str, list[Object]]) -> None:
    for found in rendered[folder]:
        if found["kind"] in WITHOUT_NAMESPACE:
            assert found["metadata"]["name"] == APPLIED[folder]
        else:
            assert found["metadata"].get("namespace") == APPLIED[folder], found["metadata"]["name"]


def test_nothing_is_scaled_by_two_masters(rendered: dict[str, list[Object]]) -> None:
    scalers = {
        folder: [kind for kind in kinds(rendered[folder]) if "Scale" in kind or "scaler" in kind] for folder in APPLIED
    }
    assert {folder: found for folder, found in scalers.items() if found} == {
        "overlays/cpu": ["HorizontalPodAutoscaler"],
        "overlays/gpu": ["HorizontalPodAutoscaler"],
        "overlays/keda": ["ScaledObject"],
    }
    # KEDA reads the route when it takes up the ScaledObject; kubectl applies in the order of rendering.
    order = [found["kind"] for found in rendered["overlays/keda"]]
    assert order.index("InterceptorRoute") < order.index("ScaledObject")


def test_a_canary_is_one_more_deployment_behind_the_same_service(rendered: dict[str, list[Object]]) -> None:
    canary, settings = sorted(rendered["overlays/canary"], key=lambda found: found["kind"] == "ConfigMap")
    (stable,) = [found for found in rendered["overlays/cpu"] if found["kind"] == "Deployment"]
    (service,) = [found for found in rendered["overlays/cpu"] if found["kind"] == "Service"]
    assert canary["kind"] == "Deployment"
    assert canary["metadata"]["name"] != stable["metadata"]["name"]
    template = canary["spec"]["template"]
    labels, selected = template["metadata"]["labels"], stable["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert not selected.items() <= labels.items()
    assert (
        not canary["spec"]["selector"]["matchLabels"].items()
        <= stable["spec"]["template"]["metadata"]["labels"].items()
    )
    assert settings["data"]["PHISERVE_MODEL"] == "tiny_iit@latest"
    # What it shares with the other pods keeps its name.
    text = json.dumps(template["spec"])
    for name in ("phiserve-store", "phiserve-api-keys"):
        assert f'"{name}"' in text
    assert template["spec"]["serviceAccountName"] == "phiserve"


def test_the_proxy_of_keda_may_reach_the_server(rendered: dict[str, list[Object]]) -> None:
    (policy,) = [found for found in rendered["overlays/keda"] if found["kind"] == "NetworkPolicy"]
    (rule,) = policy["spec"]["ingress"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}} in rule["from"]


@pytest.mark.parametrize("folder", [folder for folder in APPLIED if folder.startswith("overlays/")])
def test_both_containers_of_the_server_get_the_settings_that_were_rendered(
    folder: str, rendered: dict[str, list[Object]]
) -> None:
    (deployment,) = [found for found in rendered[folder] if found["kind"] == "Deployment"]
    settings = [found["metadata"]["name"] for found in rendered[folder] if "PHISERVE_MODEL" in found.get("data", {})]
    spec = deployment["spec"]["template"]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert [source["configMapRef"]["name"] for source in container["envFrom"]] == settings
        assert "phiserve" in container["image"]
        assert ":" in container["image"]


def test_a_pod_without_keys_mounts_none(rendered: dict[str, list[Object]]) -> None:
    for folder, expected in (("overlays/dev", False), ("overlays/cpu", True)):
        assert ("phiserve-api-keys" in json.dumps(rendered[folder])) == expected
        assert ("PHISERVE_API_KEYS_FILE" in json.dumps(rendered[folder])) == expected


def test_checkov_finds_what_is_excepted_and_explained_and_nothing_else(
    rendered: dict[str, list[Object]], tmp_path: Path
) -> None:
    # No repository's settings, no key of a platform, no look-up of anything: rules that came with the package.
    command = [tool("checkov"), "--directory", ".", "--framework", "kubernetes", "--skip-download", "--output", "json"]
    write_built_in(rendered, tmp_path)
    done = subprocess.run(
        [*command, "--soft-fail", "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 0
    found = {(check["check_id"], check["resource"]) for check in report["results"]["failed_checks"]}
    exceptions = yaml.safe_load((K8S / "checkov_exceptions.yaml").read_text())
    assert all(len(exception["why"].split()) > 10 for exception in exceptions)
    assert found == {(exception["rule"], name) for exception in exceptions for name in exception["objects"]}
