"""Networks trained elsewhere: the file of their weights, how it is read, what was published on them."""
