"""What can be found in a graph and said more simply: constants, duplicates, operators written out by hand."""
