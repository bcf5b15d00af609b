"""What a user wrote and chose: code, how it is to be served, and how it is found again by its name."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from brinery.checks import check_name
from brinery.choices import RetryChoice, WebhookChoice, check_names, retry_names, webhook
from brinery.errors import InvalidRequestError
from brinery.spec import BundleKind, EndpointSpec, from_json

# One pip requirement that names what it wants: options, paths and bare URLs would mean something else in the builder.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]*\])?\s*([@<>=!~;(].*)?")
_OPTION = re.compile(r"(^|\s)--?[A-Za-z]")


class EndpointChoices(TypedDict, total=False):
    """What ``@endpoint`` takes: `brinery.spec.EndpointSpec`'s fields but for the bundle's id, and ``requirements``.

    Meanings and defaults stand there, and nowhere else.
    """

    name: str
    requirements: list[str]
    min_workers: int
    max_workers: int
    concurrency: int
    cpus: float
    memory_mib: int
    gpus: int
    idle_seconds: float
    timeout_seconds: float
    startup_timeout_seconds: float
    drain_seconds: float
    max_attempts: int
    retry_for: Sequence[RetryChoice]
    priority_age_seconds: float
    webhook: WebhookChoice
    max_queued: int
    expires_in_seconds: float
    result_ttl_seconds: float
    egress: str | list[str]
    env: dict[str, str]
    metadata: dict[str, Any]


class Definition:
    """A function, class or pair with its settings; `brinery.endpoint.Endpoint` gives it verbs.

    Args:
        target: The function, the class, or the pair as ``{"load_model": …, "load_predict": …}``.
        kind: Which of the three.
        choices: As ``@endpoint`` takes them.

    Raises:
        InvalidRequestError: A setting is unknown, or its name or a requirement is wrong.
    """

    def __init__(self, target: Any, kind: BundleKind, choices: EndpointChoices) -> None:
        check_names(choices, EndpointChoices, "endpoint()")
        self.name = choices.get("name") or _default_name(target)
        check_name(self.name, "endpoint")
        self.target = target
        self.kind = kind
        self.settings = endpoint_settings({**choices, "name": self.name})
        self.requirements = _checked_requirements(choices.get("requirements", []))

    def parameters(self) -> inspect.Signature | None:
        """Return the signature that callers see; None where only a worker will know it."""
        if self.kind is BundleKind.LOAD_PREDICT:
            return None
        try:
            if self.kind is BundleKind.FUNCTION:
                return inspect.signature(self.target)
            signature = inspect.signature(self.target.predict)
        except (TypeError, ValueError):
            return None
        if isinstance(inspect.getattr_static(self.target, "predict"), staticmethod | classmethod):
            return signature
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def spec(self, bundle_id: str) -> EndpointSpec:
        """Return how the bundle is to be served, every setting checked.

        Raises:
            InvalidRequestError: Naming the first setting that is wrong.
        """
        return endpoint_spec(self.settings, bundle_id)


def endpoint_settings(choices: EndpointChoices) -> EndpointChoices:
    """Return a user's choices as the platform takes them: errors by their names, a webhook whole.

    Raises:
        InvalidRequestError: A setting is unknown, or one of these two is wrong.
    """
    check_names(choices, EndpointChoices, "endpoint()")
    settings: EndpointChoices = {**choices}
    if "retry_for" in choices:
        settings["retry_for"] = retry_names(choices["retry_for"])
    if choices.get("webhook") is not None:
        settings["webhook"] = webhook(choices["webhook"])
    return settings


def endpoint_spec(settings: EndpointChoices, bundle_id: str) -> EndpointSpec:
    """Return how a bundle is to be served, every setting checked.

    Args:
        settings: What `endpoint_settings` returned, the name included.
        bundle_id: ``bun_…``.

    Raises:
        InvalidRequestError: Naming the first setting that is wrong.
    """
    name = settings["name"]
    fields = {field: value for field, value in settings.items() if field != "requirements"}
    spec = from_json(EndpointSpec, {**fields, "bundle_id": bundle_id}, what=f"endpoint {name!r}")
    for key, value in spec.metadata.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"endpoint {name!r}: metadata.{key} cannot travel as JSON ({error}); give plain JSON types.",
                field=f"metadata.{key}",
            ) from None
    return spec


def find(module: str, path: str) -> Any:
    """Return what `path` names in a module that can be imported everywhere, or None.

    Args:
        module: Name of the module; ``__main__`` is another one in each process, so nothing is found in it.
        path: Qualified name in it; what stands behind a definition is looked up in its target.
    """
    if module in {"__main__", "__mp_main__"} or "<" in path:
        return None
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found.target if isinstance(found, Definition) else found, part, None)
    return found


def resolve(module: str, path: str) -> Any:
    """Return what a bundle's pickle means by a name that an endpoint stands in front of: the code, not the endpoint.

    Args:
        module: Name of an importable module.
        path: Qualified name in it.
    """
    found = find(module, path)
    return found.target if isinstance(found, Definition) else found


def _default_name(target: Any) -> str:
    own = getattr(target, "__name__", "")
    if not own.isidentifier():
        raise InvalidRequestError(f"{own or type(target).__name__} has no name to be called by; give name=….")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", own)
    return words.replace("_", "-").strip("-").lower()


def _checked_requirements(lines: Any) -> tuple[str, ...]:
    if isinstance(lines, str | Mapping):
        raise InvalidRequestError(
            f"requirements is a list of pip requirement lines, as in ['numpy>=2'], not {lines!r}."
        )
    for line in lines:
        if not isinstance(line, str) or not line.isprintable():
            raise InvalidRequestError(f"requirements: {line!r} is no text of one line; give one requirement each.")
        if _OPTION.search(line):
            raise InvalidRequestError(
                f"requirements: {line!r} holds a pip option. Options are the platform's to set (its package index, "
                "too); give only names and versions, as in 'numpy>=2'."
            )
        if not _REQUIREMENT.fullmatch(line.strip()):
            raise InvalidRequestError(
                f"requirements: {line!r} is no pip requirement; write 'numpy', 'numpy>=2' or 'name @ https://…'. "
                "Your own modules need none: they travel along."
            )
    return tuple(line.strip() for line in lines)
