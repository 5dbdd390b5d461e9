"""Rows -> Plotly figure dictionaries; pure functions."""
