"""The engine over HTTP: OpenAI's image endpoints, AUTOMATIC1111's, and ours."""
