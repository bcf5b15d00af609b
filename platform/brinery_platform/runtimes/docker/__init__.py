"""Workers as containers of a Docker engine; the platform's own processes stay processes of this machine."""
