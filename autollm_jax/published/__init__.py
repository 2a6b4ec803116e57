"""Other people's weights, vocabularies and chat templates, read and written."""
