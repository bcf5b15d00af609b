"""The way out for workers whose egress is a list of hosts: a proxy of ours, which reads the list from the caller."""
