"""The channel graph of a traced model, and what stands on it."""

from jaxsparse.graph.search import PermutationSearch, search_permutation

__all__ = ["PermutationSearch", "search_permutation"]
