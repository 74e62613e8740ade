pytest_plugins = ["encoder_fixtures", "embedding_fixtures", "text_fixtures"]
