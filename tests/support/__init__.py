"""What several tests need: small models and studies, files of other libraries, a chat server."""
