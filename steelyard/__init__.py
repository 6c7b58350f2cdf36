"""The trunk: what server and clients share. It knows neither of them.

Submodules are imported by name; importing the package itself loads nothing, so that the configuration and the
launchers stay free of torch.
"""
