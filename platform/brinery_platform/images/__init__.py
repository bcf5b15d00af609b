"""Images that workers start from: a base from this machine or a registry, and an environment on it for each lock."""
