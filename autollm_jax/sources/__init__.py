"""One module per public table, each a reader of the upstream file as published."""
