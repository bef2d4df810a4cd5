"""Live explorers for people who run a notebook in Jupyter; they need ipywidgets."""
