"""The worker runtime: serves one bundle on port 5005, supervised; start it with ``python -m brinery_worker``."""
