"""The router's files name one another's things, and weigh what the server's metrics tell them."""

import ipaddress
from typing import Any

import pytest
import yaml

from multiflora.server.settings import ServeSettings

from .dockerfile import ROOT

FOLDER = ROOT / "deploy" / "llm-d"
SCORING = {
    "compose": FOLDER / "picker" / "scoring.yaml",
    "kubernetes": ROOT / "deploy" / "kubernetes" / "pool" / "scoring.yaml",
}


def read(path: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / path).read_text())


@pytest.mark.parametrize("place", SCORING)
def test_adapters_weigh_most_and_every_plugin_is_declared(place: str) -> None:
    config = yaml.safe_load(SCORING[place].read_text())
    declared = {plugin.get("name", plugin["type"]): plugin for plugin in config["plugins"]}
    (profile,) = config["schedulingProfiles"]
    weights = {one["pluginRef"]: one.get("weight", 0) for one in profile["plugins"]}
    assert weights.keys() <= declared.keys()
    assert max(weights, key=lambda name: weights[name]) == "lora-affinity-scorer"
    assert list(weights.values()).count(max(weights.values())) == 1


def test_both_ways_to_run_it_score_alike() -> None:
    profiles = [yaml.safe_load(path.read_text())["schedulingProfiles"] for path in SCORING.values()]
    assert profiles[0] == profiles[1]


def test_the_endpoints_are_the_replicas() -> None:
    compose, config = read("compose.yaml"), read("picker/scoring.yaml")
    discovery = config["dataLayer"]["discovery"]["pluginRef"]
    (plugin,) = [one for one in config["plugins"] if one.get("name") == discovery]
    mounts = dict(m.split(":")[:2] for m in compose["services"]["picker"]["volumes"])
    path = plugin["parameters"]["path"].replace(mounts["./picker"], "picker")
    endpoints = {one["name"]: one for one in read(path)["endpoints"]}
    (subnet,) = [one["subnet"] for one in compose["networks"]["replicas"]["ipam"]["config"]]
    servers = {name: s for name, s in compose["services"].items() if name.startswith("server")}
    assert endpoints.keys() == servers.keys()
    for name, server in servers.items():
        address = server["networks"]["replicas"]["ipv4_address"]
        assert endpoints[name]["address"] == address
        assert ipaddress.ip_address(address) in ipaddress.ip_network(subnet)
        assert endpoints[name]["port"] == str(ServeSettings().port)
        assert float(server["stop_grace_period"].removesuffix("s")) > ServeSettings().drain_timeout
    flags = compose["services"]["picker"]["command"]
    assert f"--config-file={mounts['./picker']}/scoring.yaml" in flags


def test_envoy_asks_the_picker_and_goes_where_it_says() -> None:
    compose, envoy = read("compose.yaml"), read("envoy.yaml")["static_resources"]
    (listener,) = envoy["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    clusters = {cluster["name"]: cluster for cluster in envoy["clusters"]}
    chosen = clusters[route["route"]["cluster"]]
    assert chosen["original_dst_lb_config"]["http_header_name"] == "x-gateway-destination-endpoint"
    asked, _ = manager["http_filters"]
    picker = clusters[asked["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"]]
    (endpoint,) = picker["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address["address"] in compose["services"]
    flags = compose["services"]["picker"]["command"]
    assert f"--grpc-port={address['port_value']}" in flags
    port = listener["address"]["socket_address"]["port_value"]
    assert compose["services"]["envoy"]["ports"] == [f"127.0.0.1:{port}:{port}"]
