"""An OpenAI-compatible HTTP server over bundles: one process, one engine thread for each bundle, one event loop."""
