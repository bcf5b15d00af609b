"""The command `deploy`: the endpoints of a Python file, or an image that serves by itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brinery.cli import show
from brinery.errors import InvalidRequestError

if TYPE_CHECKING:
    from brinery.deployment import Deployment


def _image_option(text: str, **more: Any) -> Any:
    return typer.Option(help=f"Image: {text}", **more)


def deploy(
    target: Annotated[str, typer.Argument(metavar="FILE[:NAME]", help="A Python file, and one of its endpoints.")] = "",
    image: Annotated[
        str, typer.Option(help="An image instead of a file: its name and tag, digest or id.", metavar="REFERENCE")
    ] = "",
    name: Annotated[str, _image_option("The endpoint's name; by default the last part of the image's.")] = "",
    command: Annotated[str, _image_option("Run instead of the image's own, as a shell would split it.")] = "",
    port: Annotated[int | None, _image_option("Where it listens; 5005 if left out.")] = None,
    predict_route: Annotated[str, _image_option("Takes calls by POST; /predict if left out.")] = "",
    ready_route: Annotated[str, _image_option("Answers GET when it can serve; /readyz if left out.")] = "",
    stream_route: Annotated[str, _image_option("Takes calls that want a stream of events.")] = "",
    volume: Annotated[list[str] | None, _image_option("NAME:/PATH or NAME:/PATH:ro; several times.")] = None,
    scratch: Annotated[list[str] | None, _image_option("A folder to be writable, in memory; several times.")] = None,
    shm_mib: Annotated[int | None, _image_option("Size of /dev/shm; 64 if left out.")] = None,
    user: Annotated[str, _image_option("Name or id, never root; the image's own if left out.")] = "",
    on_cancel: Annotated[str, _image_option("How a call is stopped: 'replace' the worker, or 'disconnect'.")] = "",
    env: Annotated[list[str] | None, _image_option("NAME=VALUE; several times.")] = None,
    setting: Annotated[
        list[str] | None,
        _image_option("Any setting of an endpoint, such as cpus=2; several times.", metavar="KEY=VALUE"),
    ] = None,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            metavar="on|off|HOST",
            help="What workers may connect to, in place of what the file says: on, off, or a host such as "
            "'*.example.com:8443'; may be given several times.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Return when it is ready.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Deploy the endpoints that a Python file defines, or an image that serves by itself."""
    given = {
        "command": _words(command),
        "port": port,
        "predict_route": predict_route,
        "ready_route": ready_route,
        "stream_route": stream_route,
        "volumes": volume,
        "scratch": scratch,
        "shm_mib": shm_mib,
        "user": user,
        "on_cancel": on_cancel,
    }
    choices = {key: value for key, value in given.items() if value not in (None, "", [])}  # 0 is given, and refused
    settings = _settings(name, env or [], setting or [])
    if bool(target) == bool(image):
        raise InvalidRequestError("Give a Python file, or an image with --image; one of the two.")
    if target and (choices or settings):
        raise InvalidRequestError("These options are for --image; what a file defines has its settings in the file.")
    if egress:
        settings["egress"] = egress[0] if egress[0] in {"on", "off"} and len(egress) == 1 else egress
    deployed = []
    for one in _of_image(image, choices, settings, wait=wait) if image else _of_file(target, settings, wait=wait):
        deployed.append(
            {
                "name": one.name,
                "version": one.version,
                "status": one.status.value,
                "url": one.url,
                "bundle_id": one.bundle_id,
            }
        )
        if not as_json:
            typer.echo(f"{one.name} version {one.version} is {one.status}: POST {one.url}")
    if as_json:
        show.json_text(deployed)


def _of_file(target: str, settings: dict[str, Any], *, wait: bool) -> Iterator[Deployment]:
    from brinery.cli.code import endpoints_in

    for endpoint in endpoints_in(target):
        endpoint.settings.update(settings)  # type: ignore[typeddict-item] # checked when it is deployed
        with show.progress(endpoint.name) as report:
            deployment = endpoint.deploy(wait=wait, progress=report)
        yield deployment


def _of_image(reference: str, choices: dict[str, Any], settings: dict[str, Any], *, wait: bool) -> Iterator[Deployment]:
    from brinery.image import Image, default_name

    image = Image(reference, **choices)
    settings.setdefault("name", default_name(reference))
    with show.progress(settings["name"]) as report:
        deployment = image.deploy(wait=wait, progress=report, **settings)
    yield deployment


def _settings(name: str, env: list[str], pairs: list[str]) -> dict[str, Any]:
    """Return the endpoint's settings that the options choose; a value is JSON, or else text."""
    settings: dict[str, Any] = {"name": name} if name else {}
    for pair in pairs:
        key, text = _pair(pair, "--setting")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    variables = dict(_pair(pair, "--env") for pair in env)
    return {**settings, "env": {**settings.get("env", {}), **variables}} if variables else settings


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InvalidRequestError(f"--command {command!r}: {error}; write it as for a shell.") from None


def _pair(pair: str, option: str) -> tuple[str, str]:
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise InvalidRequestError(f"{option} {pair!r}: write it as KEY=VALUE.")
    return key, text
