"""Rows -> Plotly figure dictionaries and small SVG pictures; pure functions.

Refuses: the store, the request, and statistics beyond what a mark on the axis needs.
"""
