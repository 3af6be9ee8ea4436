"""Deep Retrieval itself (arXiv 2007.07203): path layers, first paths, the M-step, and the EM loop."""
