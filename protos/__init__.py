"""The wire format: federation.proto and the code generated from it."""
