"""Measuring what withdrawal saves and what it costs, with a baseline, an interval and a bound.

Figures have one home each (`report.py`); what renders them adds nothing. Nothing here knows
terminals.
"""
