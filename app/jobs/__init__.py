"""Long work that the dashboard starts."""

from app.jobs.asked import Job, JobRefusedError, language_model
from app.jobs.queue import ID_PATTERN, Jobs

__all__ = ["ID_PATTERN", "Job", "JobRefusedError", "Jobs", "language_model"]
