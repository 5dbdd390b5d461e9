"""Names of environment variables: a language model's key, server and model, and what web processes share. Standard library only."""

# The key; OPENAI_KEY is read where KEY is not set.
KEY, OPENAI_KEY = "SEEDSCOPE_LLM_KEY", "OPENAI_API_KEY"
# The server's address and the model's name, used where a command names no others.
URL, MODEL = "SEEDSCOPE_LLM_URL", "SEEDSCOPE_LLM_MODEL"
# Where indexes are made of stores beside which nothing can be written: web processes that share a port share it.
INDEX_FOLDER = "SEEDSCOPE_INDEX_FOLDER"
# Where they add up their requests; prometheus_client reads it when it is imported.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
