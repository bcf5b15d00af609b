"""The gateway: everything that speaks HTTP to the outside. Any number of them run; none keeps anything of its own."""
