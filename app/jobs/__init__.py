"""Long work that the dashboard starts."""
