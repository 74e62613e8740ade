"""As much of Ray Serve as serving/ray.py uses: options are kept, the ingress class is built as on a replica."""

import sys
from types import ModuleType, SimpleNamespace


class Bound(SimpleNamespace):
    """What `bind` gives: the class, the options of the deployment, and the arguments of a replica."""

    def replica(self):
        """A replica, as Ray makes one: constructed, then asked for its application."""
        made = self.cls(*self.arguments)
        made.app = made.__serve_build_asgi_app__()
        return made


def install(monkeypatch):
    """Make `import ray` find the double."""

    def deployment(cls):
        def options(**given):
            return SimpleNamespace(bind=lambda *arguments: Bound(cls=cls, options=given, arguments=arguments))

        return SimpleNamespace(options=options)

    serve = ModuleType("ray.serve")
    serve.deployment, serve.ingress, serve.Application = deployment, lambda: lambda cls: cls, Bound
    config = ModuleType("ray.serve.config")
    config.BackpressureConfig = config.RequestRouterConfig = SimpleNamespace
    ray = ModuleType("ray")
    ray.serve = serve
    for name, module in {"ray": ray, "ray.serve": serve, "ray.serve.config": config}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "piston.serving.ray", raising=False)
