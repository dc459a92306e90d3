"""The channel graph as a picture or as text."""
