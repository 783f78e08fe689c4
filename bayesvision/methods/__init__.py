"""The methods, a folder each; the file named like it holds the recipe and its posterior."""
