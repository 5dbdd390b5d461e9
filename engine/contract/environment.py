"""Environment variables that name a language model's server, model and key. Standard library only."""

KEY, OPENAI_KEY = "SEEDSCOPE_LLM_KEY", "OPENAI_API_KEY"
URL, MODEL = (
    "SEEDSCOPE_LLM_URL",
    "SEEDSCOPE_LLM_MODEL",
)  # environment: the server and the model where no others are named
