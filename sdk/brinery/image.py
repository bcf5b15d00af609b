"""An image that serves by itself, as an endpoint: `Image` names it, says where it answers, and deploys it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from brinery.choices import check_names
from brinery.default import chosen_client
from brinery.definition import EndpointChoices, endpoint_settings, endpoint_spec
from brinery.errors import InvalidRequestError
from brinery.spec import BundleKind, BundleManifest, ImageSpec, from_json

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.deployment import Deployment, Progress


class ImageChoices(TypedDict, total=False):
    """What `Image` takes: `brinery.spec.ImageSpec`'s fields but for the reference, whose meanings stand there."""

    command: list[str]
    port: int
    predict_route: str
    ready_route: str
    stream_route: str
    on_cancel: Literal["replace", "disconnect"]
    shm_mib: int
    volumes: list[str]
    scratch: list[str]
    user: str


class Image:
    """An image with a server in it: it listens on a port, says when it is ready, and takes calls by POST.

    Args:
        reference: Its name and tag, digest or id; pulled where the platform's Docker engine does not have it.
        choices: ``command``, ``port``, ``predict_route`` and all else of `brinery.spec.ImageSpec`.

    Raises:
        InvalidRequestError: A setting is unknown or wrong; the text says which and why.
    """

    def __init__(self, reference: str, **choices: Unpack[ImageChoices]) -> None:
        check_names(choices, ImageChoices, "Image()")
        self.spec = from_json(ImageSpec, {**choices, "reference": reference}, what="image")

    def __repr__(self) -> str:
        return f"Image({self.spec.reference!r})"

    def deploy(
        self,
        *,
        wait: bool = True,
        progress: Progress | None = None,
        client: Client | None = None,
        **choices: Unpack[EndpointChoices],
    ) -> Deployment:
        """Make the image an endpoint's new version, as `brinery.Endpoint.deploy` does it with code.

        What a tag names is looked up at each deployment, so that one again is a new version; the same digest or id
        again is none.

        Args:
            wait: Return only when the endpoint is ready; otherwise as soon as the platform has it.
            progress: Called with each event, ``{"at", "version", "kind", "text"}``, while it waits.
            client: None for the one that the environment and the profile name.
            choices: Any field of `brinery.spec.EndpointSpec`, ``env`` for the server's variables among them; the name
                is by default the last part of the image's.

        Returns:
            Name, version, status and URL; ``Endpoint.from_name(name)`` calls it.

        Raises:
            InvalidRequestError: A setting is wrong; the text says which and why.
            DeploymentError: It cannot become ready; carries the reason.
            BrineryError: Another of its classes says what else went wrong.
        """
        if "requirements" in choices:
            raise InvalidRequestError("An image brings all that it needs; requirements are for functions.")
        settings = endpoint_settings({**choices, "name": choices.get("name") or default_name(self.spec.reference)})
        name = settings["name"]
        endpoint_spec(settings, "bun_unknown")  # a wrong setting is told before anything is sent
        gateway = chosen_client(client, repr(name))
        from brinery.bundle import pack_manifest
        from brinery.deployment import deploy_packed

        manifest = BundleManifest(name=name, kind=BundleKind.IMAGE, python="", cloudpickle="", image=self.spec)
        packed = pack_manifest(manifest)
        return deploy_packed(
            lambda bundle_id: endpoint_spec(settings, bundle_id), packed, gateway, wait=wait, progress=progress
        )


def default_name(reference: str) -> str:
    """Return an endpoint's name out of an image's: ``registry/team/My_Model:3`` gives ``my-model``.

    Raises:
        InvalidRequestError: It is an id, which makes no name.
    """
    if reference.startswith("sha256:"):
        raise InvalidRequestError("An image's id is no name for an endpoint; give name=….", field="name")
    last = reference.rpartition("/")[2].partition("@")[0].partition(":")[0]
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:63].strip("-") or "image"
