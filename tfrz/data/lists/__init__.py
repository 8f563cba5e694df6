"""Lists: the candidates of a query, and their relevance or clicks."""
