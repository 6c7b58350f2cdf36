"""What a run amounts to: measures, the summary of a run directory, and its table, figures and page. Torch-free."""
