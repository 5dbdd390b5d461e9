"""SAE checkpoints of the field's libraries, in one neutral form."""
