"""What a container's networking adds to its configuration."""

from ipaddress import IPv4Network

from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.network import WorkerNetwork, merged


class Networks:
    """An engine that has networks and nothing else."""

    def __init__(self):
        self.made = []

    def networks(self, wanted):
        return [one for one in self.made if all(one["Labels"].get(name) == value for name, value in wanted.items())]

    def create_network(self, name, *, subnet, gateway, internal, labels, options):
        place = {"Subnet": subnet, "Gateway": gateway}
        facts = {"Name": name, "Labels": labels, "Internal": internal, "Options": options}
        self.made.append({**facts, "IPAM": {"Config": [place]}})


def network():
    return WorkerNetwork(Networks(), "m", IPv4Network("10.213.0.0/16"))


def test_every_container_has_the_hole_for_link_local_addresses():
    for internal in (False, True):
        part = network().joined(internal=internal)
        (place,) = part["NetworkingConfig"]["EndpointsConfig"].values()
        assert place["IPAMConfig"]["LinkLocalIPs"] == ["169.254.0.1"]
        assert part["HostConfig"]["NetworkMode"] in part["NetworkingConfig"]["EndpointsConfig"]


def test_only_the_inner_network_is_internal_and_finds_no_names():
    one = network()
    assert "Dns" not in one.joined()["HostConfig"]
    assert one.joined(internal=True)["HostConfig"]["Dns"] == ["127.0.0.1"]
    made = {facts["Labels"][labels.KIND]: facts["Internal"] for facts in one._engine.made}
    assert made == {"workers": False, "inner": True}
    assert one.address().endswith(".1")


def test_what_is_added_leaves_the_rest_and_wins_where_both_speak():
    config = {"Image": "i", "HostConfig": {"Memory": 1, "NetworkMode": "old"}, "Env": ["A=1", "HTTP_PROXY=theirs"]}
    part = {"HostConfig": {"NetworkMode": "new"}, "Env": ["HTTP_PROXY=ours"], "NetworkingConfig": {}}
    both = merged(config, part)
    assert both["HostConfig"] == {"Memory": 1, "NetworkMode": "new"}
    assert both["Env"] == ["A=1", "HTTP_PROXY=ours"]
    assert both["Image"] == "i"
    assert config["Env"] == ["A=1", "HTTP_PROXY=theirs"]
