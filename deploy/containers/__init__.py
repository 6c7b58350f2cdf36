"""An experiment in containers: images, the compose file, what containers mount, and the launcher that runs them."""
