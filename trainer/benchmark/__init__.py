"""Compare Deep Retrieval with other methods on several data sets, and measure the effect of each setting."""
