"""What `steelyard bench` measures. It uses the trunk as a run does and is used by nothing but that command."""
