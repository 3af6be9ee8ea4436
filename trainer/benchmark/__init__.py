"""Deep Retrieval beside its rivals on several data sets, and what each setting is worth."""
