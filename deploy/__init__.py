"""Launchers, preparation, containers: how the processes are started."""
