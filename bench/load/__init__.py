"""Load on a server over HTTP: many requests at a time, as `piston bench --serve` sends them."""
