"""Preparation and launchers, and the link between a client and the server: how the processes are started."""
