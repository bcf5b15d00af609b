"""Hostile code that looks around: other people's code, data and services, and more rights than it has."""

import contextlib
import json

import psutil
import pytest
from hostile_arena import ARSENAL, LISTENER, METADATA, bridge, metadata_service
from hostile_table import INSPECTED, ROWS, Row

from containers import docker
from stack import wait_until

HOST_NETWORK = ("--network", "host")
TRACER = ("--pid", "host", "--cap-add", "SYS_PTRACE")
SOCKET = "/var/run/docker.sock"
PRIVILEGED = ("--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined")


def test_a_bundle_of_another_owner_is_not_to_be_found(arena):
    arena.try_both(
        "read another bundle",
        "read_others(['neighbour'], ['/home/platform'])",
        *("-v", f"{arena.home}:/home/platform:ro"),
        ours="read_others(['neighbour'], ['/'])",
    )


def test_an_environment_of_another_process_is_not_to_be_found(arena):
    call = "read_environments('NEIGHBOURS_SECRET=hush-7f3a')"
    arena.try_both("read another environment", call, *TRACER)


def test_neither_redis_nor_any_port_of_the_platform_is_reached(arena):
    places = [place for place in arena.listening() if place[1] != arena.port]
    redis = f"{arena.home}/redis/redis.sock"
    row = arena.try_both("reach Redis", f"ask_socket({redis!r}, 'PING\\r\\n')", "-v", f"{arena.home}:{arena.home}")
    assert "NOAUTH" in row.control  # it answers, in its own protocol
    own = [[arena.host, arena.port], *places]
    got = arena.control(f"reach_all({own!r})", *HOST_NETWORK)
    # Its own loopback, and this machine as it is seen from its network.
    seen = [[host, port] for _, port in places for host in ("127.0.0.1", arena.host)]
    if seen:
        ROWS.append(Row("reach a port of the platform's processes", got, arena.attempt(f"reach_any({seen!r})")))


def test_the_gateway_hangs_up_on_workers_where_it_listens_for_the_world(arena):
    """It listens on an address that workers reach; the control container, in another network, is answered."""
    call = f"reach({arena.host!r}, {arena.port}, 'GET /healthz HTTP/1.0\\r\\n\\r\\n')"
    row = arena.try_both("reach the gateway", call)
    assert "200" in row.control


def test_another_worker_is_not_reached(arena):
    peer = arena.beside("/opt/brinery/environment/bin/python", "-c", LISTENER, "0.0.0.0", "5005", "a worker")  # noqa: S104 - its own
    (facts,) = json.loads(docker("inspect", peer))
    (address,) = [one["IPAddress"] for one in facts["NetworkSettings"]["Networks"].values()]
    got = wait_until(lambda: _reached(arena, address), what="the control container's neighbour to answer")
    other = arena.address("neighbour")
    for port in (5005, 5006):
        stopped = arena.attempt(f"reach({other!r}, {port})")
    ROWS.append(Row("reach another worker", got, stopped))
    assert arena.control(f"reach({other!r}, 5005)", *HOST_NETWORK)  # it is there, and answers the platform


def test_the_metadata_address_leads_nowhere(arena):
    network, inner = arena.network("hostile"), arena.network("shut")
    with metadata_service([arena.bridge, bridge(network), bridge(inner)]):
        call = f"reach({METADATA!r}, 80)"
        row = arena.try_both("reach the metadata address", call)
        assert "the metadata of this machine" in row.control
        # In the workers' own network too, where a container is not a worker of ours.
        assert "the metadata of this machine" in arena.control(call, "--network", network)
        ROWS.append(Row("the same with egress off", row.control, arena.attempt(call, "shut")))


def test_the_docker_socket_is_not_there(arena):
    call = f"ask_socket({SOCKET!r}, 'GET /version HTTP/1.0\\r\\n\\r\\n')"
    row = arena.try_both("ask the Docker engine", call, "-v", f"{SOCKET}:{SOCKET}")
    assert "200 OK" in row.control


@pytest.mark.parametrize(
    ("attempt", "call", "options"),
    [
        ("become user 0", "set_user_0()", ()),
        ("make a user namespace", "own_namespace()", PRIVILEGED),
        ("mount a file system", "mount()", PRIVILEGED),
        ("make a device", "make_device()", ()),
        ("change the root folder", "change_root()", ()),
        ("hear every packet", "raw_packets()", ()),
        ("change the kernel's settings", "change_kernel()", PRIVILEGED),
    ],
)
def test_nobody_becomes_root(arena, attempt, call, options):
    arena.try_both(attempt, call, *options)


def test_a_process_of_the_machine_cannot_be_traced(arena):
    victim = psutil.Popen(["sleep", "300"])
    try:
        call = f"trace({victim.pid})"
        arena.try_both("trace a process of the machine", call, *TRACER)
    finally:
        victim.kill()
        victim.wait()


def test_the_workers_first_process_cannot_be_taken_over(arena):
    """It answers the controller; in the control container it is an ordinary process of the same user."""
    peer = arena.beside("sleep", "300", options=("--user", "65534"))
    call = "trace(1)"
    got = arena.inside(peer, call, user="65534")
    ROWS.append(Row("take over the worker's supervisor", got, arena.attempt(call)))


def test_nothing_is_written_outside_of_scratch(arena):
    folders = ["/", "/etc", "/usr/bin", "/opt/brinery", "/opt/brinery/environment/bin", "/opt/brinery/worker"]
    arena.try_both("write outside of /tmp", f"write_outside({folders!r})")
    answer = arena.call("hostile", code=ARSENAL, call="writable()")["got"]
    assert {one.split("/")[1] for one in answer} <= {"tmp", "home", "dev"}
    assert {one for one in answer if one.startswith("/dev")} <= {"/dev/shm", "/dev/mqueue"}  # noqa: S108 - tmpfs, too


def test_the_serving_ports_are_taken_before_a_bundle_is_imported(arena):
    got = arena.control("bind(5005)")
    bound = arena.call("early")
    assert set(bound) == {"Address already in use"}
    ROWS.append(Row("bind port 5005 first", got, bound[0], "it serves"))


def test_off_finds_no_name_and_an_attempt_that_succeeds_is_noticed(arena):
    assert "resolution" in arena.attempt("socket.gethostbyname('name.invalid')", "shut")
    with pytest.raises(AssertionError, match="got HTTP"):
        arena.attempt("reach('127.0.0.1', 5006)", "shut")


def test_how_a_worker_is_set_up(arena):
    (facts,) = json.loads(docker("inspect", arena.worker("hostile")["Id"]))
    host = facts["HostConfig"]
    wanted = ["Memory", "MemorySwap", "CpuQuota", "CpuPeriod", "PidsLimit", "CapDrop", "CapAdd", "SecurityOpt"]
    wanted += ["ReadonlyRootfs", "Tmpfs", "Privileged", "Binds", "PidMode", "IpcMode", "Ulimits", "LogConfig"]
    shown = {"User": facts["Config"]["User"]} | {name: host[name] for name in wanted}
    INSPECTED[:] = [f"{name}: {json.dumps(value)}" for name, value in shown.items()]
    assert shown["User"] == "65534:65534"
    assert shown["CapDrop"] == ["ALL"]
    assert not shown["Privileged"]


def _reached(arena, address):
    with contextlib.suppress(AssertionError):
        return arena.control(f"reach({address!r}, 5005)")
    return None
