"""Mixture of experts in place of a feed-forward layer: router, dispatch, experts, and the layer that joins them."""
