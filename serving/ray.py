"""The server's application on Ray Serve (2.60), for replicas on more than one machine.

    serve run piston.serving.ray:app bundle=bundles/smollm2 replicas=2 cpus=1

Every replica is a process with the whole server in it: queue, health and metrics are its own. Ray's proxy sends the
requests of one X-Session-ID to one replica, where the prefixes of its chat are kept. What is not here: parts of one
model on several machines. No other module imports ray.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig, RequestRouterConfig

from piston.core.errors import MisuseError
from piston.core.tasks import task_module
from piston.runtime.bundle import Bundle
from piston.runtime.model import load
from piston.serving import tasks
from piston.serving.app import Server
from piston.serving.settings import Settings, read_keys

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
BESIDE = (
    8  # requests that a replica takes beyond those it runs and queues, so that its own 429, /health and /metrics pass
)
HEALTH_PERIOD = 5.0  # seconds between two checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is deployed.

    Attributes:
        bundle: directory on every machine; `NAME=DIR` names the model.
        replicas: processes, all together.
        cpus: cores of each, which are also the threads of its engine.
        target, max_batch, max_length: as of `piston serve`.
        settings: of each replica's server; host and port are Ray's.
    """

    bundle: str
    replicas: int = 2
    cpus: int = 1
    target: str | None = None
    max_batch: int | None = None
    max_length: int | None = None
    settings: Settings = field(default_factory=lambda: Settings(page=False))

    @property
    def named(self) -> tuple[str, Path]:
        """The name of the model and its directory."""
        name, is_named, directory = self.bundle.partition("=")
        return (name, Path(directory)) if is_named else (Path(self.bundle).resolve().name, Path(self.bundle))

    @property
    def num_rows(self) -> int:
        """Rows of one replica's engine."""
        if self.max_batch is not None:
            return self.max_batch
        return int(Bundle.open(self.named[1]).engine(self.target).requested.get("max_batch", 1))

    def options(self) -> dict[str, Any]:
        """The options of the deployment, from those of the server.

        A replica's own queue refuses first; Ray's comes after it, and answers with the same status.
        """
        task = Bundle.open(self.named[1]).manifest.task
        limit: int = task_module(tasks, task).serve.max_open(self.num_rows, self.settings)
        return {
            "name": "piston",
            "num_replicas": self.replicas,
            "max_ongoing_requests": limit + BESIDE,
            "max_queued_requests": limit,
            "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
            "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
            "ray_actor_options": {"num_cpus": self.cpus},
            "health_check_period_s": HEALTH_PERIOD,
            "graceful_shutdown_wait_loop_s": 0.1,
            "graceful_shutdown_timeout_s": self.settings.shutdown_timeout,
        }


class Replica:
    """One server in a process of Ray's; Ray calls the methods by their names."""

    def __init__(self, deployment: Deployment) -> None:
        self._stack = contextlib.ExitStack()
        name, directory = deployment.named
        model = self._stack.enter_context(
            load(
                directory,
                target=deployment.target,
                max_batch=deployment.max_batch,
                max_length=deployment.max_length,
                threads=deployment.cpus,
            )
        )
        self._server = Server([(name, model)], deployment.settings)

    def __serve_build_asgi_app__(self) -> Any:
        """Start the engine threads; the application that answers HTTP."""
        self._server.start()
        for served in self._server.served.values():
            self._stack.callback(served.thread.stop)
        return self._server.app

    def check_health(self) -> None:
        """Raise RuntimeError where an engine thread hangs, fails or has ended: Ray replaces the replica."""
        problems = {name: served.thread.problem() for name, served in self._server.served.items()}
        if found := [f"{name}: {problem}" for name, problem in problems.items() if problem is not None]:
            raise RuntimeError("; ".join(found))

    def __del__(self) -> None:
        """End the engine threads; Ray has waited for the requests that ran."""
        self._stack.close()


def application(deployment: Deployment) -> serve.Application:
    """What `ray.serve.run` takes.

    Raises:
        BundleError: the bundle is not a bundle, or has no such engine.
    """
    return serve.deployment(serve.ingress()(Replica)).options(**deployment.options()).bind(deployment)


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The builder of `serve run piston.serving.ray:app KEY=VALUE ...` and of Ray's YAML.

    Keys are the attributes of Deployment, api_key_file, and the attributes of Settings that a replica has.

    Raises:
        MisuseError: a key is unknown, missing, or not a number where one is needed, or a number is out of range.
    """
    own = {item.name for item in fields(Deployment)} - {"settings"}
    known = {item.name for item in fields(Settings)} - {"host", "port", "api_keys", "page"}
    if unknown := sorted(set(arguments) - own - known - {"api_key_file"}):
        names = ", ".join(sorted(own | known | {"api_key_file"}))
        raise MisuseError(f"There is no option {unknown[0]}; there are {names}.")
    if "bundle" not in arguments:
        raise MisuseError("bundle is missing; write bundle=DIR.")
    values = {name: _value(name, value) for name, value in arguments.items()}
    keys = read_keys(Path(values["api_key_file"])) if "api_key_file" in values else ()
    chosen = {name: value for name, value in values.items() if name in known}
    settings = replace(Settings(page=False, api_keys=keys), **chosen)
    return application(Deployment(settings=settings, **{name: v for name, v in values.items() if name in own}))


def _value(name: str, value: Any) -> Any:
    """A value of a command line, which is text, as what the option takes."""
    if name in {"bundle", "target", "metrics_prefix", "api_key_file", "otlp_traces_endpoint"} or not isinstance(
        value, str
    ):
        return value
    if name == "max_stall" and value == "auto":
        return value
    if name in {"lenient", "log_prompts"} and value in {"true", "false"}:
        return value == "true"
    try:
        return float(value) if name in {"max_stall", "shutdown_timeout"} else int(value)
    except ValueError:
        raise MisuseError(
            f"{name} is {value!r}, which is not what it takes; write a number, or true or false."
        ) from None
