"""Records of tokens: their layout, their seals, and the keys for them."""
