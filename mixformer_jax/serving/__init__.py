"""The page in a browser: a server that opens videos, follows targets, and shows both live."""
