"""A TCP link between a client and the server that behaves like a line of given figures, and takes commands."""
