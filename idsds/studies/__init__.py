"""One module per notebook, by the notebook's name."""
