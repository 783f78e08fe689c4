"""The shipped checkpoints; `index.json` lists them."""
