"""The forwarder: one process for each endpoint, between its Celery queue and its workers."""
