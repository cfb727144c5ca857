"""The manifests fit Kubernetes' schemas, one another, the image and the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from multiflora.server.routes import health
from multiflora.server.settings import ServeSettings

from .dockerfile import ROOT, read_stages

FOLDER = ROOT / "deploy" / "kubernetes"
BASES = (FOLDER, FOLDER / "pool")
# Kinds that others define; kubernetes-validate has no schemas of them.
CUSTOM = {"HTTPRoute", "InferencePool", "Kustomization", "ServiceMonitor"}
IMAGE = read_stages()["server"]
Manifest = dict[str, Any]


def manifests(folder: Path) -> Iterator[Manifest]:
    for path in sorted(folder.glob("*.yaml")):
        if path.name != "scoring.yaml":
            yield from yaml.safe_load_all(path.read_text())


ALL = [manifest for folder in BASES for manifest in manifests(folder)]
SERVERS = [m for m in ALL if m["kind"] in ("Deployment", "StatefulSet") and "picker" not in str(m)]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest.get('metadata', {}).get('name', '')}"


def pod_of(manifest: Manifest) -> Manifest:
    return manifest["spec"]["template"]


def container_of(manifest: Manifest) -> Manifest:
    (container,) = pod_of(manifest)["spec"]["containers"]
    return container


@pytest.mark.parametrize("manifest", ALL, ids=name_of)
def test_a_manifest_fits_the_schema_of_its_kind(manifest: Manifest) -> None:
    if manifest["kind"] in CUSTOM:
        with pytest.raises(kubernetes_validate.SchemaNotFoundError):
            kubernetes_validate.validate(manifest, "1.37", strict=True)
    else:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("folder", BASES, ids=lambda folder: folder.name)
def test_every_file_is_applied_but_what_needs_the_operator(folder: Path) -> None:
    (listed,) = [m for m in manifests(folder) if m["kind"] == "Kustomization"]
    made = {file for one in listed.get("configMapGenerator", ()) for file in one["files"]}
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert files - {"monitor.yaml"} == {*listed["resources"], *made}


@pytest.mark.parametrize("server", SERVERS, ids=name_of)
def test_a_pod_is_given_the_time_that_its_drain_takes(server: Manifest) -> None:
    stops_after = container_of(server)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod_of(server)["spec"]["terminationGracePeriodSeconds"]
    assert stops_after >= 5
    assert grace >= stops_after + ServeSettings().drain_timeout + 15


@pytest.mark.parametrize("server", SERVERS, ids=name_of)
def test_probes_ask_routes_that_there_are(server: Manifest) -> None:
    container = container_of(server)
    (port,) = container["ports"]
    assert port["containerPort"] == ServeSettings().port
    paths = {route.path for route in health.router.routes}  # type: ignore[attr-defined]
    probes = {probe: container[f"{probe}Probe"] for probe in ("startup", "liveness", "readiness")}
    for probe in probes.values():
        assert probe["httpGet"]["path"] in paths
        assert probe["httpGet"]["port"] == port["name"]
    # A server that drains or is busy is not to be killed for it.
    assert probes["liveness"]["httpGet"]["path"] == "/live"
    assert probes["readiness"]["httpGet"]["path"] == "/ready"
    startup = probes["startup"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


@pytest.mark.parametrize("server", SERVERS, ids=name_of)
def test_a_pod_runs_the_image_as_it_is_made(server: Manifest) -> None:
    pod, container = pod_of(server)["spec"], container_of(server)
    (user,) = IMAGE.all("USER")
    assert user.rest == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['fsGroup']}"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    known = {f"MULTIFLORA_{field.upper()}" for field in ServeSettings.__dataclass_fields__}
    assert {setting["name"] for setting in container["env"]} <= known
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert {"/data", "/tmp"} <= writable
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {c["metadata"]["name"] for c in server["spec"].get("volumeClaimTemplates", ())}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_selectors_find_pods_and_references_find_what_they_name() -> None:
    pods = [pod_of(m)["metadata"]["labels"] for m in ALL if "template" in m.get("spec", {})]
    services = {m["metadata"]["name"]: m for m in ALL if m["kind"] == "Service"}
    for manifest in ALL:
        selector = manifest.get("spec", {}).get("selector")
        if selector and manifest["kind"] != "ServiceMonitor":
            wanted = selector.get("matchLabels", selector)
            found = [pod for pod in pods if wanted.items() <= pod.items()]
            assert len(found) == 1, name_of(manifest)
    (pool,) = [m["spec"] for m in ALL if m["kind"] == "InferencePool"]
    assert pool["targetPorts"] == [{"number": ServeSettings().port}]
    picker = services[pool["endpointPickerRef"]["name"]]["spec"]
    assert pool["endpointPickerRef"]["port"]["number"] in {p["port"] for p in picker["ports"]}
    (route,) = [m["spec"] for m in ALL if m["kind"] == "HTTPRoute"]
    (backend,) = route["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "multiflora")


def test_the_monitor_reads_both_pages_of_the_service() -> None:
    (monitor,) = [m["spec"] for m in ALL if m["kind"] == "ServiceMonitor"]
    matched = [
        m
        for m in ALL
        if m["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= m["metadata"]["labels"].items()
    ]
    assert [m["metadata"]["name"] for m in matched] == ["multiflora"]
    ports = {port["name"] for port in matched[0]["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} == ports
    pages = [endpoint["path"] for endpoint in monitor["endpoints"]]
    assert pages == ["/metrics", "/metrics/adapters"]


def test_replicas_are_read_by_a_picker_that_has_no_key() -> None:
    (pool,) = [m for m in SERVERS if m["kind"] == "StatefulSet"]
    settings = {one["name"]: one["value"] for one in container_of(pool)["env"]}
    assert settings["MULTIFLORA_OPEN_METRICS"] == "true"
    assert pod_of(pool)["metadata"]["labels"]["llm-d.ai/engine-type"] == "vllm"
