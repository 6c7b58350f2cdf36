"""An experiment as a torchrun job: one rank per role, and the launcher that starts such a job on this host."""
