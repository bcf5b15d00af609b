"""Which addresses a webhook may reach, in all their spellings."""

from ipaddress import ip_network

import pytest

from brinery.errors import InvalidRequestError
from brinery_platform.addresses import AddressPolicy, AddressRefusedError
from brinery_platform.settings import platform_environment, read_settings

PUBLIC = [
    "93.184.216.34",
    "1.1.1.1",
    "2606:2800:220:1:248:1893:25c8:1946",
    "::ffff:1.1.1.1",
    "64:ff9b::1.1.1.1",
    "2002:101:101::1",
]
REFUSED = {
    "loopback": ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "2002:7f00:1::1", "64:ff9b::7f00:1"],
    "private": ["10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00::1", "fc00::1", "::ffff:10.0.0.1", "2002:a00:1::"],
    "shared": ["100.64.0.1", "100.100.100.200"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%eth0"],
    "metadata": ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "168.63.129.16"],
    "multicast": ["224.0.0.1", "239.1.1.1", "ff02::1", "ff0e::1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"],  # noqa: S104 - refused, not bound
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "2001:db8::1", "4000::1", "fec0::1"],
    "tunnels": ["192.88.99.1", "2001::1", "64:ff9b:1::1", "::7f00:1", "::127.0.0.1"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address):
    AddressPolicy().check("host", 443, [address])


@pytest.mark.parametrize("address", [each for group in REFUSED.values() for each in group])
def test_what_is_not_global_unicast_is_refused(address):
    with pytest.raises(AddressRefusedError, match="BRINERY_WEBHOOK_NETWORKS"):
        AddressPolicy().check("host", 443, [address])


def test_one_bad_address_refuses_the_whole_name():
    with pytest.raises(AddressRefusedError):
        AddressPolicy().check("host", 443, ["1.1.1.1", "10.0.0.1"])
    with pytest.raises(AddressRefusedError):
        AddressPolicy().check("host", 443, [])


def test_allowed_networks_may_be_reached_and_no_others():
    policy = AddressPolicy([ip_network("10.1.0.0/16"), ip_network("fd00::/8")])
    policy.check("host", 443, ["10.1.2.3", "fd00::1", "::ffff:10.1.2.3"])
    for address in ("10.2.0.1", "127.0.0.1", "fe80::1"):
        with pytest.raises(AddressRefusedError):
            policy.check("host", 443, [address])


@pytest.mark.parametrize("port", [22, 25, 53, 110, 445, 993])
def test_well_known_ports_of_other_services_are_refused_except_in_allowed_networks(port):
    with pytest.raises(AddressRefusedError, match=str(port)):
        AddressPolicy().check("host", port, ["1.1.1.1"])
    AddressPolicy([ip_network("10.0.0.0/8")]).check("host", port, ["10.0.0.1"])


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_what_is_no_port_is_refused(port):
    with pytest.raises(AddressRefusedError):
        AddressPolicy([ip_network("10.0.0.0/8")]).check("host", port, ["10.0.0.1"])


@pytest.mark.parametrize("port", [80, 443, 1024, 8443, 65535])
def test_ports_of_the_web_and_free_ones_may_be_used(port):
    AddressPolicy().check("host", port, ["1.1.1.1"])


def test_the_setting_is_a_list_of_networks(tmp_path):
    settings = read_settings(home=tmp_path, webhook_networks="10.1.0.0/16, fd00::/8,127.0.0.1")
    assert settings.webhooks_allowed == (
        ip_network("10.1.0.0/16"),
        ip_network("fd00::/8"),
        ip_network("127.0.0.1/32"),
    )
    passed_on = platform_environment(read_settings(home=tmp_path, redis_url="redis://h", webhook_networks="10.0.0.0/8"))
    assert passed_on["BRINERY_WEBHOOK_NETWORKS"] == "10.0.0.0/8"
    assert read_settings(home=tmp_path).webhooks_allowed == ()


@pytest.mark.parametrize("wrong", ["10.0.0.0/33", "everything", "10.0.0.1/8", "10.0.0.0/8;fd00::/8"])
def test_a_wrong_network_names_its_variable(tmp_path, wrong):
    with pytest.raises(InvalidRequestError, match="BRINERY_WEBHOOK_NETWORKS"):
        read_settings(home=tmp_path, webhook_networks=wrong)
