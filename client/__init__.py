"""The client process."""
