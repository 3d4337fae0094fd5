"""`mvw serve`: questions over HTTP in OpenAI's form, answered through the engine's slots."""
